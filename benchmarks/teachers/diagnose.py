"""Can heads on a frozen teacher's features tell a student's latents from the teacher's at all, and where?

    python -m benchmarks.teachers.diagnose [--teachers digits ...] [--method naive] [--updates 15 60]

The student is fixed: a cell of the comparison, or the teacher itself in one step (naive). A head of its own
stands on every tap; real latents are those of the pairs, fakes are the student's on fresh noise, both with the
same prompts; three quarters of each train the heads (hinge loss, u uniform on [0, 1]). Of the rest, each noised
four times at a fixed u, it is measured how often a real one has the higher logit than a fake one (the area under
the ROC curve). One half is chance. Where it stays there after many updates, the features are blind to the
difference at that noise; where it rises late, heads are slow.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._measure import markdown_table
from benchmarks.teachers import TEACHERS
from benchmarks.teachers.__main__ import default_cache
from benchmarks.teachers.compare import PAIRS, Place
from benchmarks.teachers.methods import METHODS
from nitrodistill.data import PairStore
from nitrodistill.discriminator import ConvHead, LatentDiscriminator
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan, predict_x0
from nitrodistill.training.run import load_student
from nitrodistill.types import Condition, Denoiser

LEVELS = (0.02, 0.1, 0.2, 0.4, 0.6, 0.8)
BATCH, NOISES = 32, 2


@dataclass(frozen=True)
class Sides:
    """Latents of the teacher and of the student, `(N, C, H, W)` each, and their prompts."""

    real: Tensor
    fake: Tensor
    condition: Condition

    def take(self, rows: Tensor) -> Sides:
        """Some of them."""
        return Sides(self.real[rows], self.fake[rows], self.condition.index(rows))


def student_of(place: Place, method: str, seconds: float) -> tuple[Denoiser, StepPlan]:
    """The student of a cell; or "naive", the teacher itself in one step."""
    if method == "naive":
        schedule, timestep = place.pipeline.denoiser.schedule, place.teacher.timestep
        if timestep is None:
            return place.pipeline.denoiser, StepPlan.from_schedule(schedule, 1)
        return place.pipeline.denoiser, StepPlan.from_noise(schedule, timestep)
    place.cell(method, METHODS[method], 0, seconds)
    run = place.cell_folder(method, METHODS[method], 0, seconds) / "run"
    student = load_student(run, place.pipeline)
    return student.denoiser, student.plan


@torch.no_grad()
def sides_of(place: Place, student: Denoiser, plan: StepPlan) -> Sides:
    """The pairs' latents, and the student's on fresh noise."""
    pairs = PairStore.open(place.pairs).read(list(range(PAIRS)))
    noise = torch.randn(pairs.x0.shape, generator=torch.Generator().manual_seed(1))
    step, parts = plan.steps[0], []
    for rows in torch.arange(PAIRS).split(100):
        eps, c = noise[rows], pairs.condition.index(rows)
        parts.append(predict_x0(student, step, step.input.mix(pairs.x0[rows].float(), eps), c))
    return Sides(pairs.x0.float(), torch.cat(parts), pairs.condition)


def judged(
    heads: LatentDiscriminator, some: Sides, u: Tensor, generator: torch.Generator
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Logits of real and fake, each at its own noise."""
    schedule = heads.denoiser.schedule
    found = []
    for x0 in (some.real, some.fake):
        t = schedule.timestep(u)
        noise = torch.randn(x0.shape, generator=generator)
        with torch.no_grad():
            features = heads.taps.features(schedule(t).mix(x0, noise), t, some.condition)
        found.append(heads.heads(features))
    return found[0], found[1]


def accuracy(heads: LatentDiscriminator, rest: Sides) -> list[list[float]]:
    """Level of u -> tap -> how often a real one has the higher mean logit than a fake one."""
    table, count = [], len(rest.real)
    for level in LEVELS:
        generator = torch.Generator().manual_seed(2)
        right = [0.0] * len(heads.taps.names)
        for _ in range(NOISES):
            with torch.no_grad():
                real, fake = judged(heads, rest, torch.full((count,), level), generator)
            for tap, (a, b) in enumerate(zip(real, fake, strict=True)):
                a, b = a.mean(1), b.mean(1)
                right[tap] += (a[:, None] > b[None, :]).float().mean().item() / NOISES
        table.append(right)
    return table


def diagnose(
    teacher: Pipeline, both: Sides, taps: Sequence[str | float], updates: Sequence[int], rate: float
) -> dict[int, list[list[float]]]:
    """Number of updates -> `accuracy`."""
    heads = LatentDiscriminator(teacher.denoiser, taps, head=ConvHead, width=96)
    optimizer = torch.optim.AdamW(heads.heads.parameters(), lr=rate, betas=(0.0, 0.999))
    cut = 3 * len(both.real) // 4
    some, rest = both.take(torch.arange(cut)), both.take(torch.arange(cut, len(both.real)))
    generator, found = torch.Generator().manual_seed(0), {}
    for done in range(1, max(updates) + 1):
        rows = torch.randint(cut, (BATCH,), generator=generator)
        u = torch.rand(BATCH, generator=generator)
        real, fake = judged(heads, some.take(rows), u, generator)
        pairs = zip(real, fake, strict=True)
        loss = torch.stack([(1 - a).relu().mean() + (1 + b).relu().mean() for a, b in pairs]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if done in updates:
            found[done] = accuracy(heads, rest)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--method", choices=["naive", *METHODS], default="regression")
    parser.add_argument("--updates", type=int, nargs="+", default=[50, 150])
    parser.add_argument("--taps", type=json.loads, default=[0.01, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--output", type=Path, default=Path("runs/teachers"))
    parser.add_argument("--cache", type=Path, default=default_cache())
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.teachers:
        place = Place.of(TEACHERS[name], options.cache, options.output)
        student, plan = student_of(place, options.method, options.seconds)
        found = diagnose(
            place.pipeline,
            sides_of(place, student, plan),
            options.taps,
            options.updates,
            options.rate,
        )
        for done, levels in found.items():
            rows = [
                [f"{u:g}", *(f"{share:.2f}" for share in taps)]
                for u, taps in zip(LEVELS, levels, strict=True)
            ]
            print(f"\n{name}, student {options.method}, rate {options.rate:g}, {done} updates\n")
            print(markdown_table(["u", *map(str, options.taps)], rows), flush=True)


if __name__ == "__main__":
    main()
