"""DMD2 of a class-conditional EDM network to one step, with real data and without: ImageNet's recipe scaled down.

    python -m benchmarks.edm_digits [--seeds 0] [--students gan none] [--output runs/edm_digits] [--cache DIR]
        [--share 1.0] [--finished] [--write]

The teacher is `benchmarks/teachers/digits_edm.py`: scikit-learn's digits at 16x16 by class. The recipe is
nitrodistill/recipes/dmd2-imagenet64-edm.yaml but for what `scaled` and `STUDENTS` say. Its road is the command
line's: labelled pictures of the training set are encoded, the student is trained, and exported for plain diffusers
with its self-test. Measured against all 600 held-out digits, by a classifier's features, beside the teacher in 40
steps and in one. Whether a student beats its teacher is told by the difference of the two distances, also to the
training digits: that is what published FID on ImageNet is measured against.

Resumable: finished students are kept, a killed one goes on. `--write` writes benchmarks/results/edm_digits.json
and the table in docs/dmd2.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks._measure import as_lines, environment, markdown_table, replace_between_markers
from benchmarks.teachers.__main__ import ROOT, default_cache, number
from benchmarks.teachers.base import READER, built
from benchmarks.teachers.compare import CHECKPOINT_EVERY, EVALUATION_SEED, METRICS, Place, trained
from benchmarks.teachers.digits import HELD_OUT
from benchmarks.teachers.digits_edm import EDMDigits, large_digits
from nitrodistill.data import encode, open_images
from nitrodistill.evaluation import ImageFolder
from nitrodistill.evaluation.frechet import GaussianStatistics, frechet_distance
from nitrodistill.export import export
from nitrodistill.files import atomic, atomic_folder, write_json
from nitrodistill.method import Draws
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.training.recipe import Recipe, load_recipe
from nitrodistill.training.run import load_student
from nitrodistill.types import Denoiser

RECIPE = ROOT / "nitrodistill" / "recipes" / "dmd2-imagenet64-edm.yaml"
RESULTS, DOCS = ROOT / "benchmarks" / "results" / "edm_digits.json", ROOT / "docs" / "dmd2.md"
COLUMNS = ("fd_real", "fd_teacher", "alignment", "edge_ratio", "diversity")
SAMPLES, BOOTSTRAP = 1000, 400
STEPS, BATCH_SIZE = 700, 32
RATES = {"student": 5e-4, "critic": 1e-3, "discriminator": 1e-3}
LOW: dict[str, Any] = {"timesteps": {"uniform": {"ranges": [[0.0, 0.5]]}}}
STUDENTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "gan": ("the recipe", {}),
    "gan-0.03": ("GAN of weight .03", {**LOW, "weight": 0.03, "critic_weight": 0.1}),
    "gan-0.1": ("GAN of weight .1", {**LOW, "weight": 0.1, "critic_weight": 0.3}),
    "none": ("without the GAN", None),
}
"""Name -> what the table calls it, and changed settings of the recipe's GAN; None leaves the GAN out.

The recipe's discriminator, of weight .003, is at chance in so short a run. Those of two more rows act: ten
times heavier and more, and shown pictures of lower noise, sigma up to 2.5.
"""


def scaled(name: str, steps: int, seed: int, output: Path) -> Recipe:
    """The recipe with what a network this small needs in minutes of a CPU: steps, batch, rates, averages.

    Its rates of 2e-6 over 200,000 steps become `RATES` over `steps`, with a warm-up of 10 updates, a linear decay
    from 60 % on and an average of the student's weights; batches of 280 become `BATCH_SIZE`; bf16 becomes float32.
    """
    recipe, gan = load_recipe(RECIPE), STUDENTS[name][1]
    stage = recipe.stages[0]
    trainer, settings = stage.trainer, stage.settings
    optimizers = {
        role: replace(optimizer, learning_rate=RATES[role], lr_warmup_updates=10, lr_decay_from=0.6)
        for role, optimizer in trainer.optimizers.items()
        if gan is not None or role != "discriminator"
    }
    optimizers["student"] = replace(optimizers["student"], ema_decay=0.9)
    game = None if gan is None else replace(settings.gan, **gan)
    trainer = replace(
        trainer,
        steps=steps,
        batch_size=BATCH_SIZE,
        accumulation=1,
        seed=seed,
        optimizers=optimizers,
        mixed_precision="no",
        preview_every=0,
        evaluate_every=0,
        best_metric="",
        checkpoint_every=CHECKPOINT_EVERY,
        log_every=20,
    )
    stage = replace(stage, settings=replace(settings, gan=game), trainer=trainer)
    root = output.parents[1]
    data = {
        "prompts": str(root / "classes.txt"),
        "real": None if gan is None else str(root / "real"),
    }
    return replace(recipe, teacher="digits-edm", output=str(output), stages=[stage], **data)


def pictures(folder: Path, images: Tensor, labels: Tensor) -> None:
    """Writes pictures `(N, 1, H, W)` in [-1, 1] as PNG, each with its class in a text file."""
    if folder.is_dir():
        return
    with atomic_folder(folder) as new:
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            levels = ((image[0] + 1) * 127.5).round().to(torch.uint8)
            Image.fromarray(levels.numpy()).save(new / f"{i:04}.png")
            (new / f"{i:04}.txt").write_text(str(label))


def prepared(cache: Path, root: Path, share: float) -> tuple[Place, float]:
    """The teacher with its data on the disk, and the share of held-out digits that the classifier reads."""
    teacher = EDMDigits()
    home = built(teacher, cache, share)
    pipeline = teacher.load(home)
    quality = teacher.quality(home / READER, EVALUATION_SEED)
    images, labels = large_digits()
    pictures(root / "held-out", images[:HELD_OUT], labels[:HELD_OUT])
    pictures(root / "training", images[HELD_OUT:], labels[HELD_OUT:])
    (root / "classes.txt").write_text("\n".join(teacher.prompts()) + "\n")
    encode(pipeline, open_images(root / "training"), root / "real", teacher_name=teacher.name)
    assert quality.alignment is not None
    right = quality.alignment(
        images[:HELD_OUT], [str(label) for label in labels[:HELD_OUT].tolist()]
    )
    quality = replace(quality, real=ImageFolder(root / "held-out"), num_samples=SAMPLES)
    return Place(teacher, pipeline, quality, root, root), float(right["class"].float().mean())


def row(place: Place, name: str, seed: int, share: float) -> dict[str, Any]:
    """Trains, exports and measures a student; what was found is kept in `result.json` of its folder."""
    folder = place.folder / f"{name}-{share:g}" / f"seed-{seed}"
    kept = folder / "result.json"
    if not kept.is_file():
        steps = max(1, round(share * STEPS))
        recipe = scaled(name, steps, seed, folder)
        seconds = trained(recipe, place.pipeline)
        student = load_student(recipe.output, place.pipeline)
        exported = folder.parent / f"exported-{seed}"
        if not exported.is_dir():
            about = {"base_model": place.teacher.name, "prompts": ["3", "8"]}
            export(place.pipeline, student.denoiser, student.plan, exported, **about)
        found = place.measure(student.denoiser, student.plan)
        metrics = {
            model: {k: [m.value, m.low, m.high, m.floor] for k, m in row.items() if k in METRICS}
            for model, row in found.models.items()
        }
        test = json.loads((exported / "nitrodistill.json").read_text())["self_test"]
        line = {"student": name, "seed": seed, "steps": steps, "cpu_seconds": round(seconds, 1)}
        against = beside_teacher(place, student.denoiser, student.plan)
        write_json(kept, {**line, "self_test": test, "metrics": metrics, "against": against})
    return json.loads(kept.read_text())


@torch.no_grad()
def features_of(place: Place, denoiser: Denoiser, plan: StepPlan) -> Tensor:
    """The classifier's features of `SAMPLES` pictures, `(N, F)`, of the same noise and classes for all."""
    prompts = place.teacher.prompts()
    found = []
    for index in torch.arange(SAMPLES).split(100):
        noise = Draws(EVALUATION_SEED, 1, index).normal("noise", place.pipeline.latent_shape)
        texts = [prompts[i % len(prompts)] for i in index.tolist()]
        condition = place.pipeline.encode_prompt(texts)
        found.append(
            place.quality.features(place.pipeline.decode(sample(denoiser, plan, noise, condition)))
        )
    return torch.cat(found)


def beside_teacher(place: Place, denoiser: Denoiser, plan: StepPlan) -> dict[str, list[float]]:
    """FD of student and teacher to real digits: student, teacher, and their difference with its 95 % interval.

    The interval is a bootstrap that draws real digits, and noises with their classes, for both models at once:
    what the few real digits add to either distance is mostly the same.
    """
    teachers = place.folder / "teacher.safetensors"
    if not teachers.is_file():
        own = StepPlan.from_schedule(
            place.pipeline.denoiser.schedule, place.teacher.num_inference_steps
        )
        features = features_of(place, place.pipeline.denoiser, own)
        with atomic(teachers) as partial:
            save_file({"features": features}, partial)
    both = features_of(place, denoiser, plan), load_file(teachers)["features"]
    every = place.quality.features(large_digits()[0])
    generator = torch.Generator().manual_seed(0)

    def distances(real: Tensor, rows: Tensor) -> list[float]:
        wanted = GaussianStatistics.of(real)
        return [frechet_distance(GaussianStatistics.of(part[rows]), wanted) for part in both]

    found = {}
    for name, real in (("held_out", every[:HELD_OUT]), ("training", every[HELD_OUT:])):
        student, teacher = distances(real, torch.arange(SAMPLES))
        drawn = []
        for _ in range(BOOTSTRAP):
            picks = [torch.randint(n, (n,), generator=generator) for n in (len(real), SAMPLES)]
            mine, other = distances(real[picks[0]], picks[1])
            drawn.append(mine - other)
        low, high = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
        shift = 2 * (student - teacher)  # the basic bootstrap
        found[name] = [student, teacher, student - teacher, shift - high, shift - low]
    return found


def data_distance(place: Place) -> float:
    """FD of the training digits to the held-out ones: what a perfect copy of the training set comes to."""
    features = place.quality.features(large_digits()[0])
    held_out, training = (
        GaussianStatistics.of(f) for f in (features[:HELD_OUT], features[HELD_OUT:])
    )
    return frechet_distance(training, held_out)


def spread(rows: Sequence[Mapping[str, Any]], model: str, key: str) -> str:
    """The value with its interval; of several seeds mean ± standard deviation."""
    found = [row["metrics"][model][key] for row in rows if key in row["metrics"].get(model, {})]
    if not found:
        return "-"
    if len(found) > 1:
        values = [value for value, *_ in found]
        return f"{number(statistics.mean(values))} ± {number(statistics.stdev(values))}"
    value, low, high, _ = found[0]
    return number(value) + ("" if low is None else f" ({number(low)} to {number(high)})")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the teacher in 40 steps and in one, a row a student, the held-out digits, and the floor."""
    lines = [
        [
            "teacher",
            str(EDMDigits.num_inference_steps),
            "",
            *(spread(rows[:1], "teacher", k) for k in COLUMNS),
        ],
        ["teacher", "1", "", *(spread(rows[:1], "naive", k) for k in COLUMNS)],
    ]
    for name in dict.fromkeys(row["student"] for row in rows):
        mine = [row for row in rows if row["student"] == name]
        seconds = ", ".join(f"{row['cpu_seconds']:.0f}" for row in mine)
        lines.append(
            [STUDENTS[name][0], "1", seconds, *(spread(mine, "student", k) for k in COLUMNS)]
        )
    lines.append(["held-out digits", "", "", *(spread(rows[:1], "real", k) for k in COLUMNS)])
    floors = [rows[0]["metrics"]["student"].get(key, [None] * 4)[3] for key in COLUMNS]
    lines.append(["floor", "", "", *("-" if f is None else number(f) for f in floors)])
    return markdown_table(["", "steps", "CPU s", *(METRICS[key] for key in COLUMNS)], lines)


def claim(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: how much farther from real digits each student is than its teacher; below 0 it wins."""
    lines = []
    for row in rows:
        cells = []
        for real in ("held_out", "training"):
            student, teacher, difference, low, high = row["against"][real]
            cells += [
                number(student),
                number(teacher),
                f"{difference:+.2f} ({low:+.2f} to {high:+.2f})",
            ]
        lines.append([f"{STUDENTS[row['student']][0]}, seed {row['seed']}", *cells])
    head = [
        f"{what}, {real}"
        for real in ("held-out", "training")
        for what in ("FD", "teacher's", "difference")
    ]
    return markdown_table(["", *head], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/edm_digits"))
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--share", type=float, default=1.0, help="of all steps, for trials")
    parser.add_argument("--finished", action="store_true", help="the table of finished ones alone")
    parser.add_argument("--write", action="store_true", help="results and docs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    place, read = prepared(options.cache, options.output, options.share)
    rows = []
    for seed in options.seeds:
        for name in options.students:
            kept = options.output / f"{name}-{options.share:g}" / f"seed-{seed}" / "result.json"
            if options.finished and not kept.is_file():
                continue
            rows.append(row(place, name, seed, options.share))
            print(name, seed, rows[-1]["cpu_seconds"], rows[-1]["metrics"]["student"], flush=True)
    text = "\n\n".join([table(rows), claim(rows)])
    print(text)
    distance = data_distance(place)
    print(
        f"training digits to held-out: FD {distance:.1f}; the classifier reads {read:.3f} of the latter"
    )
    if options.write:
        manifest = json.loads((options.cache / place.teacher.name / "manifest.json").read_text())
        about = {"cpu_seconds": manifest["cpu_seconds"], "parameters": manifest["parameters"]}
        found = {
            "environment": environment(),
            "teacher": about,
            "reader_accuracy": read,
            "training_to_held_out": distance,
            "rows": rows,
        }
        RESULTS.write_text(as_lines(found))
        replace_between_markers(DOCS, "edm-digits", text)


if __name__ == "__main__":
    main()
