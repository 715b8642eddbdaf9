"""Evaluation: teacher, naive one-step teacher and student side by side, on the same noise and prompts.

Sample i of every arm has noise `Draws(seed, 0, i).normal("evaluation", ...)`, a stream of its own that no
training pair comes from, and prompt `i mod P` of P prompts drawn from those given. The naive arm is the teacher
itself in one step without guidance: what distillation has to beat. Floors say how far two sets of one
distribution are apart at this number of samples, as the Fréchet distance of finite sets is never 0.

Everything is streamed: memory does not grow with the number of samples. The teacher's latents, which cost most,
can be kept on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nitrodistill.evaluation.alignment import Alignment
from nitrodistill.evaluation.arms import NOISE, Arm, cost_of, make_arms
from nitrodistill.evaluation.cache import LatentCache
from nitrodistill.evaluation.config import EvaluateConfig, Sheet
from nitrodistill.evaluation.meters import Meter
from nitrodistill.evaluation.result import Evaluation, Metric, Pictures
from nitrodistill.evaluation.sharpness import TextureFeatures
from nitrodistill.method import Draws
from nitrodistill.models import Pipeline
from nitrodistill.models.denoiser import evaluating
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.sampling import StepPlan
from nitrodistill.types import Denoiser

__all__ = ["EvaluateConfig", "RealImages", "evaluate"]

RealImages = Callable[[Sequence[str], Tensor], Tensor]
"""`(B prompts, (B,) sample numbers) -> (B, 3, H, W)` in [-1, 1]; equal arguments give equal pictures."""

OTHER_NOISE = "evaluation_floor"


def evaluate(
    teacher: Pipeline,
    student: Denoiser | Pipeline,
    plan: StepPlan,
    prompts: Sequence[str],
    features: Callable[[Tensor], Tensor],
    *,
    alignment: Alignment | None = None,
    real_images: RealImages | Tensor | None = None,
    config: EvaluateConfig | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measures a student against its teacher.

    Args:
        teacher: the teacher's pipeline.
        student: the student's denoiser, which then uses the teacher's text encoder and VAE, or its pipeline.
        plan: how the student samples.
        prompts: what may be drawn, P >= 1 of them; duplicates count once.
        features: images `(B, 3, H, W)` in [-1, 1] -> `(B, F)`, for the Fréchet distance.
        alignment: the oracle, see `evaluation.alignment`; None leaves alignment out.
        real_images: a function of prompts and sample numbers, or `(M, 3, H, W)` with M >= 2 num_samples.
            Samples 0..n-1 are the reference, n..2n-1 give the floor. None leaves it out.
        config: how; by default `EvaluateConfig()`.
        cache: a folder for the teacher's latents, or None.
        progress: show a progress bar.

    Raises:
        ValueError: without prompts, with too few real images, if the plan does not fit the student, or if an
            arm's latents are not finite.
    """
    config = config or EvaluateConfig()
    sheet = Sheet.of(prompts, config)
    arms = make_arms(teacher, student, plan, config)
    kept = LatentCache(None if cache is None else Path(cache), _depends_on(teacher, sheet, config))
    real = _real_source(real_images, config.num_samples)
    with torch.no_grad(), evaluating(arms["student"].denoiser.module):
        bench = _Bench(arms, sheet, kept, features, alignment, real)
        for number, rows in enumerate(_batches(config, progress)):
            bench.add(number, rows)
        cost = cost_of(arms, sheet) if config.cost_repeats else {}
    settings = _settings(teacher, arms["student"], plan, sheet, kept.key)
    return Evaluation(bench.scores(cost), settings, examples=bench.pictures())


class _Bench:
    """The meters of all arms, and what feeds them batch by batch."""

    def __init__(
        self,
        arms: dict[str, Arm],
        sheet: Sheet,
        cache: LatentCache,
        features: Callable[[Tensor], Tensor],
        alignment: Alignment | None,
        real: RealImages | None,
    ) -> None:
        self._arms, self._sheet, self._cache, self._real = arms, sheet, cache, real
        self._fresh_floor = sheet.config.floor == "fresh"
        texture = TextureFeatures()
        names = [*arms, "again", "real", "real again"]
        self._meters = {
            name: Meter(len(sheet.prompts), features, alignment, texture) for name in names
        }
        prompts = list(sheet.prompts)
        self._conditions = {name: arm.pipeline.encode_prompt(prompts) for name, arm in arms.items()}
        self._pictures: dict[str, list[Tensor]] = {name: [] for name in arms}

    def add(self, number: int, rows: Tensor) -> None:
        """Draws and measures samples `rows`, batch `number`, in every arm."""
        for name in self._arms:
            self._add_arm(name, name, NOISE, number, rows)
        if self._fresh_floor:
            self._add_arm("again", "teacher", OTHER_NOISE, number, rows)
        if self._real is not None:
            for i, name in enumerate(("real", "real again")):
                images = self._real(self._sheet.texts(rows), rows + i * len(self._sheet.ids))
                self._measure(name, images, rows)

    def _add_arm(self, meter: str, name: str, stream: str, number: int, rows: Tensor) -> None:
        arm = self._arms[name]
        draws = Draws(self._sheet.config.seed, 0, rows)
        noise = draws.normal(stream, arm.pipeline.latent_shape, arm.pipeline.device)
        condition = self._conditions[name].index(self._sheet.ids[rows])

        def draw() -> Tensor:
            return arm.draw(noise, condition, draws)

        latents = self._cache.get(stream, number, draw) if name == "teacher" else draw()
        if not bool(latents.isfinite().all()):
            raise ValueError(
                f"the latents of the {name} hold NaN or infinity; it has diverged, or its plan does not fit "
                "its prediction type."
            )
        images = arm.pipeline.decode(latents)
        self._measure(meter, images, rows)
        ids, halves = self._sheet.ids[rows], self._sheet.in_first_half[rows]
        self._meters[meter].update_latents(latents, ids, halves)
        if meter in self._pictures:
            wanted = self._sheet.config.num_pictures - int(rows[0])
            self._pictures[meter].append(images[: max(0, wanted)].cpu())

    def _measure(self, name: str, images: Tensor, rows: Tensor) -> None:
        texts, halves = self._sheet.texts(rows), self._sheet.in_first_half[rows]
        self._meters[name].update(images.to(self._arms["teacher"].pipeline.device), texts, halves)

    def scores(self, cost: dict[str, dict[str, Metric]]) -> dict[str, dict[str, Metric]]:
        """The metrics of each arm, and of the real pictures where there are any."""
        floors = self._floors()
        names = [*self._arms, *([] if self._real is None else ["real"])]
        found = {name: {**self._values(name), **cost.get(name, {})} for name in names}
        count = len(self._sheet.ids)
        return {
            name: {
                key: value
                if isinstance(value, Metric)
                else Metric(value, floor=floors.get(key), num_samples=count)
                for key, value in metrics.items()
                if value is not None
            }
            for name, metrics in found.items()
        }

    def _values(self, name: str) -> dict[str, float | None]:
        mine, teacher, real = (self._meters[n] for n in (name, "teacher", "real"))
        is_teacher, is_real = mine is teacher, mine is real
        near_real = self._real is not None and not is_real
        by_attribute = mine.alignment.by_attribute()
        return {
            "alignment": mine.alignment.joint(),
            **{f"alignment@{attribute}": share for attribute, share in by_attribute.items()},
            "fd_real": mine.features.distance(real.features) if near_real else None,
            "fd_teacher": None if is_teacher else mine.features.distance(teacher.features),
            "fd_latents": None if is_teacher or is_real else mine.latents.distance(teacher.latents),
            "fd_texture": None if is_teacher else mine.texture.distance(teacher.texture),
            "edge_ratio": _ratio(mine.edge(), teacher.edge()),
            "high_frequency_ratio": _ratio(mine.high_frequency(), teacher.high_frequency()),
            "diversity": _ratio(mine.spread(), teacher.spread()),
        }

    def _floors(self) -> dict[str, float | None]:
        """How far apart equals are: real and real, teacher and teacher with other noise."""
        teacher, real, again = (self._meters[n] for n in ("teacher", "real", "real again"))
        fd_real = None if self._real is None else again.features.distance(real.features)
        if self._fresh_floor:
            return {**self._values("again"), "fd_real": fd_real}
        if not self._sheet.has_halves:
            return {"fd_real": fd_real}
        return {
            "fd_real": fd_real,
            "fd_teacher": teacher.features.floor(),
            "fd_latents": teacher.latents.floor(),
            "fd_texture": teacher.texture.floor(),
        }

    def pictures(self) -> Pictures | None:
        """The first pictures of each arm."""
        rows = torch.arange(min(self._sheet.config.num_pictures, len(self._sheet.ids)))
        if len(rows) == 0:
            return None
        images = {name: torch.cat(parts) for name, parts in self._pictures.items()}
        return Pictures(tuple(self._sheet.texts(rows)), images, tuple(rows.tolist()))


def _batches(config: EvaluateConfig, progress: bool) -> Iterator[Tensor]:
    from tqdm import tqdm

    index = torch.arange(config.num_samples)
    with tqdm(total=len(index), desc="evaluate", unit="image", disable=not progress) as bar:
        for rows in index.split(config.batch_size):
            yield rows
            bar.update(len(rows))


def _real_source(given: RealImages | Tensor | None, num_samples: int) -> RealImages | None:
    if not isinstance(given, Tensor):
        return given
    if len(given) < 2 * num_samples:
        raise ValueError(
            f"there are {len(given)} real images; {num_samples} samples need at least {2 * num_samples}: as "
            "many for the reference, and as many for its floor."
        )
    return lambda prompts, index: given[index.to(given.device)]


def _ratio(mine: float | None, teachers: float | None) -> float | None:
    return mine / teachers if mine is not None and teachers else None


def _depends_on(teacher: Pipeline, sheet: Sheet, config: EvaluateConfig) -> dict[str, Any]:
    plan = StepPlan.from_schedule(teacher.denoiser.schedule, config.teacher_steps)
    return {
        "unet": fingerprint(teacher.denoiser.module),
        "text_encoder": fingerprint(teacher.diffusers.text_encoder),
        "prediction_type": teacher.denoiser.prediction_type,
        "plan": [[step.t.item(), *(x.item() for x in step.output)] for step in plan.steps],
        "guidance": config.guidance,
        "latent_shape": teacher.latent_shape,
        "prompts": sheet.prompts,
        "num_samples": config.num_samples,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }


def _settings(
    teacher: Pipeline, student: Arm, plan: StepPlan, sheet: Sheet, key: str
) -> dict[str, Any]:
    return {
        **asdict(sheet.config),
        "num_prompts": len(sheet.prompts),
        "student_timesteps": plan.timesteps().tolist(),
        "teacher_fingerprint": fingerprint(teacher.denoiser.module),
        "student_fingerprint": fingerprint(student.denoiser.module),
        "teacher_latents": key,
        "device": str(teacher.device),
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
