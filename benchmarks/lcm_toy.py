"""Latent consistency distillation of the embedded teacher, by examples/lcm.py: the student in 1, 2 and 4 steps.

    python benchmarks/lcm_toy.py [--seeds 0 1 2] [--output runs/lcm_toy]

The recipe is examples/recipes/lcm-toy.yaml; all seeds share 600 pairs. Evaluated on the same held-out noises and
prompts:

    teacher         25 steps, guidance 3
    teacher in n    its own sampler (DDIM, guidance 3) in n steps
    LCM in n        one student, which renoises between its steps

Resumable: finished seeds are kept, a killed one goes on. Writes benchmarks/results/lcm_toy.json and the table in
docs/extending.md.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _toy import METRICS, columns, environment, kept, make_parser, table_cell, train, write_docs

from nitrodistill.data import GenerateConfig, generate
from nitrodistill.demo.demo import shuffled_captions
from nitrodistill.evaluation import EvaluateConfig, Evaluation
from nitrodistill.evaluation.student import measure_student
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.teachers import load_teacher
from nitrodistill.training.recipe import load_recipe
from nitrodistill.training.run import load_student
from nitrodistill.types import Denoiser

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "examples" / "recipes" / "lcm-toy.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "lcm_toy.json"
DOCS = ROOT / "docs" / "extending.md"
PAIRS, SAMPLES, STEPS = 600, 1024, (1, 2, 4)


def evaluated(
    pipeline: Pipeline, denoiser: Denoiser, plan: StepPlan, root: Path, bootstrap: int
) -> Evaluation:
    """A student beside the teacher, on the held-out noises and prompts."""
    settings = EvaluateConfig(
        SAMPLES, seed=1000, bootstrap=bootstrap, cost_repeats=0, num_pictures=0
    )
    return measure_student(
        "toy", pipeline, denoiser, plan, shuffled_captions(), settings, cache=root / "teacher"
    )


def measured(
    pipeline: Pipeline, denoiser: Denoiser, plan: StepPlan, root: Path
) -> dict[str, dict[str, float | None]]:
    """Metric -> value of a student, the teacher and the floor, by name."""
    return columns(evaluated(pipeline, denoiser, plan, root, bootstrap=2), METRICS)


def run_seed(pipeline: Pipeline, root: Path, seed: int) -> dict[str, Any]:
    """Training and evaluation of one seed; kept in `result.json` of its folder."""
    folder = root / f"seed-{seed}"

    def measure() -> dict[str, Any]:
        recipe = load_recipe(RECIPE)
        trainer = replace(recipe.stages[0].trainer, seed=seed, preview_every=0)
        stages = [replace(recipe.stages[0], trainer=trainer)]
        recipe = replace(recipe, pairs=str(root / "pairs"), output=str(folder), stages=stages)
        seconds = train(recipe, pipeline)
        student = load_student(folder, pipeline).denoiser
        row: dict[str, Any] = {"seed": seed, "steps": trainer.steps}
        row["cpu_seconds"] = round(seconds, 1)
        for steps in STEPS:
            plan = StepPlan.from_schedule(student.schedule, steps, "renoise")
            row[str(steps)] = measured(pipeline, student, plan, root)["student"]
        return row

    return kept(folder / "result.json", measure)


def teachers(pipeline: Pipeline, root: Path) -> dict[str, Any]:
    """The teacher in as few steps, in its 25, and the floor; kept in `teacher.json`."""

    def measure() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for steps in STEPS:
            plan = StepPlan.from_schedule(pipeline.denoiser.schedule, steps)
            models = measured(pipeline, pipeline.guided(3.0), plan, root)
            found[str(steps)] = models["student"]
            found |= {"25": models["teacher"], "floor": models["floor"]}
        return found

    return kept(root / "teacher.json", measure)


def table(rows: list[dict[str, Any]], teacher: dict[str, Any]) -> str:
    """Markdown: a row a model; the student's mean and spread (standard deviation) over the seeds."""
    lines = [
        f"| | steps | {' | '.join(METRICS.values())} |",
        "|---|" + "---:|" * (len(METRICS) + 1),
    ]
    models = [("LCM", str(n), [row[str(n)] for row in rows]) for n in STEPS]
    models += [("teacher", n, [teacher[n]]) for n in (*map(str, STEPS), "25")]
    models += [("floor", "", [teacher["floor"]])]
    for name, steps, found in models:
        cells = [table_cell([one[key] for one in found]) for key in METRICS]
        lines.append(f"| {name} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    options = make_parser(__doc__, "runs/lcm_toy").parse_args()
    torch.set_num_threads(1)
    pipeline = load_teacher("toy")
    config = GenerateConfig(num_pairs=PAIRS, batch_size=64)
    pairs = str(options.output / "pairs")
    generate(pipeline, shuffled_captions(), pairs, config, teacher_name="toy")
    rows = [run_seed(pipeline, options.output, seed) for seed in options.seeds]
    teacher = teachers(pipeline, options.output)
    known, seconds = environment(), " / ".join(f"{row['cpu_seconds']:.0f}" for row in rows)
    text = (
        f"{table(rows, teacher)}\n\nMean ± standard deviation of {len(rows)} seeds, {SAMPLES} pictures each; "
        f"{rows[0]['steps']} steps of training, "
        f"{seconds} CPU seconds on one thread of {known['cpu'].strip()} (torch {known['torch']})."
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"environment": known, "teacher": teacher, "seeds": rows}, indent=1) + "\n"
    )
    write_docs(DOCS, "result", text)
    print(text)


if __name__ == "__main__":
    main()
