"""Few-step students of the embedded teachers in 1 to 25 steps: progressive distillation, consistency, a flow map.

    python benchmarks/few_steps.py [--teacher toy] [--methods ...] [--seeds 0 1 2] [--fraction 1]
        [--samples 1024] [--output runs/few_steps]

Evaluated on the same held-out noises and prompts:

    teacher        its own sampler (DDIM, guidance 3) in n steps; its 25 are what others are measured against
    progressive    16 -> 8 -> 4 -> 2 -> 1, a student for each (nitrodistill/recipes/progressive-toy.yaml)
    consistency    one student, which renoises between its steps (the settings of examples/recipes/lcm-toy.yaml; it
                   learned on a grid of 40 steps, of which 25 are no part)
    flow map       one student, which is given how far it goes (nitrodistill/recipes/flow-map-toy.yaml)
    dmd2           a student for one step and one for four, without pairs (dmd2-toy.yaml, dmd2-toy-4step.yaml)
    ladd           one step (demo.toy_recipe with the hinge loss)

Those that read pairs share 600. The updates (UPDATES) were chosen for about 115 CPU seconds; what each really
took is in its row. `--fraction` trains by that share of them, for a short look. Resumable: what is finished is
kept, and a killed run goes on. Writes benchmarks/results/few_steps.json, and table and plot in docs/few_steps.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _toy import METRICS, environment, make_parser, table_cell, train, write_docs

from nitrodistill.data import GenerateConfig, generate
from nitrodistill.demo.demo import shuffled_captions
from nitrodistill.demo.recipes import toy_recipe
from nitrodistill.evaluation import EvaluateConfig
from nitrodistill.evaluation.student import measure_student
from nitrodistill.methods.consistency import ConsistencyConfig
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.teachers import EMBEDDED, load_teacher
from nitrodistill.training.recipe import Recipe, load_recipe
from nitrodistill.training.run import load_student
from nitrodistill.types import Denoiser

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "few_steps.json"
DOCS = ROOT / "docs" / "few_steps.md"
PICTURES = ROOT / "docs" / "images"
PAIRS, GUIDANCE, STEPS = 600, 3.0, (1, 2, 4, 8, 25)
UPDATES = {
    "progressive": 430,
    "consistency": 440,
    "flow_map": 330,
    "dmd2": 380,
    "dmd2_in_4": 310,
    "ladd": 390,
}
RECIPES = {
    "progressive": "nitrodistill/recipes/progressive-toy.yaml",
    "consistency": "examples/recipes/lcm-toy.yaml",
    "flow_map": "nitrodistill/recipes/flow-map-toy.yaml",
    "dmd2": "nitrodistill/recipes/dmd2-toy.yaml",
    "dmd2_in_4": "nitrodistill/recipes/dmd2-toy-4step.yaml",
}


def recipe_of(method: str, teacher: str, root: Path, seed: int, fraction: float) -> Recipe:
    """The method's recipe with its share of updates, without previews."""
    output, pairs = str(root / f"{method}-{seed}"), str(root / "pairs")
    updates = max(1, round(fraction * UPDATES[method]))
    if method == "ladd":
        recipe = toy_recipe(pairs, output, updates, seed)
    else:
        recipe = load_recipe(ROOT / RECIPES[method])
    whole = sum(stage.trainer.steps for stage in recipe.stages)
    stages = []
    for stage in recipe.stages:
        trainer = replace(
            stage.trainer,
            steps=max(1, round(stage.trainer.steps * updates / whole)),
            seed=seed,
            preview_every=0,
            evaluate_every=0,
            best_metric="",
            checkpoint_every=20,
        )
        if method == "consistency":
            settings = ConsistencyConfig(grid_steps=40, guidance=GUIDANCE)
            stage = replace(stage, method="consistency", settings=settings)
        if method == "ladd":
            stage = replace(stage, settings=replace(stage.settings, adversarial="hinge"))
        stages.append(replace(stage, trainer=trainer))
    if recipe.prompts:
        recipe = replace(recipe, prompts=str(root / "prompts.txt"))
    else:
        recipe = replace(recipe, pairs=pairs)
    return replace(recipe, teacher=teacher, output=output, stages=stages)


class Bench:
    """What all rows share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.root: Path = options.output
        self.fraction: float = options.fraction
        self.teacher: str = options.teacher
        self.settings = EvaluateConfig(
            options.samples, seed=1000, bootstrap=2, cost_repeats=0, num_pictures=0
        )
        self.pipeline: Pipeline = load_teacher(options.teacher)

    def measured(self, denoiser: Denoiser, plan: StepPlan, name: str) -> dict[str, Any]:
        """Metrics of a student, and beside them the teacher's and the floor; kept in a file of that name."""
        kept = self.root / f"{name}.json"
        if not kept.is_file():
            found = measure_student(
                self.teacher, self.pipeline, denoiser, plan, shuffled_captions(), self.settings,
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
        recipe = recipe_of(method, self.teacher, self.root, seed, self.fraction)
        row: dict[str, Any] = {"cpu_seconds": round(train(recipe, self.pipeline), 1)}
        row["updates"] = sum(stage.trainer.steps for stage in recipe.stages)
        for number in range(len(recipe.stages)):
            student = load_student(recipe.output, self.pipeline, stage=number)
            schedule, transition = student.denoiser.schedule, student.plan.transition
            free = method in ("consistency", "flow_map")
            for steps in STEPS if free else (len(student.plan),):
                plan = StepPlan.from_schedule(schedule, steps, transition) if free else student.plan
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


COLOURS = {
    "teacher": "#333333",
    "progressive": "#4c78a8",
    "consistency": "#f58518",
    "flow_map": "#54a24b",
    "dmd2": "#e45756",
    "dmd2_in_4": "#e45756",
    "ladd": "#b279a2",
}


def draw(teacher: dict[str, Any], rows: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Distance to real pictures against steps, on logarithmic axes; bars from the lowest seed to the highest."""
    curves = {"teacher": {n: [teacher[str(n)]["fd_real"]] for n in STEPS}}
    for method, found in rows.items():
        curves[method] = {
            n: [one[str(n)]["fd_real"] for one in found] for n in STEPS if str(n) in found[0]
        }
    values = [v for curve in curves.values() for some in curve.values() for v in some]
    low, high = math.log(min(values) / 1.2), math.log(max(values) * 1.2)

    def to_x(steps: float) -> float:
        return 60 + 420 * math.log(steps) / math.log(25)

    def to_y(value: float) -> float:
        return 350 - 320 * (math.log(value) - low) / (high - low)

    parts = [f'<text x="{to_x(n):.0f}" y="372" text-anchor="middle">{n}</text>' for n in STEPS]
    parts.append('<text x="270" y="392" text-anchor="middle">steps</text>')
    parts.append('<text x="4" y="16">distance to real pictures (FD)</text>')
    for tick in (2, 5, 10, 20, 50, 100, 200, 500, 1000):
        if low < math.log(tick) < high:
            parts.append(f'<path d="M60 {to_y(tick):.1f}H480" stroke="#ddd"/>')
            parts.append(f'<text x="52" y="{to_y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour, mean = COLOURS[name], {n: statistics.mean(some) for n, some in curve.items()}
        line = " ".join(f"{to_x(n):.1f},{to_y(value):.1f}" for n, value in mean.items())
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for n, some in curve.items():
            x, y = to_x(n), to_y(mean[n])
            bar = f"M{x:.1f} {to_y(min(some)):.1f}V{to_y(max(some)):.1f}"
            parts.append(f'<path d="{bar}" stroke="{colour}"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        words = name.replace("_in_4", ", four steps").replace("_", " ")
        parts.append(f'<circle cx="500" cy="{40 + 22 * number}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="512" y="{44 + 22 * number}">{words}</text>')
    file.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 400" font-family="sans-serif" '
        f'font-size="13"><rect width="640" height="400" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def main() -> None:
    parser = make_parser(__doc__, "runs/few_steps")
    parser.add_argument("--teacher", choices=EMBEDDED, default="toy")
    parser.add_argument("--methods", nargs="+", choices=UPDATES, default=list(UPDATES))
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output = options.output / options.teacher
    bench = Bench(options)
    config = GenerateConfig(num_pairs=PAIRS, batch_size=64)
    pairs = str(options.output / "pairs")
    generate(bench.pipeline, shuffled_captions(), pairs, config, teacher_name=options.teacher)
    (options.output / "prompts.txt").write_text("\n".join(shuffled_captions()) + "\n")
    rows = {m: [bench.trained(m, seed) for seed in options.seeds] for m in options.methods}
    teacher = bench.teachers()
    known = environment()
    costs = "; ".join(
        f"{method.replace('_', ' ')} {found[0]['updates']} updates, "
        f"{' / '.join(str(round(one['cpu_seconds'])) for one in found)} CPU seconds"
        for method, found in rows.items()
    )
    picture = f"few_steps_{options.teacher.replace('-', '_')}.svg"
    draw(teacher, rows, PICTURES / picture)
    count = len(options.seeds)
    text = (
        f"{table(teacher, rows)}\n\n{count} seed{'s' if count > 1 else ''}, {options.samples} pictures each. "
        f"Training, {options.fraction:.0%} of the full length: {costs}, on one thread of {known['cpu'].strip()} "
        f"(torch {known['torch']}).\n\n![distance to real pictures against steps](images/{picture})"
    )
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    found = {
        "fraction": options.fraction,
        "samples": options.samples,
        "teacher": teacher,
        "seeds": rows,
    }
    results[options.teacher] = {"environment": known, **found}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_docs(DOCS, options.teacher, text)
    print(text)


if __name__ == "__main__":
    main()
