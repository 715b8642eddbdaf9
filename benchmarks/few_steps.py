"""Few-step students of the embedded teacher in 1 to 25 steps: progressive distillation, consistency, a flow map.

    python benchmarks/few_steps.py [--seeds 0 1 2] [--fraction 1] [--samples 1024] [--output runs/few_steps]

Evaluated on the same held-out noises and prompts:

    teacher        its own sampler (DDIM, guidance 3) in n steps; its 25 are what others are measured against
    progressive    16 -> 8 -> 4 -> 2 -> 1, a student for each (nitrodistill/recipes/progressive-toy.yaml)
    consistency    one student, which renoises between its steps (the settings of examples/recipes/lcm-toy.yaml; it
                   learned on a grid of 40 steps, of which 25 are no part)
    flow map       one student, told how far it goes (nitrodistill/recipes/flow-map-toy.yaml)

All share 600 pairs. The updates (UPDATES) were chosen for about equal CPU time; what each really took is in its
row. `--fraction` trains by that share of them, for a short look. Resumable: what is finished is kept, and a killed
run goes on. Writes benchmarks/results/few_steps.json and the table in docs/few_steps.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from demo_quality import METRICS, environment, table_cell, train

from nitrodistill.data import GenerateConfig, generate
from nitrodistill.demo.demo import shuffled_captions
from nitrodistill.evaluation import EvaluateConfig
from nitrodistill.evaluation.student import measure_student
from nitrodistill.methods.consistency import ConsistencyConfig
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.teachers import load_teacher
from nitrodistill.training.recipe import Recipe, load_recipe
from nitrodistill.training.run import load_student
from nitrodistill.types import Denoiser

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "nitrodistill" / "recipes"
RESULTS = ROOT / "benchmarks" / "results" / "few_steps.json"
DOCS = ROOT / "docs" / "few_steps.md"
PAIRS, GUIDANCE, STEPS = 600, 3.0, (1, 2, 4, 8, 25)
UPDATES = {"progressive": 720, "consistency": 760, "flow_map": 560}


def recipe_of(method: str, root: Path, seed: int, fraction: float) -> Recipe:
    """The method's recipe with its share of updates, without previews."""
    name = {"progressive": "progressive-toy", "flow_map": "flow-map-toy"}.get(method, "lcm-toy")
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    whole = sum(stage.trainer.steps for stage in recipe.stages)
    stages = []
    for stage in recipe.stages:
        steps = max(1, round(stage.trainer.steps * fraction * UPDATES[method] / whole))
        trainer = replace(
            stage.trainer,
            steps=steps,
            seed=seed,
            preview_every=0,
            evaluate_every=0,
            checkpoint_every=20,
        )
        if method == "consistency":
            settings = ConsistencyConfig(grid_steps=40, guidance=GUIDANCE)
            stage = replace(stage, method="consistency", settings=settings)
        stages.append(replace(stage, trainer=trainer))
    output = str(root / f"{method}-{seed}")
    return replace(recipe, pairs=str(root / "pairs"), output=output, stages=stages)


class Bench:
    """What all rows share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.root: Path = options.output
        self.fraction: float = options.fraction
        self.settings = EvaluateConfig(
            options.samples, seed=1000, bootstrap=2, cost_repeats=0, num_pictures=0
        )
        self.pipeline: Pipeline = load_teacher("toy")

    def measured(self, denoiser: Denoiser, plan: StepPlan, name: str) -> dict[str, Any]:
        """Metrics of a student, and beside them the teacher's and the floor; kept in a file of that name."""
        kept = self.root / f"{name}.json"
        if not kept.is_file():
            found = measure_student(
                "toy", self.pipeline, denoiser, plan, shuffled_captions(), self.settings,
                cache=self.root / "cache", keep_student=False,
            )  # fmt: skip
            rows = {
                m: {key: found.value(m, key) for key in METRICS} for m in ("student", "teacher")
            }
            rows["floor"] = {key: found.floor(key) for key in METRICS}
            kept.write_text(json.dumps(rows))
        return json.loads(kept.read_text())

    def trained(self, method: str, seed: int) -> dict[str, Any]:
        """Steps -> metrics of the method's students, and the CPU seconds of their training."""
        recipe = recipe_of(method, self.root, seed, self.fraction)
        row: dict[str, Any] = {"cpu_seconds": round(train(recipe, self.pipeline), 1)}
        row["updates"] = sum(stage.trainer.steps for stage in recipe.stages)
        for number in range(len(recipe.stages)):
            student = load_student(recipe.output, self.pipeline, stage=number)
            schedule, transition = student.denoiser.schedule, student.plan.transition
            many = STEPS if method != "progressive" else (len(student.plan),)
            for steps in many:
                plan = StepPlan.from_schedule(schedule, steps, transition)
                name = f"{method}-{seed}-in-{steps}"
                row[str(steps)] = self.measured(student.denoiser, plan, name)["student"]
        return row

    def teachers(self) -> dict[str, Any]:
        """Steps -> metrics of the teacher's own sampler, and the floor."""
        found: dict[str, Any] = {}
        guided = self.pipeline.guided(GUIDANCE)
        for steps in (1, 2, 4, 8, 16):
            plan = StepPlan.from_schedule(self.pipeline.denoiser.schedule, steps)
            rows = self.measured(guided, plan, f"teacher-in-{steps}")
            found |= {str(steps): rows["student"], "25": rows["teacher"], "floor": rows["floor"]}
        return found


def table(teacher: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a row a model and number of steps; mean and spread (standard deviation) over the seeds."""
    lines = [
        f"| | steps | {' | '.join(METRICS.values())} |",
        "|---|" + "---:|" * (len(METRICS) + 1),
    ]
    models = [("teacher", n, [teacher[n]]) for n in ("1", "2", "4", "8", "16", "25")]
    for method, found in rows.items():
        models += [
            (method.replace("_", " "), str(n), [one[str(n)] for one in found])
            for n in STEPS
            if str(n) in found[0]
        ]
    models.append(("floor", "", [teacher["floor"]]))
    for name, steps, found in models:
        cells = [table_cell([one[key] for one in found]) for key in METRICS]
        lines.append(f"| {name} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_docs(text: str) -> None:
    """Replaces what stands between the markers in docs/few_steps.md."""
    begin, end = "<!-- result -->", "<!-- end of result -->"
    page = DOCS.read_text()
    before, rest = page.split(begin)
    DOCS.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=Path("runs/few_steps"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options)
    config = GenerateConfig(num_pairs=PAIRS, batch_size=64)
    pairs = str(options.output / "pairs")
    generate(bench.pipeline, shuffled_captions(), pairs, config, teacher_name="toy")
    rows = {m: [bench.trained(m, seed) for seed in options.seeds] for m in UPDATES}
    teacher = bench.teachers()
    known = environment()
    costs = "; ".join(
        f"{method.replace('_', ' ')} {found[0]['updates']} updates, "
        f"{' / '.join(str(round(one['cpu_seconds'])) for one in found)} CPU seconds"
        for method, found in rows.items()
    )
    seeds = (
        "one seed"
        if len(options.seeds) == 1
        else f"mean ± standard deviation of {len(options.seeds)} seeds"
    )
    text = (
        f"{table(teacher, rows)}\n\n{seeds.capitalize()}, {options.samples} pictures each. Training, "
        f"{options.fraction:.0%} of the full length: {costs}, "
        f"on one thread of {known['cpu'].strip()} (torch {known['torch']})."
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "environment": known,
                "fraction": options.fraction,
                "samples": options.samples,
                "teacher": teacher,
                "seeds": rows,
            },
            indent=1,
        )
        + "\n"
    )
    write_docs(text)
    print(text)


if __name__ == "__main__":
    main()
