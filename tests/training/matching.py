"""A second method, as anybody may write one outside of the package: DMD2 without data, in small.

student   distribution matching, a discriminator's opinion, nearness to its own moving average
critic    learns what the student draws
heads     on the frozen teacher's features: tell the student's latents from those of its moving average
target    follows the student, and is trained by nobody

Three roles, prompts alone; the student learns at every third step, the others always.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from nitrodistill.discriminator import LatentDiscriminator
from nitrodistill.losses import NonSaturatingGANLoss
from nitrodistill.method import Cast, DistillationMethod, Draws, Frozen, Role, frozen_within
from nitrodistill.models import DiffusersDenoiser
from nitrodistill.sampling import Step, StepPlan, predict_x0
from nitrodistill.types import Batch, Terms


@dataclass(frozen=True)
class MatchingConfig:
    """Settings.

    Attributes:
        every: steps from one update of the student to the next.
        width: of the heads.
        adversarial_weight: of the heads' opinion.
        decay: of the target.
    """

    every: int = 3
    width: int = 8
    adversarial_weight: float = 0.1
    decay: float = 0.5


class Matching(DistillationMethod):
    """See above."""

    Config = MatchingConfig
    reads = frozenset({"prompts"})

    def __init__(self, config: MatchingConfig, cast: Cast) -> None:
        self.config = config
        self.teacher, self.student = cast.teacher, cast.student
        self.critic, self.target = cast.another("critic"), cast.another("target")
        self.discriminator = LatentDiscriminator(self.teacher, ("mid_block",), width=config.width)
        self.plan = StepPlan.from_schedule(self.student.schedule)
        self.game = NonSaturatingGANLoss()
        assert isinstance(self.student, DiffusersDenoiser)
        self.shape = self.student.latent_shape()

    @classmethod
    def build(cls, config: MatchingConfig, cast: Cast) -> Matching:
        return cls(config, cast)

    def trainable(self) -> Mapping[str, Role]:
        return {
            "student": Role(self.student),
            "critic": Role(self.critic),
            "heads": Role(self.discriminator, "heads"),
        }

    def frozen(self) -> Mapping[str, Frozen]:
        return {
            "teacher": Frozen(self.teacher.module, self.discriminator.taps.names),
            "target": Frozen(self.target.module, follows="student", decay=self.config.decay),
        }

    def active(self, step: int) -> Sequence[str]:
        others = ("critic", "heads")
        return others if step % self.config.every else ("student", *others)

    def losses(
        self, batch: Batch, active: Sequence[str], draws: Draws
    ) -> Iterator[tuple[str, Terms]]:
        condition = batch.prompts
        assert condition is not None
        device = next(iter(condition.tensors.values())).device
        noise = draws.normal("noise", self.shape, device)
        schedule, (whole,) = self.student.schedule, self.plan.steps
        t = schedule.timestep(draws.shared.uniform("t") * 0.8 + 0.1)[0]  # one for the whole batch
        scales, eps = schedule(t), draws.normal("eps", self.shape, device)
        step = Step(t, scales, scales)

        with nullcontext() if "student" in active else torch.no_grad():
            x0 = predict_x0(self.student, whole, noise, condition)
        with torch.no_grad():
            near = predict_x0(self.target, whole, noise, condition)
        if "student" in active:
            x_t = scales.mix(x0, eps)
            with torch.no_grad():
                said, right = (
                    predict_x0(network, step, x_t, condition)
                    for network in (self.critic, self.teacher)
                )
            with frozen_within(self.discriminator.heads):
                opinion = self.game.generator(self.discriminator(x_t, t, condition), None)
                matched = (x0 - (x0 - (said - right)).detach()).square().flatten(1).mean(1) / 2
                kept = (x0 - near).square().flatten(1).mean(1)
                per_sample = matched + kept + self.config.adversarial_weight * opinion
                parts = {"matched": matched.detach(), "kept": kept.detach()}
                yield "student", Terms(per_sample.mean(), parts)
        fake = x0.detach()
        x_t = scales.mix(fake, eps)
        error = (predict_x0(self.critic, step, x_t, condition) - fake).square().flatten(1).mean(1)
        yield "critic", Terms(error.mean(), {"error": error.detach()})
        logits = (self.discriminator(x, t, condition) for x in (scales.mix(near, eps), x_t))
        per_sample = self.game.discriminator(*logits)
        yield "heads", Terms(per_sample.mean(), {"heads": per_sample.detach()})
