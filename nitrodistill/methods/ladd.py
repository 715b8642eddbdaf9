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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nitrodistill.checks import check_fields
from nitrodistill.discriminator import ConvHead, LatentDiscriminator, TokenHead
from nitrodistill.losses import AdversarialLoss, WeightedSum
from nitrodistill.losses.gradient_penalty import approximate_gradient_penalty, gradient_penalty
from nitrodistill.losses.named import check_losses, named_adversarial, named_loss
from nitrodistill.method import Cast, DistillationMethod, Draws, Frozen, Role, frozen_within
from nitrodistill.sampling import Step, StepPlan, predict_x0
from nitrodistill.timesteps import TimestepLaw, named_law
from nitrodistill.types import Batch, Condition, Denoiser, Terms

Updates = Literal["alternating", "shared"]
Head = Literal["conv", "token"]
Penalty = Literal["none", "r1", "approximate_r1", "approximate_r1_r2"]


@dataclass(frozen=True)
class LADDConfig:
    """Settings of LADD; the defaults are Nitro-SD2.1's.

    Attributes:
        taps: what the discriminator sees of the teacher: names of submodules, or depths in (0, 1].
        head: what stands on each map: "conv" (Nitro-SD2.1) or "token" (Nitro-PixArt, for transformers).
        head_width: hidden channels of a head; null is a quarter of the map's channels for "conv", and all
            of them for "token".
        reconstruction: the losses between the student's latent and the teacher's, by name, each with its weight or
            its settings, as in {smooth_l1: 1.0, latent_ssim: {weight: 0.2, data_range: 8}}; `decode: true` takes
            a loss between the decoded pictures. {} leaves it out.
        adversarial: the adversarial loss by name: non_saturating, hinge, least_squares, relativistic.
        adversarial_weight: its weight in the student's loss; 0 trains no discriminator.
        weigh_by_gap: weight each sample's adversarial term by how much higher the discriminator's logit of the
            teacher's latent is than that of the student's, at equal timestep and noise, within [0, 1]. A
            discriminator at chance then leaves the student to the reconstruction; without it, it pushes with full
            weight in no particular direction, once the reconstruction's gradient has become small.
        penalty: what keeps the discriminator smooth: "r1" on the real features that the heads see,
            "approximate_r1" on real latents, "approximate_r1_r2" on real and generated ones, or "none".
        penalty_weight: its weight in the discriminator's loss.
        penalty_scale: standard deviation of the approximate ones' perturbation, in the latents' unit.
        fresh_fraction: share of a batch that gets fresh noise and the adversarial term only, the rest
            gets its pair and the reconstruction only; 0 puts both terms on the pairs (Nitro).
        warmup_steps: steps of reconstruction alone before the adversarial term begins.
        discriminator_timesteps: law of the discriminator's timesteps in u: uniform, logit_normal or shifted.
        misaligned_negatives: show the discriminator real latents with another sample's prompt as
            fakes; the sample before's of the micro-batch (over all processes), where its prompt is another
            one.
        updates: "alternating" trains the student and the discriminator in turns; "shared" trains
            both at every step on one student sample.
        num_inference_steps: steps of the student.
        timestep: the timestep a one-step student is told while it is fed pure noise (400 for
            Nitro-PixArt); null is the schedule's last.
        seed: of the discriminator's initial weights.
    """

    taps: tuple[str | float, ...] = ("down_blocks.0", "down_blocks.1", "mid_block")
    head: Head = "conv"
    head_width: int | None = None
    reconstruction: dict[str, Any] = field(default_factory=lambda: {"smooth_l1": 1.0})
    adversarial: str = "non_saturating"
    adversarial_weight: float = 1.0
    weigh_by_gap: bool = False
    penalty: Penalty = "none"
    penalty_weight: float = 1.0
    penalty_scale: float = 0.1
    fresh_fraction: float = 0.0
    warmup_steps: int = 0
    discriminator_timesteps: dict[str, Any] = field(
        default_factory=lambda: {"uniform": {"ranges": [[0.0, 0.75]]}}
    )
    misaligned_negatives: bool = False
    updates: Updates = "alternating"
    num_inference_steps: int = 1
    timestep: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, adversarial_weight=0, penalty_weight=0, penalty_scale=0)
        check_fields(self, warmup_steps=0, num_inference_steps=1)
        if not self.reconstruction and self.adversarial_weight == 0:
            raise ValueError("reconstruction is {} and adversarial_weight 0; nothing to do.")
        if not self.reconstruction and self.warmup_steps > 0:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but warm-up is reconstruction alone and there is "
                "none; leave one of them out."
            )
        if not 0 <= self.fresh_fraction <= 1:
            raise ValueError(f"fresh_fraction is {self.fresh_fraction}; it must be in [0, 1].")
        if self.timestep is not None and self.num_inference_steps > 1:
            raise ValueError(
                f"timestep={self.timestep} is for a one-step student, but num_inference_steps is "
                f"{self.num_inference_steps}; leave one of them out."
            )
        if self.reconstruction:
            check_losses(self.reconstruction)
        named_adversarial(self.adversarial)
        named_law(self.discriminator_timesteps)


class LADD(DistillationMethod):
    """Nitro's method on the contract of `nitrodistill.method`.

    Args:
        student: the denoiser that is trained; any Denoiser whose `module` can be assigned.
        discriminator: heads on a frozen backbone; None trains by reconstruction alone.
        plan: the student's steps.
        config: weights, mix, turns.
        reconstruction: loss between latents; None makes the config's.
        adversarial: the two sides of the game; None makes the config's.
        law: timestep law of the discriminator, in u; None makes the config's.

    Raises:
        ValueError: if the student cannot follow the plan, or the adversarial term has no
            discriminator.
    """

    Config: ClassVar[type[LADDConfig]] = LADDConfig

    def __init__(
        self,
        student: Denoiser,
        discriminator: LatentDiscriminator | None,
        plan: StepPlan,
        config: LADDConfig | None = None,
        *,
        reconstruction: WeightedSum | None = None,
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
        if reconstruction is None and self.config.reconstruction:
            reconstruction = named_loss(self.config.reconstruction)
        self.reconstruction: WeightedSum | None = reconstruction
        self.adversarial: AdversarialLoss = adversarial or named_adversarial(
            self.config.adversarial
        )
        self.law: TimestepLaw = law or named_law(self.config.discriminator_timesteps)

    @classmethod
    def build(cls, config: LADDConfig, cast: Cast) -> LADD:
        """Builds the discriminator on the teacher, and the plan on the student's schedule."""
        student, discriminator, loss = cast.student, None, None
        if config.adversarial_weight > 0:
            head = TokenHead if config.head == "token" else ConvHead
            discriminator = LatentDiscriminator(
                cast.teacher, config.taps, head=head, width=config.head_width, seed=config.seed
            )
        if config.timestep is not None:
            plan = StepPlan.from_noise(student.schedule, config.timestep)
        else:
            plan = StepPlan.from_schedule(student.schedule, config.num_inference_steps, "renoise")
        if config.reconstruction:
            loss = named_loss(config.reconstruction, decode=cast.decode)
        return cls(student, discriminator, plan, config, reconstruction=loss)

    def trainable(self) -> Mapping[str, Role]:
        """The student, and the discriminator's heads where there is one."""
        roles = {"student": Role(self.student)}
        if self.discriminator is not None:
            roles["discriminator"] = Role(self.discriminator, "heads")
        return roles

    def frozen(self) -> Mapping[str, Frozen]:
        """The teacher under the heads, and the networks of perceptual losses."""
        found = {}
        if self.discriminator is not None:
            taps = self.discriminator.taps
            found["teacher"] = Frozen(taps.denoiser.module, taps.names)
        if self.reconstruction is not None:
            found["reconstruction"] = Frozen(self.reconstruction, as_it_is=True)
        return found

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
        pairs = batch.pairs
        assert pairs is not None, "LADD reads pairs"
        judged, paired = self._split(batch, draws)
        noise, step = pairs.noise, self.plan.steps[0]
        if judged is not None and judged.there and self.config.fresh_fraction > 0:
            fresh = judged.draws.normal("fresh", noise.shape[1:], noise.device)
            noise = noise.index_copy(0, judged.rows, fresh.to(noise.dtype))
        if len(self.plan) > 1:
            step = self.plan.at(draws.uniform("step"))
        x_t = step.input.mix(pairs.x0, noise)

        x0: Tensor | None = None
        if "student" in active:
            with self._frozen_heads():
                x0 = predict_x0(self.student, step, x_t, pairs.condition)
                yield "student", self._student_terms(x0, judged, paired)
        if "discriminator" in active and judged is not None:
            fake = self._generate(judged, step, x_t) if x0 is None else x0[judged.rows]
            yield "discriminator", self._discriminator_terms(fake.detach(), judged, batch, draws)

    def _student_terms(self, x0: Tensor, judged: _Rows | None, paired: _Rows | None) -> Terms:
        """lambda_r reconstruction(x0, z) over the paired + lambda_a generator(D(x0)) over the judged."""
        total, parts = x0.new_zeros(()), dict[str, Tensor]()
        if paired is not None and self.reconstruction is not None:
            found = self.reconstruction.parts(x0[paired.rows], paired.x0.to(x0.dtype))
            per_sample = self.reconstruction.weigh(found)
            total = total + paired.mean(per_sample)
            parts |= paired.shown(
                {"reconstruction": per_sample, **(found if len(found) > 1 else {})}
            )
        if judged is not None:
            z = judged.x0.to(x0.dtype)
            fake, real = self._judge(x0[judged.rows], judged, "generator"), None
            if self.adversarial.needs_real:
                real = self._judge(z, judged, "generator.real")
            per_sample = self.adversarial.generator(fake, real)
            if self.config.weigh_by_gap:
                gap = self._gap(z, fake, judged)
                per_sample = gap * per_sample
                parts |= judged.shown({"gap": gap})
            total = total + self.config.adversarial_weight * judged.mean(per_sample)
            parts |= judged.shown({"adversarial": per_sample})
        return Terms(total, parts)

    def _discriminator_terms(self, x0: Tensor, judged: _Rows, batch: Batch, draws: Draws) -> Terms:
        """discriminator(D(z), D(x0)); where there is a mismatch, x0 and it are half of the fakes each."""
        config, z = self.config, judged.x0.to(x0.dtype)
        features = self._features(z, judged, "real")
        if config.penalty == "r1":
            features = tuple(f.detach().requires_grad_() for f in features)
        real, fake = self._heads(features), self._judge(x0, judged, "fake")
        per_sample = self.adversarial.discriminator(real, fake)
        others = self._mismatched(batch, judged, draws) if config.misaligned_negatives else None
        if others is not None:
            latents, differ = others
            wrong = self._judge(latents.to(x0.dtype), judged, "misaligned")
            both = (per_sample + self.adversarial.discriminator(real, wrong)) / 2
            per_sample = both if differ is None else torch.where(differ, both, per_sample)
        shown = {"discriminator": per_sample}
        total = judged.mean(per_sample)
        if config.penalty != "none":
            if config.penalty == "r1":
                shown["penalty"] = gradient_penalty(real, features)
            else:
                shown["penalty"] = self._moved(z, real, judged, "real")
            if config.penalty == "approximate_r1_r2":
                shown["penalty"] = shown["penalty"] + self._moved(x0, fake, judged, "fake")
            total = total + config.penalty_weight * judged.mean(shown["penalty"])
        shown |= {"logit_real": _mean_logit(real), "logit_fake": _mean_logit(fake)}
        return Terms(total, judged.shown(shown))

    def _moved(self, x0: Tensor, logits: tuple[Tensor, ...], judged: _Rows, name: str) -> Tensor:
        """The approximate penalty: both passes at the same timestep and noise, which depend on the name alone."""
        return approximate_gradient_penalty(
            lambda moved: self._judge(moved, judged, name),
            x0,
            scale=self.config.penalty_scale,
            noise=judged.draws.normal(f"{name}.moved", x0.shape[1:], x0.device).to(x0.dtype),
            logits=logits,
        )

    def _judge(self, x0: Tensor, judged: _Rows, name: str) -> tuple[Tensor, ...]:
        """The discriminator's logits of latents, noised at timesteps that are drawn under this name."""
        return self._heads(self._features(x0, judged, name))

    @torch.no_grad()
    def _gap(self, z: Tensor, fake: tuple[Tensor, ...], judged: _Rows) -> Tensor:
        """How much more real than the student's latents the teacher's are found, `(B,)` in [0, 1]."""
        real = self._judge(z, judged, "generator")  # the timesteps and the noise of the student's
        return (_mean_logit(real) - _mean_logit(fake)).clamp(0, 1)

    def _features(self, x0: Tensor, judged: _Rows, name: str) -> tuple[Tensor, ...]:
        assert self.discriminator is not None
        taps, draws = self.discriminator.taps, judged.draws
        schedule = taps.denoiser.schedule
        t = schedule.timestep(self.law(draws.uniform(f"{name}.t"))).to(x0.device)
        noise = draws.normal(f"{name}.noise", x0.shape[1:], x0.device).to(x0.dtype)
        return taps.features(schedule(t).mix(x0, noise), t, judged.condition)

    def _heads(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        assert self.discriminator is not None
        return self.discriminator.heads(features)

    @torch.no_grad()
    def _generate(self, judged: _Rows, step: Step, x_t: Tensor) -> Tensor:
        return predict_x0(self.student, step.take(judged.rows), x_t[judged.rows], judged.condition)

    def _is_adversarial(self, step: int) -> bool:
        return self.discriminator is not None and step >= self.config.warmup_steps

    def _split(self, batch: Batch, draws: Draws) -> tuple[_Rows | None, _Rows | None]:
        """Who gets the adversarial term and who the reconstruction; None: nobody at this step."""
        fraction = self.config.fresh_fraction if self._is_adversarial(draws.step) else 0.0
        fresh = is_fresh(batch.index, fraction)
        if fraction == 0:
            everyone = _Rows.cut(batch, draws, ~fresh, 1.0)
            return everyone if self._is_adversarial(draws.step) else None, everyone
        paired = None if fraction == 1 else _Rows.cut(batch, draws, ~fresh, 1 - fraction)
        return _Rows.cut(batch, draws, fresh, fraction), paired

    def _mismatched(
        self, batch: Batch, judged: _Rows, draws: Draws
    ) -> tuple[Tensor, Tensor | None] | None:
        """Each sample's misaligned real latent, and where its prompt is another one (None: not known).

        It is the one before it among those judged in the whole micro-batch, whichever process has it.
        """
        assert batch.pairs is not None
        index, x0 = draws.gather(batch.index), draws.gather(batch.pairs.x0)
        fraction = self.config.fresh_fraction
        rows = (
            range(len(index))
            if fraction == 0
            else is_fresh(index, fraction).nonzero().flatten().tolist()
        )
        if len(rows) < 2:
            return None
        before = dict(zip(index[list(rows)].tolist(), [rows[-1], *rows[:-1]], strict=True))
        chosen = [before.get(number, 0) for number in judged.draws.index.tolist()]
        place = torch.tensor(chosen, device=x0.device)
        ids = batch.pairs.condition.prompt_ids
        if ids is None:
            return x0[place], None
        return x0[place], ids[judged.rows] != draws.gather(ids)[place]

    def _frozen_heads(self) -> AbstractContextManager[None]:
        if self.discriminator is None:
            return nullcontext()
        return frozen_within(self.discriminator.heads)


def is_fresh(index: Tensor, fraction: float) -> Tensor:
    """Which samples get fresh noise, `(B,)` bool, a function of their numbers alone.

    Sample n is fresh where floor((n + 1) f) > floor(n f): evenly spread, whatever the batches.
    """
    n = index.double()
    return torch.floor((n + 1) * fraction + 1e-9) > torch.floor(n * fraction + 1e-9)


@dataclass(frozen=True)
class _Rows:
    """Some samples of a batch of pairs, cut out once.

    Where there are none, the first one stands in and counts nothing, because every process must call the same
    networks.

    Attributes:
        rows: their places in the batch.
        x0: the teacher's latents.
        condition: their prompts.
        draws: their draws.
        expected: how many there are in a batch on average.
        there: whether there are any.
    """

    rows: Tensor
    x0: Tensor
    condition: Condition
    draws: Draws
    expected: float
    there: bool

    @classmethod
    def cut(cls, batch: Batch, draws: Draws, chosen: Tensor, share: float) -> _Rows:
        """The samples where `chosen` `(B,)`, on average this share of all."""
        assert batch.pairs is not None
        x0, condition, expected = batch.pairs.x0, batch.pairs.condition, len(batch) * share
        there = bool(chosen.any())
        rows = chosen.nonzero().flatten() if there else torch.tensor([0])
        place = rows.to(x0.device)
        if len(rows) == len(batch) and there:
            return cls(place, x0, condition, draws, expected, True)
        return cls(place, x0[place], condition.index(place), draws.take(rows), expected, there)

    def mean(self, per_sample: Tensor) -> Tensor:
        """Their part of the mean over many batches."""
        return float(self.there) * per_sample.sum() / self.expected

    def shown(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is logged of them."""
        return {name: part.detach() for name, part in parts.items()} if self.there else {}


def _mean_logit(logits: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([scale.float().mean(1) for scale in logits]).mean(0)
