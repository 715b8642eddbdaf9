"""Smaller and fewer steps: the embedded teacher at three sizes, drawn in 25, 4 and 1 steps.

    python benchmarks/smaller_and_fewer.py [--scale 1] [--samples 1024] [--output runs/smaller_and_fewer]
    python benchmarks/smaller_and_fewer.py --choices [--teachers toy-dit toy] [--seeds 0 1 2]

The recipe is toy-small of nitrodistill/recipes with other blocks to keep: pruned, distilled by its features to the
guided teacher, then LADD to one step. The whole network needs no first stage. In 25 and 4 steps the student of the
first stage is drawn (DDIM; it needs no guidance, so a step costs one pass, where the teacher's costs two). The
corners (whole and small) have a run for each seed, the middle size for the first. A point is dominated if another
has no more GFLOPs a picture and no larger distance to real pictures.

`--choices` compares which blocks go: what the importance search proposes (each candidate distilled for 100 updates
before it is measured), the first ones, and random ones, until as few parameters are left, after equal distillation
of the output alone; the distance to the teacher's prediction on held-out latents is measured. The search is made
once a teacher; each seed has its own random choice, other than the two, and its own training.

Resumable: what is finished is kept, a killed run goes on. `--scale 0.25` takes a quarter of the steps. Writes
benchmarks/results/smaller_and_fewer.json (or ..._choices.json) and the tables in docs/pruning.md.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _picture import save_svg
from _toy import environment, kept, table_cell, train, write_docs

from nitrodistill.data import GenerateConfig, LatentStore, generate
from nitrodistill.demo.demo import shuffled_captions
from nitrodistill.evaluation import EvaluateConfig
from nitrodistill.evaluation.cost import measure
from nitrodistill.evaluation.importance import importance, propose
from nitrodistill.evaluation.report.svg import Point, scatter
from nitrodistill.evaluation.student import measure_student
from nitrodistill.files import blake2
from nitrodistill.method import Draws
from nitrodistill.methods import FeatureKDConfig
from nitrodistill.models import Pipeline, PruneSpec
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.teachers import load_teacher
from nitrodistill.training.checkpoint import newest_checkpoint
from nitrodistill.training.recipe import Recipe, Stage, load_recipe
from nitrodistill.training.record import load_denoiser
from nitrodistill.training.run import load_student
from nitrodistill.types import Denoiser

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "nitrodistill" / "recipes" / "toy-small.yaml"
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "pruning.md"
PICTURE = ROOT / "docs" / "images" / "smaller_and_fewer.svg"
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "whole": {},
    "middle": {"mid_block": (), "down_blocks.1.attentions": ()},
    "small": {"mid_block": (), "up_blocks.0.attentions": ()},
}
STEPS = (25, 4, 1)
SHARE, KINDS = 0.7, ("proposed", "first", "random")
METRICS = {
    "alignment": "alignment",
    "fd_real": "FD to real",
    "gflops": "GFLOPs a picture",
    "weights_mb": "weights, MB",
}


def recipe_of(size: str, seed: int, scale: float, pairs: Path, folder: Path) -> Recipe:
    """The recipe with this size's cut, seed and share of the steps."""
    recipe, stages = load_recipe(RECIPE), []
    for stage in recipe.stages:
        steps = max(1, round(scale * stage.trainer.steps))
        trainer = replace(stage.trainer, steps=steps, seed=seed, preview_every=0)
        if stage.method == "ladd":
            warmup = round(scale * stage.settings.warmup_steps)
            settings = replace(stage.settings, warmup_steps=warmup)
            stage = replace(stage, settings=settings)
            stages.append(replace(stage, trainer=trainer))
        elif SIZES[size]:
            stages.append(replace(stage, trainer=trainer, prune=PruneSpec(SIZES[size])))
    if not SIZES[size]:
        stages = [replace(stages[0], student="teacher")]
    return replace(recipe, pairs=str(pairs), output=str(folder), stages=stages)


def scores(
    pipeline: Pipeline, denoiser: Denoiser, plan: StepPlan, samples: int, root: Path
) -> dict[str, float | None]:
    """Quality and cost of one point."""
    settings = EvaluateConfig(samples, seed=1000, bootstrap=2, num_pictures=0)
    found = measure_student(
        "toy", pipeline, denoiser, plan, shuffled_captions(), settings, cache=root / "teacher"
    )
    return {name: found.value("student", name) for name in METRICS}


def points(
    pipeline: Pipeline, size: str, seed: int, options: argparse.Namespace
) -> dict[str, dict[str, float | None]]:
    """Steps -> scores of one size and seed; trains what is not there yet."""
    root, found = options.output, {}
    folder = root / f"{size}-{seed}"
    recipe = recipe_of(size, seed, options.scale, root / "pairs", folder)
    train(recipe, pipeline)
    for steps, (denoiser, plan) in models_of(pipeline, size, folder).items():
        found[str(steps)] = scores(pipeline, denoiser, plan, options.samples, root)
    return found


def models_of(pipeline: Pipeline, size: str, folder: Path) -> dict[int, tuple[Denoiser, StepPlan]]:
    """Steps -> what draws in so many, of the finished run in this folder."""
    student, many = load_student(folder, pipeline), pipeline.guided(3.0)
    if SIZES[size]:
        checkpoint = newest_checkpoint(folder, 0)
        assert checkpoint is not None
        many = load_denoiser(checkpoint, pipeline.denoiser)
    schedule = pipeline.denoiser.schedule
    plans = {steps: StepPlan.from_schedule(schedule, steps) for steps in STEPS if steps > 1}
    return {
        **{steps: (many, plan) for steps, plan in plans.items()},
        1: (student.denoiser, student.plan),
    }


def cpu_times(pipeline: Pipeline, root: Path, seed: int) -> dict[str, float]:
    """Size and steps -> CPU milliseconds of one picture, decoded; all of them in turns."""
    condition = pipeline.encode_prompt(shuffled_captions()[:1])
    noise = torch.randn(1, *pipeline.latent_shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def drawn(denoiser: Denoiser, plan: StepPlan) -> torch.Tensor:
        return pipeline.decode(sample(denoiser, plan, noise, condition))

    tasks = {
        f"{size} {steps}": partial(drawn, *model)
        for size in SIZES
        for steps, model in models_of(pipeline, size, root / f"{size}-{seed}").items()
    }
    times = measure(tasks, repeats=9, clock=time.process_time)
    return {name: timing.median_ms for name, timing in times.items()}


def rows_of(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a point, with the values of every seed, and whether another point is better in both."""
    rows = []
    for size in SIZES:
        seeds = [found for name, found in results.items() if name.rpartition("-")[0] == size]
        for steps in STEPS:
            values = {key: [one[str(steps)][key] for one in seeds] for key in METRICS}
            rows.append({"size": size, "steps": steps, "seeds": len(seeds), "values": values})
    for row in rows:
        here = [_mean(row["values"][key]) for key in ("gflops", "fd_real")]
        there = [[_mean(o["values"][key]) for key in ("gflops", "fd_real")] for o in rows]
        row["dominated"] = any(
            o != here and all(a <= b for a, b in zip(o, here, strict=True)) for o in there
        )
    return rows


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a point; mean and spread over the seeds."""
    lines = [
        f"| size | steps | {' | '.join(METRICS.values())} | CPU ms a picture | |",
        "|---|---:|" + "---:|" * (len(METRICS) + 1) + "---|",
    ]
    for row in rows:
        cells = [table_cell(row["values"][key]) for key in METRICS]
        mark = "dominated" if row["dominated"] else "**best at its cost**"
        cells.append(f"{row['cpu_ms']:.1f}")
        lines.append(f"| {row['size']} | {row['steps']} | {' | '.join(cells)} | {mark} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]]) -> None:
    """Quality against cost, as a file of its own."""
    dots = [
        Point(
            _mean(row["values"]["gflops"]),
            _mean(row["values"]["fd_real"]),
            f"{row['size']}, {row['steps']}",
            kind="teacher" if row["size"] == "whole" and row["steps"] > 1 else "student",
            on_front=not row["dominated"],
        )
        for row in rows
    ]
    save_svg(scatter(dots, "GFLOPs a picture", "distance to real pictures"), PICTURE)


def pareto(options: argparse.Namespace) -> None:
    """All points, the table and the plot."""
    pipeline, root = load_teacher("toy"), options.output
    config = GenerateConfig(num_pairs=options.pairs, batch_size=64)
    generate(pipeline, shuffled_captions(), str(root / "pairs"), config, teacher_name="toy")
    results = {}
    for size in SIZES:
        for seed in options.seeds if size != "middle" else options.seeds[:1]:
            name = f"{size}-{seed}"
            results[name] = kept(
                root / f"{name}.json", lambda s=size, n=seed: points(pipeline, s, n, options)
            )
    rows, known = rows_of(results), environment()
    times = cpu_times(pipeline, root, options.seeds[0])
    for row in rows:
        row["cpu_ms"] = times[f"{row['size']} {row['steps']}"]
    draw(rows)
    text = (
        f"{table(rows)}\n\n{options.samples} pictures a point, {options.pairs} pairs, {options.scale:g} of the "
        f"recipe's steps, seeds {', '.join(map(str, options.seeds))} (middle: {options.seeds[0]}). CPU time of "
        f"one picture, decoded: medians of 9, all in turns. One thread of {known['cpu'].strip()} (torch "
        f"{known['torch']}), shared with other work.\n\n"
        "![quality against cost](images/smaller_and_fewer.svg)"
    )
    record = {
        "environment": known,
        "scale": options.scale,
        "samples": options.samples,
        "points": rows,
    }
    (RESULTS / "smaller_and_fewer.json").write_text(json.dumps(record, indent=1) + "\n")
    write_docs(DOCS, "pareto", text)
    print(text)


def choices(options: argparse.Namespace) -> None:
    """Proposed, first and random blocks, after equal distillation."""
    rows = [row for teacher in options.teachers for row in compared(teacher, options)]
    known = environment()
    lines = ["| teacher | seed | proposed | first | random |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        cells = [f"{row[kind]['distance']:.4f}" for kind in KINDS]
        lines.append(f"| {row['teacher']} | {row['seed']} | {' | '.join(cells)} |")
    text = "\n".join(lines) + (
        f"\n\nMean squared distance to the teacher's prediction on held-out latents; {rows[0]['steps']} steps of "
        f"distillation on one thread of {known['cpu'].strip()} (torch {known['torch']})."
    )
    record = {"environment": known, "rows": rows}
    (RESULTS / "smaller_and_fewer_choices.json").write_text(json.dumps(record, indent=1) + "\n")
    write_docs(DOCS, "choices", text)
    print(text)


def compared(teacher: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a seed: the three choices, distilled alike and measured on latents that none trained on."""
    pipeline, root = load_teacher(teacher), options.output
    pairs, held_out = root / f"pairs-{teacher}", root / f"held-out-{teacher}"
    config = GenerateConfig(num_pairs=512, batch_size=64, num_inference_steps=10)
    generate(pipeline, shuffled_captions(), str(pairs), config, teacher_name=teacher)
    more = replace(config, num_pairs=128, seed=1000)
    generate(pipeline, shuffled_captions(), str(held_out), more, teacher_name=teacher)
    store = LatentStore.open(pairs)
    found = importance(
        pipeline.denoiser,
        [store.read(range(i, i + 64)) for i in range(0, 512, 64)],
        output=root / f"importance-{teacher}",
        distil_steps=100,
        learning_rate=1e-3,
    )
    parts, whole = [score.names for score in found.scores], pipeline.denoiser.network
    order = [names for names in pipeline.denoiser.adapter.removable(whole) if names in parts]
    both = [propose(pipeline.denoiser, found, SHARE), _until(pipeline, order, SHARE)]
    steps, rows = max(1, round(options.scale * 400)), []
    for seed in options.seeds:
        draw = random.Random(seed)
        spec = both[0]
        while spec in both:
            spec = _until(pipeline, draw.sample(order, len(order)), SHARE)
        row: dict[str, Any] = {"teacher": teacher, "seed": seed, "steps": steps}
        for kind, chosen in zip(KINDS, [*both, spec], strict=True):
            keep = {name: list(kept) for name, kept in chosen.keep.items()}
            name = f"{teacher}-{seed}-{steps}-{blake2(json.dumps(keep, sort_keys=True)).hex()[:8]}"
            row[kind] = kept(
                root / f"{name}.json",
                lambda c=chosen, n=name, k=keep, s=seed: {
                    "keep": k,
                    "distance": _distilled(pipeline, teacher, c, steps, s, root / n),
                },
            )
        rows.append(row)
    return rows


def _distilled(
    pipeline: Pipeline, teacher: str, spec: PruneSpec, steps: int, seed: int, folder: Path
) -> float:
    """The distance of a student with these blocks to its teacher, after its distillation."""
    recipe, root = load_recipe(RECIPE), folder.parent
    trainer = replace(
        recipe.stages[0].trainer, steps=steps, batch_size=32, seed=seed, preview_every=0
    )
    settings = FeatureKDConfig(data="pairs", task={}, feature={}, guidance=3.0)
    stage = Stage("feature_kd", trainer, settings, prune=spec)
    pairs = str(root / f"pairs-{teacher}")
    train(
        replace(recipe, teacher=teacher, pairs=pairs, output=str(folder), stages=[stage]), pipeline
    )
    student = load_student(folder, pipeline).denoiser
    return _distance(pipeline, student, root / f"held-out-{teacher}")


def _until(pipeline: Pipeline, order: list[tuple[str, ...]], share: float) -> PruneSpec:
    """Parts taken out in this order until the share of parameters is met; what does not fit is passed over."""
    from nitrodistill.models.pruning import pruned_network

    names: list[str] = []
    whole = pipeline.denoiser.network
    total = sum(p.numel() for p in whole.parameters())
    for part in order:
        if any(f"{name}.".startswith(f"{gone}.") for gone in names for name in part):
            continue
        try:
            spec = PruneSpec.without(whole, [*names, *part])
            left = sum(p.numel() for p in pruned_network(whole, spec, copy=False).parameters())
        except ValueError:
            continue
        names += part
        if left <= share * total:
            return spec
    raise ValueError("the share is out of reach.")


@torch.no_grad()
def _distance(pipeline: Pipeline, student: Denoiser, store: Path) -> float:
    batch = LatentStore.open(store).read(range(128))
    draws = Draws(7, 0, torch.arange(128), purpose="evaluation")
    schedule = pipeline.denoiser.schedule
    t = schedule.timestep(draws.uniform("t"))
    x_t = schedule(t).mix(batch.x0, draws.normal("noise", batch.x0.shape[1:]))
    both = [d(x_t, t, batch.condition) for d in (student, pipeline.guided(3.0))]
    return float((both[0] - both[1]).square().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--choices", action="store_true")
    parser.add_argument("--teachers", nargs="+", default=["toy-dit", "toy"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=2600)
    parser.add_argument("--output", type=Path, default=Path("runs/smaller_and_fewer"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    (choices if options.choices else pareto)(options)


if __name__ == "__main__":
    main()
