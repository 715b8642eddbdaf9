"""The benchmark setting of the embedded teacher: which part of the method does what, and how far one step can go.

    python benchmarks/demo_quality.py [--seeds 0 1 2] [--long 12000] [--output runs/quality]

Variants at equal CPU time, on 600 pairs of their seed's own, evaluated on the same 1024 held-out noises and
prompts:

    naive          the teacher itself in one step
    smooth_l1      regression on the pairs alone
    adversarial    the discriminator alone, on fresh noise
    both           LADD as `nitrodistill demo` runs it

and a long run of `both` on more pairs (`--long 0` leaves it out). Resumable: finished variants are kept, a killed
one goes on. The steps of a variant (STEPS) were chosen so that each takes about 120 CPU seconds on the machine of
the committed result; the CPU time that a variant really took is in its row. Writes
benchmarks/results/demo_quality.json and the tables in docs/demo_quality.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _toy import METRICS, columns, environment, kept, make_parser, table_cell, train, write_docs

from nitrodistill.data import GenerateConfig, generate
from nitrodistill.demo.demo import shuffled_captions
from nitrodistill.demo.recipes import toy_recipe
from nitrodistill.evaluation import EvaluateConfig, Evaluation
from nitrodistill.evaluation.student import measure_student
from nitrodistill.models import Pipeline
from nitrodistill.teachers import load_teacher
from nitrodistill.training import OptimizerConfig
from nitrodistill.training.recipe import Recipe
from nitrodistill.training.run import load_student

RESULTS = Path(__file__).parent / "results" / "demo_quality.json"
DOCS = Path(__file__).parent.parent / "docs" / "demo_quality.md"
STEPS = {"smooth_l1": 900, "adversarial": 530, "both": 640}


def variant_recipe(variant: str, root: Path, seed: int) -> Recipe:
    """The demo's recipe with what the variant leaves out."""
    recipe = toy_recipe(str(root / "pairs"), str(root / variant), STEPS[variant], seed)
    stage = recipe.stages[0]
    settings, trainer = stage.settings, replace(stage.trainer, preview_every=0)
    average: dict[str, Any] = {
        "ema_decay": trainer.optimizers["student"].ema_decay,
        "lr_decay_from": 0.5,
    }
    if variant == "smooth_l1":
        settings = replace(settings, adversarial_weight=0.0, fresh_fraction=0.0)
        student = OptimizerConfig(learning_rate=6e-4, betas=(0.9, 0.999), **average)
        trainer = replace(trainer, optimizers={"student": student})
    if variant == "adversarial":
        settings = replace(settings, reconstruction={}, fresh_fraction=1.0, warmup_steps=0)
        student = OptimizerConfig(learning_rate=3e-4, betas=(0.0, 0.999), **average)
        trainer = replace(trainer, optimizers={**trainer.optimizers, "student": student})
    return replace(recipe, stages=[replace(stage, settings=settings, trainer=trainer)])


def measured(
    recipe: Recipe, pipeline: Pipeline, num_pairs: int, seed: int, root: Path, cost: bool
) -> dict[str, Any]:
    """Trains and evaluates one variant; kept in `result.json` of its folder."""
    folder = Path(recipe.output)

    def measure() -> dict[str, Any]:
        config = GenerateConfig(num_pairs=num_pairs, seed=seed, batch_size=64)
        generate(pipeline, shuffled_captions(), recipe.pairs, config, teacher_name="toy")
        seconds = train(recipe, pipeline)
        settings = EvaluateConfig(seed=1000, cost_repeats=5 if cost else 0, num_pictures=0)
        student, prompts = load_student(folder, pipeline), shuffled_captions()
        found = measure_student(
            "toy",
            pipeline,
            student.denoiser,
            student.plan,
            prompts,
            settings,
            cache=root / "teacher",
        )
        found.save(folder / "metrics.json")
        steps = recipe.stages[0].trainer.steps
        return {"seed": seed, "pairs": num_pairs, "steps": steps, "cpu_seconds": round(seconds, 1)}

    return kept(folder / "result.json", measure)


def variants(
    pipeline: Pipeline, root: Path, seeds: list[int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every variant of every seed, with its row."""
    for seed in seeds:
        for variant in STEPS:
            folder = root / f"seed-{seed}"
            recipe = variant_recipe(variant, folder, seed)
            row = measured(recipe, pipeline, 600, seed, root, cost=False)
            yield variant, row | scores(folder / variant)
            print(f"{variant}, seed {seed}: {row}")


def scores(folder: Path) -> dict[str, Any]:
    """What the evaluation in `folder` found of teacher, naive, student and floor."""
    found = Evaluation.load(folder / "metrics.json")
    cost = {
        name: [found.value(name, "denoise_ms"), found.value(name, "pipeline_ms")]
        for name in found.models
    }
    return {**columns(found, METRICS), "cost": cost}


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a row a variant, mean and spread (standard deviation) over the seeds."""
    first = next(iter(rows.values()))[0]
    lines = [
        "| variant | CPU s | " + " | ".join(METRICS.values()) + " |",
        "|---|" + "---:|" * (len(METRICS) + 1),
    ]
    for name in ("teacher", "naive", "floor"):
        cells = [table_cell([first[name][key]]) for key in METRICS]
        lines.append(f"| {name} | | {' | '.join(cells)} |")
    for name, found in rows.items():
        cells = [table_cell([row["student"][key] for row in found]) for key in METRICS]
        seconds = table_cell([row["cpu_seconds"] for row in found])
        lines.append(f"| {name} | {seconds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def keep(**found: Any) -> None:
    """Adds to the results file, which two runs (of the variants, of the long one) may share."""
    RESULTS.parent.mkdir(exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    RESULTS.write_text(
        json.dumps(results | {"environment": environment()} | found, indent=1) + "\n"
    )


def main() -> None:
    parser = make_parser(__doc__, "runs/quality")
    parser.add_argument("--long", type=int, default=12000, help="steps of the long run; 0: none")
    parser.add_argument("--long-pairs", type=int, default=8000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = load_teacher("toy")
    if options.seeds:
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in STEPS}
        for variant, row in variants(pipeline, options.output, options.seeds):
            rows[variant].append(row)
        keep(variants=rows)
        print(table(rows))
        write_docs(DOCS, "variants", table(rows))
    if options.long:
        folder = options.output / f"long-{options.long}"
        recipe = toy_recipe(str(folder / "pairs"), str(folder / "both"), options.long)
        trainer = recipe.stages[0].trainer
        student = replace(trainer.optimizers["student"], ema_decay=0.998)
        optimizers = {**trainer.optimizers, "student": student}
        trainer = replace(trainer, preview_every=0, optimizers=optimizers)
        recipe = replace(recipe, stages=[replace(recipe.stages[0], trainer=trainer)])
        row = measured(recipe, pipeline, options.long_pairs, 77, options.output, cost=True)
        row |= scores(folder / "both")
        keep(long=row)
        print(table({"long run": [row]}))
        write_docs(DOCS, "long", table({"long run": [row]}))


if __name__ == "__main__":
    main()
