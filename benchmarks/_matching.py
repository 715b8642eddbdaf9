"""Distribution matching in small, for `benchmarks/alarms.py`: DMD without a discriminator, on the open contract.

critic    learns the student's samples, by their x0 at any timestep
student   distribution matching between guided teacher and critic, at every `every`-th step; in the first
          `warmup_steps` regression on pairs instead
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

import nitrodistill as nd
from nitrodistill.losses.distribution_matching import distribution_matching
from nitrodistill.sampling import Step, predict_x0
from nitrodistill.types import expand


@dataclass(frozen=True)
class MatchingConfig:
    """Settings: the teacher's guidance, the critic's updates for one of the student, steps of regression."""

    guidance: float = 3.0
    every: int = 2
    warmup_steps: int = 0


class Matching(nd.DistillationMethod):
    """See above."""

    Config = MatchingConfig

    def __init__(self, config: MatchingConfig, cast: nd.Cast) -> None:
        self.config = config
        self.teacher = nd.Guided(cast.teacher, config.guidance, cast.empty)
        self.student, self.critic = cast.student, cast.another("critic")
        self.plan = nd.StepPlan.from_schedule(self.student.schedule)

    @classmethod
    def build(cls, config: MatchingConfig, cast: nd.Cast) -> Matching:
        return cls(config, cast)

    def trainable(self) -> Mapping[str, nd.Role]:
        return {"student": nd.Role(self.student), "critic": nd.Role(self.critic)}

    def frozen(self) -> Mapping[str, nd.Frozen]:
        return {"teacher": nd.Frozen(self.teacher.module)}

    def active(self, step: int) -> Sequence[str]:
        if step < self.config.warmup_steps:
            return ("student",)
        return ("critic",) if step % self.config.every else ("student", "critic")

    def losses(
        self, batch: nd.Batch, active: Sequence[str], draws: nd.Draws
    ) -> Iterator[tuple[str, nd.Terms]]:
        pairs = batch.pairs
        assert pairs is not None
        (step,), condition = self.plan.steps, pairs.condition
        warm = draws.step < self.config.warmup_steps
        noise = pairs.noise if warm else draws.normal("noise", pairs.x0.shape[1:])
        with nullcontext() if "student" in active else torch.no_grad():
            x0 = predict_x0(self.student, step, step.input.mix(pairs.x0, noise), condition)
        if "student" in active:
            if warm:
                per_sample = nd.functional.smooth_l1_loss(x0, pairs.x0.to(x0.dtype))
            else:
                at, x_t = self._noised(x0.detach(), draws, "student", 0.02, 0.98)
                with torch.no_grad():
                    real = predict_x0(self.teacher, at, x_t, condition)
                    fake = predict_x0(self.critic, at, x_t, condition)
                per_sample = distribution_matching(x0, real, fake)
            yield "student", nd.Terms(per_sample.mean(), {"matching": per_sample.detach()})
        if "critic" in active:
            at, x_t = self._noised(x0.detach(), draws, "critic", 0.0, 1.0)
            error = (predict_x0(self.critic, at, x_t, condition) - x0.detach()).square()
            # the error of v: that of x0 over sigma
            error = error / expand(at.output.sigma.clamp(min=0.05), error).to(error.dtype) ** 2
            per_sample = error.flatten(1).mean(1)
            yield "critic", nd.Terms(per_sample.mean(), {"error": per_sample.detach()})

    def _noised(
        self, x0: Tensor, draws: nd.Draws, name: str, low: float, high: float
    ) -> tuple[Step, Tensor]:
        schedule = self.student.schedule
        t = schedule.timestep(low + (high - low) * draws.uniform(f"{name}.t"))
        scales = schedule(t)
        return Step(t, scales, scales), scales.mix(x0, draws.normal(f"{name}.eps", x0.shape[1:]))
