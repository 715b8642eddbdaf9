"""Nitro-PixArt's road on the embedded transformer teacher: one step of the student and one of the teacher.

    python benchmarks/dit_toy.py [--seeds 0 1 2] [--output runs/dit_toy]

The recipe is toy-dit of nitrodistill/recipes, on 600 pairs of each seed's own; evaluation on the same 1024
held-out noises and prompts:

    teacher         25 steps, guidance 3
    naive           the teacher in one step, at the last timestep, as its pipeline would
    naive at 400    the teacher in one step as the student takes it: fed pure noise at timestep 400
    student         one step, at timestep 400

Resumable: finished seeds are kept, a killed one goes on. Writes benchmarks/results/dit_toy.json and the table in
docs/dit_toy.md.
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
from nitrodistill.evaluation import EvaluateConfig
from nitrodistill.evaluation.catalogue import info
from nitrodistill.evaluation.student import measure_student
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.teachers import load_teacher
from nitrodistill.training.recipe import Recipe, load_recipe
from nitrodistill.training.run import load_student
from nitrodistill.types import Denoiser

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "nitrodistill" / "recipes" / "toy-dit.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "dit_toy.json"
DOCS = ROOT / "docs" / "dit_toy.md"
TEACHER = "toy-dit"
PAIRS = 600


def recipe_of(folder: Path, seed: int) -> Recipe:
    """The recipe with a seed and a place."""
    recipe = load_recipe(RECIPE)
    stage = recipe.stages[0]
    stage = replace(
        stage,
        settings=replace(stage.settings, seed=seed),
        trainer=replace(stage.trainer, seed=seed),
    )
    return replace(
        recipe, pairs=str(folder / "pairs"), output=str(folder / "student"), stages=[stage]
    )


def measured(
    pipeline: Pipeline, student: Denoiser, plan: StepPlan, root: Path, cost: bool
) -> dict[str, Any]:
    """Every model's metrics, and the floors: name -> metric -> value."""
    settings = EvaluateConfig(seed=1000, cost_repeats=5 if cost else 0, num_pictures=0)
    prompts = shuffled_captions()
    found = measure_student(
        TEACHER, pipeline, student, plan, prompts, settings, cache=root / "teacher"
    )
    return columns(found, (*METRICS, "denoise_ms"))


def run_seed(pipeline: Pipeline, root: Path, seed: int) -> dict[str, Any]:
    """Pairs, training and evaluation of one seed; kept in `result.json` of its folder."""
    folder = root / f"seed-{seed}"

    def measure() -> dict[str, Any]:
        recipe = recipe_of(folder, seed)
        config = GenerateConfig(num_pairs=PAIRS, seed=seed, batch_size=64)
        generate(pipeline, shuffled_captions(), recipe.pairs, config, teacher_name=TEACHER)
        seconds = train(recipe, pipeline)
        student = load_student(recipe.output, pipeline)
        return {
            "seed": seed,
            "steps": recipe.stages[0].trainer.steps,
            "cpu_seconds": round(seconds, 1),
            **measured(pipeline, student.denoiser, student.plan, root, cost=seed == 0),
        }

    return kept(folder / "result.json", measure)


def naive_at(pipeline: Pipeline, root: Path) -> dict[str, Any]:
    """The teacher in one step as the student takes it; kept in `naive.json`."""

    def measure() -> dict[str, Any]:
        timestep = load_recipe(RECIPE).stages[0].settings.timestep
        assert timestep is not None
        plan = StepPlan.from_noise(pipeline.denoiser.schedule, timestep)
        return measured(pipeline, pipeline.denoiser, plan, root, cost=False)["student"]

    return kept(root / "naive.json", measure)


def distance(key: str, value: float) -> float:
    """How far a value is from the best one; lower is better."""
    best = info(key).best
    return -value if best == "high" else abs(value - 1) if best == "one" else value


def verdicts(rows: list[dict[str, Any]], naive: dict[str, Any]) -> list[str]:
    """A line for each naive model: on which metrics every seed's student is better."""
    lines = []
    for name, models in (
        ("naive", [row["naive"] for row in rows]),
        ("naive at 400", [naive] * len(rows)),
    ):
        pairs = [
            (key, row["student"][key], model[key])
            for row, model in zip(rows, models, strict=True)
            for key in METRICS
            if row["student"][key] is not None and model[key] is not None
        ]
        lost = sorted(
            {key for key, mine, other in pairs if distance(key, mine) >= distance(key, other)}
        )
        compared = len({key for key, _, _ in pairs})
        lines.append(
            f"The student is better than {name} on {compared - len(lost)} of {compared} metrics, in every seed"
            f"{' (not on ' + ', '.join(lost) + ')' if lost else ''}."
        )
    return lines


def table(rows: list[dict[str, Any]], naive: dict[str, Any]) -> str:
    """Markdown: a row a metric; the student's mean and spread (standard deviation) over the seeds."""
    first = rows[0]
    lines = [
        "| metric | teacher, 25 steps | naive | naive at 400 | student | floor |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for key, label in METRICS.items():
        cells = [[first["teacher"][key]], [first["naive"][key]], [naive[key]]]
        cells += [[row["student"][key] for row in rows], [first["floor"][key]]]
        lines.append(f"| {label} | {' | '.join(table_cell(cell) for cell in cells)} |")
    return "\n".join(lines)


def main() -> None:
    options = make_parser(__doc__, "runs/dit_toy").parse_args()
    torch.set_num_threads(1)
    pipeline = load_teacher(TEACHER)
    rows = [run_seed(pipeline, options.output, seed) for seed in options.seeds]
    naive = naive_at(pipeline, options.output)
    lines = verdicts(rows, naive)
    text = "\n\n".join(
        [
            table(rows, naive),
            f"Seeds: {len(rows)}. CPU seconds of training: {', '.join(str(r['cpu_seconds']) for r in rows)}.",
            *lines,
        ]
    )
    RESULTS.parent.mkdir(exist_ok=True)
    found = {"environment": environment(), "naive at 400": naive, "seeds": rows}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    write_docs(DOCS, "result", text)
    print(text)


if __name__ == "__main__":
    main()
