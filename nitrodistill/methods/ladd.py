"""Latent adversarial diffusion distillation, in the form of AMD's Nitro models.

A student G, which starts as a copy of the teacher, turns noise into a latent in one step (or a few). Pairs
(eps, z) of noise and the teacher's own latent for the same prompt c are precomputed. With x0 = G(eps, c),
x0 and z noised at random timesteps, and D the heads on the frozen teacher's features:

    L_G = lambda_r smooth_l1(x0, z) + lambda_a generator(D(alpha_t x0 + sigma_t eps', t, c))
    L_D = discriminator(D(alpha_t z + sigma_t eps'', t, c), D(alpha_t' x0 + sigma_t' eps''', t', c))

Published settings: lambda_r = lambda_a = 1, non-saturating loss, t uniform on 0..749, strict alternation
of G and D, "misaligned" negatives (real latents with another sample's prompt, which share the fake side
half and half).

Departure: the adversarial term may see *fresh* noise, for which no pair exists (`fresh_fraction`). On the
pairs' own noise a student of few pairs memorises, D stays at chance and the adversarial term does
nothing; so the regression alone sees the pairs. docs/demo_quality.md has what that gives.

Sauer et al. 2024, "Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion Distillation";
AMD, "Nitro diffusion models", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from nitrodistill.discriminator import ConvHead, LatentDiscriminator, TokenHead
from nitrodistill.losses import (
    AdversarialLoss,
    HingeGANLoss,
    HuberLoss,
    L1Loss,
    L2Loss,
    Loss,
    NonSaturatingGANLoss,
    SmoothL1Loss,
)
from nitrodistill.method import Draws, Role, frozen_within
from nitrodistill.sampling import Step, StepPlan, predict_x0
from nitrodistill.timesteps import TimestepLaw, Uniform
from nitrodistill.types import Batch, Condition, Denoiser, Terms

__all__ = ["LADD", "LADDConfig"]

Reconstruction = Literal["l1", "l2", "smooth_l1", "huber"]
Adversarial = Literal["non_saturating", "hinge"]
Updates = Literal["alternating", "shared"]
Head = Literal["conv", "token"]


@dataclass(frozen=True)
class LADDConfig:
    """Settings of LADD; the defaults are Nitro-SD2.1's.

    Attributes:
        taps: submodules of the teacher whose features the discriminator sees.
        head: what stands on each map: "conv" (Nitro-SD2.1) or "token" (Nitro-PixArt, for transformers).
        head_width: hidden channels of a head; None is a quarter of the map's channels for "conv", and all
            of them for "token".
        reconstruction: the loss between the student's latent and the teacher's.
        reconstruction_weight: its weight; 0 leaves it out.
        adversarial: the adversarial loss.
        adversarial_weight: its weight in the student's loss; 0 trains no discriminator.
        fresh_fraction: share of a batch that gets fresh noise and the adversarial term only, the rest
            gets its pair and the reconstruction only; 0 puts both terms on the pairs (Nitro).
        warmup_steps: steps of reconstruction alone before the adversarial term begins.
        discriminator_range: the discriminator's timesteps, uniform on this range of u in [0, 1].
        misaligned_negatives: show the discriminator real latents with another sample's prompt as
            fakes; the sample before's of the micro-batch (over all processes), where its prompt is another
            one.
        updates: "alternating" trains the student and the discriminator in turns; "shared" trains
            both at every step on one student sample.
        num_steps: steps of the student.
        timestep: the timestep a one-step student is told while it is fed pure noise (400 for
            Nitro-PixArt); None is the schedule's last.
        seed: of the discriminator's initial weights.
    """

    taps: tuple[str, ...] = ("down_blocks.0", "down_blocks.1", "mid_block")
    head: Head = "conv"
    head_width: int | None = None
    reconstruction: Reconstruction = "smooth_l1"
    reconstruction_weight: float = 1.0
    adversarial: Adversarial = "non_saturating"
    adversarial_weight: float = 1.0
    fresh_fraction: float = 0.0
    warmup_steps: int = 0
    discriminator_range: tuple[float, float] = (0.0, 0.75)
    misaligned_negatives: bool = False
    updates: Updates = "alternating"
    num_steps: int = 1
    timestep: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (
            ("reconstruction", Reconstruction),
            ("adversarial", Adversarial),
            ("updates", Updates),
            ("head", Head),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {get_args(kind)}."
                )
        for name in ("reconstruction_weight", "adversarial_weight", "warmup_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0.")
        if self.reconstruction_weight == 0 and self.adversarial_weight == 0:
            raise ValueError(
                "reconstruction_weight and adversarial_weight are both 0; nothing to do."
            )
        if self.reconstruction_weight == 0 and self.warmup_steps > 0:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but warm-up is reconstruction alone and its "
                "weight is 0; leave one of them out."
            )
        if not 0 <= self.fresh_fraction <= 1:
            raise ValueError(f"fresh_fraction is {self.fresh_fraction}; it must be in [0, 1].")
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; it must be at least 1.")
        if self.timestep is not None and self.num_steps > 1:
            raise ValueError(
                f"timestep={self.timestep} is for a one-step student, but num_steps is "
                f"{self.num_steps}; leave one of them out."
            )
        Uniform((self.discriminator_range,))


class LADD:
    """Nitro's method on the contract of `nitrodistill.method`.

    Args:
        student: the denoiser that is trained; any Denoiser whose `module` can be assigned.
        discriminator: heads on a frozen backbone; None trains by reconstruction alone.
        plan: the student's steps.
        config: weights, mix, turns.
        reconstruction: loss between latents, per sample.
        adversarial: the two sides of the game.
        law: timestep law of the discriminator, in u.

    Raises:
        ValueError: if the student cannot follow the plan, or the adversarial term has no
            discriminator.
    """

    def __init__(
        self,
        student: Denoiser,
        discriminator: LatentDiscriminator | None,
        plan: StepPlan,
        config: LADDConfig | None = None,
        *,
        reconstruction: Loss | None = None,
        adversarial: AdversarialLoss | None = None,
        law: TimestepLaw | None = None,
    ) -> None:
        self.config: LADDConfig = config or LADDConfig()
        if self.config.adversarial_weight > 0 and discriminator is None:
            raise ValueError(
                "the adversarial term needs a discriminator; pass one, or set adversarial_weight=0."
            )
        self.student: Denoiser = student
        self.discriminator: LatentDiscriminator | None = (
            discriminator if self.config.adversarial_weight > 0 else None
        )
        self.plan: StepPlan = plan.check(student.prediction_type)
        self.reconstruction: Loss = reconstruction or _reconstruction(self.config.reconstruction)
        self.adversarial: AdversarialLoss = adversarial or _adversarial(self.config.adversarial)
        self.law: TimestepLaw = law or Uniform((self.config.discriminator_range,))

    @classmethod
    def from_config(cls, config: LADDConfig, teacher: Denoiser, student: Denoiser) -> LADD:
        """Builds the discriminator on `teacher` and the plan on the student's schedule."""
        discriminator = None
        if config.adversarial_weight > 0:
            discriminator = LatentDiscriminator(
                teacher,
                config.taps,
                head=TokenHead if config.head == "token" else ConvHead,
                width=config.head_width,
                seed=config.seed,
            )
        if config.timestep is not None:
            plan = StepPlan.from_noise(student.schedule, config.timestep)
        else:
            plan = StepPlan.from_schedule(student.schedule, config.num_steps, "renoise")
        return cls(student, discriminator, plan, config)

    def trainable(self) -> Mapping[str, Role]:
        """The student, and the discriminator's heads where there is one."""
        roles = {"student": Role(self.student, "module")}
        if self.discriminator is not None:
            roles["discriminator"] = Role(self.discriminator, "heads")
        return roles

    def active(self, step: int) -> tuple[str, ...]:
        """The student alone during warm-up; then both, or each in turn, the student first."""
        if not self._is_adversarial(step):
            return ("student",)
        if self.config.updates == "shared":
            return ("student", "discriminator")
        return (("student", "discriminator")[(step - self.config.warmup_steps) % 2],)

    def losses(
        self, batch: Batch, active: Sequence[str], draws: Draws
    ) -> Iterator[tuple[str, Terms]]:
        """Yields the student's and the discriminator's terms; see `DistillationMethod.losses`."""
        judged = self._judged(batch, draws)
        noise = batch.noise
        if judged is not None and judged.is_there and self.config.fresh_fraction > 0:
            drawn = judged.draws.normal("fresh", noise.shape[1:], noise.device)
            noise = noise.index_copy(0, judged.rows, drawn.to(noise.dtype))
        step = self.plan.steps[0]
        if len(self.plan) > 1:
            step = self.plan.at(draws.uniform("step"))
        x_t = step.input.mix(batch.x0, noise)

        x0: Tensor | None = None
        if "student" in active:
            with self._frozen_heads():
                x0, terms = self._student_terms(batch, step, x_t, judged)
                yield "student", terms
        if "discriminator" in active and judged is not None:
            if x0 is None:
                with torch.no_grad():
                    x0 = self._generate(judged, step, x_t)
            else:
                x0 = x0[judged.rows]
            terms = self._discriminator_terms(batch, x0.detach(), judged, draws)
            yield "discriminator", terms

    def _student_terms(
        self, batch: Batch, step: Step, x_t: Tensor, judged: _Rows | None
    ) -> tuple[Tensor, Terms]:
        config = self.config
        x0 = predict_x0(self.student, step, x_t, batch.condition)
        total = 0 * x0.sum()  # a micro-batch may have no row for any term
        parts: dict[str, Tensor] = {}
        paired = self._paired(batch, judged)
        if len(paired) > 0 and config.reconstruction_weight > 0:
            per_sample = self.reconstruction.per_sample(x0[paired], batch.x0[paired].to(x0.dtype))
            share = 1.0 if judged is None else self._shares()[0]
            total = total + config.reconstruction_weight * per_sample.sum() / (len(batch) * share)
            parts["reconstruction"] = per_sample.detach()
        if judged is not None:
            logits = self._judge(x0[judged.rows], judged, "generator")
            reals = None
            if self.adversarial.needs_real:
                reals = self._judge(judged.x0.to(x0.dtype), judged, "generator.real")
            per_sample = judged.weight * self.adversarial.generator(logits, reals)
            share = self._shares()[1]
            total = total + config.adversarial_weight * per_sample.sum() / (len(batch) * share)
            if judged.is_there:
                parts["adversarial"] = per_sample.detach()
        return x0, Terms(total, parts)

    def _discriminator_terms(
        self, batch: Batch, fakes: Tensor, judged: _Rows, draws: Draws
    ) -> Terms:
        real = self._judge(judged.x0.to(fakes.dtype), judged, "real")
        fake = self._judge(fakes, judged, "fake")
        per_sample = self.adversarial.discriminator(real, fake)
        others = self._others(batch, judged, draws) if self.config.misaligned_negatives else None
        if others is not None:
            latents, differ = others
            wrong = self._judge(latents.to(fakes.dtype), judged, "misaligned")
            both = (per_sample + self.adversarial.discriminator(real, wrong)) / 2
            per_sample = both if differ is None else torch.where(differ, both, per_sample)
        total = judged.weight * per_sample.sum() / (len(batch) * self._shares()[1])
        if not judged.is_there:
            return Terms(total, {})
        parts = {
            "discriminator": per_sample.detach(),
            "logit_real": _mean_logit(real),
            "logit_fake": _mean_logit(fake),
        }
        return Terms(total, parts)

    def _others(
        self, batch: Batch, judged: _Rows, draws: Draws
    ) -> tuple[Tensor, Tensor | None] | None:
        """Each sample's misaligned real latent, and where its prompt is another one (None: not known).

        It is the one before it among those judged in the whole micro-batch, whichever process has it.
        """
        index, x0 = draws.gather(batch.index), draws.gather(batch.x0)
        rows = self._fresh_rows(index)
        if len(rows) < 2:
            return None
        before = dict(zip(index[rows].tolist(), [rows[-1], *rows[:-1]], strict=True))
        chosen = [before.get(number, 0) for number in judged.draws.index.tolist()]
        place = torch.tensor(chosen, device=x0.device)
        ids = batch.condition.prompt_ids
        if ids is None:
            return x0[place], None
        return x0[place], ids[judged.rows] != draws.gather(ids)[place]

    def _judge(self, x0: Tensor, judged: _Rows, name: str) -> tuple[Tensor, ...]:
        """Noises latents at drawn timesteps and returns the discriminator's logits."""
        discriminator = self.discriminator
        assert discriminator is not None
        schedule, draws = discriminator.denoiser.schedule, judged.draws
        t = schedule.timestep(self.law(draws.uniform(f"{name}.t"))).to(x0.device)
        noise = draws.normal(f"{name}.noise", x0.shape[1:], x0.device).to(x0.dtype)
        return discriminator(schedule(t).mix(x0, noise), t, judged.condition)

    def _generate(self, judged: _Rows, step: Step, x_t: Tensor) -> Tensor:
        if step.t.ndim:
            step = _take(step, judged.rows)
        return predict_x0(self.student, step, x_t[judged.rows], judged.condition)

    def _is_adversarial(self, step: int) -> bool:
        return self.discriminator is not None and step >= self.config.warmup_steps

    def _shares(self) -> tuple[float, float]:
        """The expected shares of a batch that get the reconstruction and the adversarial term."""
        fraction = self.config.fresh_fraction
        return (1.0, 1.0) if fraction == 0 else (1 - fraction, fraction)

    def _judged(self, batch: Batch, draws: Draws) -> _Rows | None:
        """What the adversarial term sees of a batch; None before it begins."""
        if not self._is_adversarial(draws.step):
            return None
        return _Rows.cut(batch, draws, self._fresh_rows(batch.index))

    def _paired(self, batch: Batch, judged: _Rows | None) -> Tensor:
        """Rows that get the reconstruction: those not judged, or all where none are fresh."""
        paired = torch.ones(len(batch), dtype=torch.bool)
        if judged is not None and self.config.fresh_fraction > 0:
            paired[self._fresh_rows(batch.index)] = False
        return paired.nonzero().flatten().to(batch.x0.device)

    def _fresh_rows(self, index: Tensor) -> list[int]:
        """Rows that get the adversarial term, a function of the sample numbers `(B,)` alone.

        Sample n is fresh where floor((n + 1) f) > floor(n f): evenly spread, whatever the batches.
        """
        fraction = self.config.fresh_fraction
        if fraction == 0:
            return list(range(len(index)))
        return [
            row
            for row, n in enumerate(index.tolist())
            if math.floor((n + 1) * fraction + 1e-9) > math.floor(n * fraction + 1e-9)
        ]

    def _frozen_heads(self) -> AbstractContextManager[None]:
        return (
            nullcontext() if self.discriminator is None else frozen_within(self.discriminator.heads)
        )


@dataclass(frozen=True)
class _Rows:
    """Some of a batch's rows, cut out once.

    Where there are none, the first row stands in with weight 0, because every process must call the same
    networks.
    """

    rows: Tensor
    x0: Tensor
    condition: Condition
    draws: Draws
    is_there: bool

    @property
    def weight(self) -> float:
        return float(self.is_there)

    @classmethod
    def cut(cls, batch: Batch, draws: Draws, rows: list[int]) -> _Rows:
        place = torch.tensor(rows or [0], device=batch.x0.device)
        if len(rows) == len(batch):
            return cls(place, batch.x0, batch.condition, draws, True)
        condition = batch.condition.index(place)
        return cls(place, batch.x0[place], condition, draws.take(place), bool(rows))


def _take(step: Step, rows: Tensor) -> Step:
    def pick(value: Tensor) -> Tensor:
        return value[rows.to(value.device)]

    given, read = step.input, step.output
    return Step(
        pick(step.t),
        type(given)(pick(given.alpha), pick(given.sigma)),
        type(read)(pick(read.alpha), pick(read.sigma)),
    )


def _mean_logit(logits: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([scale.detach().float().mean(1) for scale in logits]).mean(0)


def _reconstruction(name: Reconstruction) -> Loss:
    if name == "l1":
        return L1Loss()
    if name == "l2":
        return L2Loss()
    return SmoothL1Loss() if name == "smooth_l1" else HuberLoss()


def _adversarial(name: Adversarial) -> AdversarialLoss:
    return HingeGANLoss() if name == "hinge" else NonSaturatingGANLoss()
