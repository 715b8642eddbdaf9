"""Distribution matching distillation: DMD, DMD2 and what came after, in one step and several.

A student G, which starts as a copy of the teacher T, turns noise into a latent x0 = G(eps, c). A critic F, another
copy, learns by denoising what the student draws; then the difference of teacher and critic at a noised x0 is that
of the scores of data and student, and moves the student's distribution to the teacher's, without pairs:

    x_t = alpha_t x0 + sigma_t eps'
    L_G = matching, of gradient (F(x_t) - T(x_t)) / mean |x0 - T(x_t)|     losses.distribution_matching
        + w generator(D(x_t'))           a discriminator on features of F or T, against data
        + w regression(x0, z)            on pairs (eps, z) of noise and the teacher's latent
    L_F = w_t (F(x_t) - x0)^2 + w discriminator(D(z_t'), D(x_t''))

In several steps the student is trained on inputs that it made itself (*backward simulation*): the sampler runs,
without gradients, to a step that is drawn for all samples, and this one step has the gradient.

Yin et al. 2024, "One-step Diffusion with Distribution Matching Distillation" (arXiv 2311.18828, DMD) and "Improved
Distribution Matching Distillation for Fast Image Synthesis" (arXiv 2405.14867, DMD2); decoupled guidance and
f-divergences: `losses.distribution_matching`; IDA (`critic.follow`): Ge et al. 2025, SenseFlow (arXiv 2506.00523).

Departure from DMD2's published code: the discriminator's heads have an optimizer of their own. With the critic's
features their loss reaches the critic as well, by `critic_weight`, and the gradients are those of the joint loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from nitrodistill.discriminator import AdversarialGame, LatentDiscriminator, Noising, named_head
from nitrodistill.losses import Side, WeightedSum
from nitrodistill.losses import functional as F
from nitrodistill.losses.named import named_adversarial, named_loss, named_penalties
from nitrodistill.method import (
    Cast,
    DistillationMethod,
    Draws,
    Frozen,
    Role,
    check_build,
    frozen_within,
)
from nitrodistill.methods.dmd2.config import (
    CriticConfig,
    DecoupledConfig,
    DMD2Config,
    GANConfig,
    RegressionConfig,
)
from nitrodistill.methods.dmd2.critic import check_critic, critic_error, critic_signal, ends_of
from nitrodistill.methods.dmd2.inputs import Inputs, latents_of, make_inputs, plans_of
from nitrodistill.models import Guided
from nitrodistill.prediction import check_convertible, to_eps, to_x0
from nitrodistill.sampling import Step, StepPlan, predict_x0
from nitrodistill.timesteps import TimestepLaw, named_law
from nitrodistill.types import Batch, Condition, Denoiser, Part, Terms

__all__ = [
    "DMD2",
    "CriticConfig",
    "DMD2Config",
    "DecoupledConfig",
    "GANConfig",
    "RegressionConfig",
]


class DMD2(DistillationMethod):
    """Distribution matching on the contract of `nitrodistill.method`; see the module for the equations.

    Args:
        config: the settings.
        cast: teacher, student, and "critic", which starts as the teacher. All are read as x0, so the student may
            predict another thing than the teacher.

    Raises:
        ValueError: if the settings do not fit the networks.

    Example:
        >>> cast = nd.Cast.of(teacher.denoiser, teacher.denoiser.copy(), {"critic": teacher.denoiser.copy()})
        >>> list(nd.DMD2.build(nd.DMD2Config(), cast).trainable())
        ['student', 'critic']
    """

    Config: ClassVar[type[DMD2Config]] = DMD2Config

    def __init__(self, config: DMD2Config, cast: Cast) -> None:
        check_build(config, DMD2Config, cast)
        self.config: DMD2Config = config
        self.teacher: Denoiser = cast.teacher
        self.student: Denoiser = cast.student
        self.critic: Denoiser = cast.another("critic")
        self.reads: frozenset[Part] = config.reads
        self.plan: StepPlan
        self.plans: tuple[StepPlan, ...]
        self.plan, self.plans = plans_of(config, self.student.schedule)
        self.law: TimestepLaw = named_law(config.timesteps)
        self.critic_law: TimestepLaw = named_law(config.critic.timesteps)
        self.guided: Guided | None = None
        self.guidance_law: TimestepLaw | None = None
        if config.guidance > 1:
            self.guided = _guided(config, cast)
        if config.decoupled is not None:
            self.guidance_law = named_law(config.decoupled.timesteps)
        self.game: AdversarialGame | None = None
        if config.gan is not None:
            self.game = _make_game(config.gan, self.critic, self.teacher)
        self.discriminator: LatentDiscriminator | None = self.game and self.game.discriminator
        self.regression: WeightedSum | None = None
        if config.regression is not None:
            self.regression = named_loss(
                config.regression.losses, decode=cast.decode, features=cast.features
            )
        self._tapped = cast.tapped
        self._check()

    @classmethod
    def build(cls, config: DMD2Config, cast: Cast) -> DMD2:
        """See the class."""
        return cls(config, cast)

    def trainable(self) -> Mapping[str, Role]:
        """Student and critic, and the discriminator's heads where there is one."""
        follow = self.config.critic.follow
        critic = Role(self.critic)
        if follow is not None:
            average = self.config.critic.follow_average
            critic = Role(self.critic, follows="student", decay=follow, follows_average=average)
        roles = {"student": Role(self.student), "critic": critic}
        if self.discriminator is not None:
            roles["discriminator"] = Role(self.discriminator, "heads")
        return roles

    def frozen(self) -> Mapping[str, Frozen]:
        """The teacher, and the networks of perceptual losses."""
        taps = ()
        gan, discriminator = self.config.gan, self.discriminator
        if gan is not None and discriminator is not None and gan.features == "teacher":
            taps = discriminator.taps.names
        found = {"teacher": Frozen(self.teacher.module, (*taps, *self._tapped))}
        if self.regression is not None:
            found["regression"] = Frozen(self.regression, as_it_is=True)
        return found

    def active(self, step: int) -> tuple[str, ...]:
        """The student alone during warm-up; then by the two-time-scale rule, see `DMD2Config.updates`."""
        others = ("critic",) if self.discriminator is None else ("critic", "discriminator")
        step, updates = step - self.config.warmup_steps, self.config.critic.updates
        if step < 0:
            return ("student",)
        if self.config.updates == "shared":
            return others if step % updates else ("student", *others)
        return others if step % (updates + 1) else ("student",)

    def _updates_before(self, step: int) -> int:
        """How often critic and discriminator are `active` before a step, at which they are."""
        step -= self.config.warmup_steps
        if self.config.updates == "alternating":
            step -= step // (self.config.critic.updates + 1) + 1  # turns of the student
        return step

    def losses(
        self, batch: Batch, active: Sequence[str], draws: Draws
    ) -> Iterator[tuple[str, Terms]]:
        """Yields the terms of student, critic and discriminator; see `DistillationMethod.losses`."""
        made = make_inputs(self.config, self.student, self.plans, batch, draws)
        with ExitStack() as stack:
            if "student" in active:
                stack.enter_context(frozen_within(self.critic.module))
                stack.enter_context(self._frozen_heads())
            else:
                stack.enter_context(torch.no_grad())
            x0 = predict_x0(self.student, made.step, made.x_t, made.condition)
            if "student" in active:
                yield "student", self._student_terms(x0, made, batch, draws)
        x0 = x0.detach()
        if "critic" not in active:
            return
        with self._frozen_heads():
            seen = self._seen(x0, made, batch, draws)
            yield "critic", self._critic_terms(x0, made, seen, draws)
        if self.game is not None:
            yield "discriminator", self._discriminator_terms(x0, made, batch, seen, draws)

    def _noised(
        self, x0: Tensor, law: TimestepLaw, draws: Draws, name: str, most: float = 1.0
    ) -> tuple[Step, Tensor, Tensor]:
        """x0 at a timestep that is drawn under this name, up to the fraction `most`; and its noise."""
        schedule = self.teacher.schedule
        t = schedule.timestep(law(draws.uniform(f"{name}.t")) * most).to(x0.device)
        noise = draws.normal(f"{name}.noise", x0.shape[1:], x0.device).to(x0.dtype)
        scales = schedule(t)
        return Step(t, scales, scales), scales.mix(x0, noise), noise

    # the student's terms

    def _student_terms(self, x0: Tensor, made: Inputs, batch: Batch, draws: Draws) -> Terms:
        parts, weights, shown = dict[str, Tensor](), dict[str, float](), dict[str, Tensor]()
        if draws.step >= self.config.warmup_steps:
            parts, shown["signal"] = self._matching(x0, made, draws)
            if self.game is not None and self.config.gan is not None:
                z, text = self._real(batch, x0)
                parts["adversarial"], _ = self.game.generator(
                    x0, z, made.condition, draws, z_condition=text
                )
                weights["adversarial"] = self.config.gan.weight
            if self.config.off_grid_weight > 0:
                parts["off_grid"] = self._off_grid(x0, made, draws)
                weights["off_grid"] = self.config.off_grid_weight
        terms = {name: weights.get(name, 1.0) * part.mean() for name, part in parts.items()}
        if made.rows is not None:
            terms["regression"], values = self._regression(x0, made.rows, batch, draws)
            parts = parts | values
        flat = x0.detach().flatten(1)
        shown |= {name: part.detach() for name, part in parts.items()}
        shown |= {"x0_mean": flat.mean(1), "x0_std": flat.std(1, correction=0)}
        return Terms(sum(terms.values(), x0.new_zeros(())), shown, terms)

    def _matching(self, x0: Tensor, made: Inputs, draws: Draws) -> tuple[dict[str, Tensor], Tensor]:
        """The distribution-matching term, and that of guidance, where it is apart; and `critic_signal`."""
        config, c = self.config, made.condition
        step, x_t, _ = self._noised(x0.detach(), self.law, draws, "matching")
        with torch.no_grad():
            fake = predict_x0(self.critic, step, x_t, c)
            seen = self._taught(step, x_t, c, guided=config.decoupled is None)
            weight = self._weight(step, x_t, c)
        found = {"matching": self._matched(x0, seen.guided, fake, seen.conditional, weight)}
        signal = critic_signal(x0, seen.conditional, fake)
        if config.decoupled is not None:
            assert self.guidance_law is not None
            step, x_t, _ = self._noised(
                x0.detach(), self.guidance_law, draws, "guidance", made.fraction
            )
            with torch.no_grad():
                seen = self._taught(step, x_t, c)
            assert seen.null is not None
            normalise = config.normaliser != "none"
            found["guidance"] = F.guidance_matching(
                x0,
                seen.conditional,
                seen.null,
                config.guidance,
                floor=config.decoupled.floor if normalise else 0.0,
                normalise=normalise,
            )
        return found, signal

    def _matched(
        self, x0: Tensor, real: Tensor, fake: Tensor, conditional: Tensor, weight: Tensor | None
    ) -> Tensor:
        config = self.config
        return F.distribution_matching(
            x0,
            real,
            fake,
            reference=conditional if config.normaliser == "conditional" else None,
            floor=config.normaliser_floor,
            normalise=config.normaliser != "none",
            weight=weight,
        )

    def _taught(self, step: Step, x_t: Tensor, c: Condition, guided: bool = True) -> _Taught:
        """What the teacher says of x0: guided, with the prompt, and (in one batch with it) without."""
        if self.guided is None or not guided:
            conditional = predict_x0(self.teacher, step, x_t, c)
            return _Taught(conditional, conditional, None)
        null, conditional = self.guided.parts(x_t, step.t, c)
        together = self.guided.combine(null, conditional, step.t)
        kind = self.teacher.prediction_type
        return _Taught(*(to_x0(p, x_t, step.output, kind) for p in (together, conditional, null)))

    def _weight(self, step: Step, x_t: Tensor, c: Condition) -> Tensor | None:
        """alpha_t, and the weight of the f-divergence at x_t."""
        weight = step.output.alpha.to(x_t.dtype) if self.config.alpha_weight else None
        if self.config.divergence == "reverse_kl":
            return weight
        assert self.discriminator is not None
        ratio = F.f_divergence_weight(self.discriminator(x_t, step.t, c), self.config.divergence)
        return ratio if weight is None else ratio * weight

    def _off_grid(self, x0: Tensor, made: Inputs, draws: Draws) -> Tensor:
        """Matching, without guidance, of what the student says where its own step leads, between the steps."""
        schedule, c = self.student.schedule, made.condition
        t = schedule.timestep(self.law(draws.uniform("off_grid.t"))).to(x0.device)
        scales = schedule(t)
        eps = to_eps(x0.detach(), made.x_t, made.step.output, "sample")
        step = Step(t, scales, scales)
        there = predict_x0(self.student, step, scales.mix(x0.detach(), eps), c)
        near, x_t, _ = self._noised(there.detach(), self.law, draws, "off_grid.matching")
        with torch.no_grad():
            fake = predict_x0(self.critic, near, x_t, c)
            real = predict_x0(self.teacher, near, x_t, c)
        return self._matched(there, real, fake, real, None)

    def _regression(
        self, x0: Tensor, chosen: Tensor, batch: Batch, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean over the rows that are pairs, a share of all on average; and what is logged.

        Where there are none the first row stands in and counts nothing: a loss may call the teacher, and every
        process must do so.
        """
        assert self.regression is not None
        assert self.config.regression is not None
        there = bool(chosen.any())
        rows = chosen.nonzero().flatten() if there else torch.tensor([0])
        self.regression.draw(draws.take(rows).uniform, "regression")
        found = self.regression.parts(x0[rows], latents_of(batch, "pairs").x0[rows].to(x0.dtype))
        per_sample = self.regression.weigh(found)
        warm = draws.step < self.config.warmup_steps
        expected = len(x0) * (1.0 if warm else self.config.regression.share)
        shown = {"regression": per_sample, **(found if len(found) > 1 else {})}
        total = float(there) * per_sample.sum() / expected
        return self.config.regression.weight * total, shown if there else {}

    # critic and discriminator

    def _critic_terms(
        self, x0: Tensor, made: Inputs, seen: Mapping[str, Side], draws: Draws
    ) -> Terms:
        """Denoising of the student's samples, and with the critic's features the discriminator's loss."""
        step, _, noise = self._noised(x0, self.critic_law, draws, "critic")
        weight = self.config.critic.weight
        error = critic_error(self.critic, weight, step, x0, noise, made.condition)
        terms, parts = {"critic": error.mean()}, {"critic": error.detach()}
        if seen:
            assert self.game is not None
            assert self.config.gan is not None
            opinion = self.game.adversarial.discriminator(seen["real"].logits, seen["fake"].logits)
            terms["adversarial"] = self.config.gan.critic_weight * opinion.mean()
            parts["adversarial"] = opinion.detach()
        return Terms(sum(terms.values(), error.new_zeros(())), parts, terms)

    def _discriminator_terms(
        self, x0: Tensor, made: Inputs, batch: Batch, seen: Mapping[str, Side], draws: Draws
    ) -> Terms:
        """The heads' loss and the penalties that are due."""
        assert self.game is not None
        number = self._updates_before(draws.step)
        z, text = self._real(batch, x0)
        found = self.game.update(x0, z, made.condition, draws, number, z_condition=text, seen=seen)
        return Terms(found.total(torch.mean), self.game.shown(found))

    def _seen(self, x0: Tensor, made: Inputs, batch: Batch, draws: Draws) -> dict[str, Side]:
        """What is said of data and of samples, where the critic learns from it; else nothing."""
        gan = self.config.gan
        if self.game is None or gan is None or gan.features != "critic" or gan.critic_weight == 0:
            return {}
        z, text = self._real(batch, x0)
        return {
            "real": self.game.side(z, text, draws, "real"),
            "fake": self.game.side(x0, made.condition, draws, "fake"),
        }

    def _real(self, batch: Batch, x0: Tensor) -> tuple[Tensor, Condition]:
        """The discriminator's data, with their own prompts."""
        assert self.config.gan is not None
        data = latents_of(batch, self.config.gan.real)
        return data.x0.to(x0.dtype), data.condition

    def _frozen_heads(self) -> AbstractContextManager[None]:
        if self.discriminator is None:
            return nullcontext()
        return frozen_within(self.discriminator.heads)

    def _check(self) -> None:
        """Refuses what would divide by zero, on the host."""
        with _told_of("student"):
            for plan in (self.plan, *self.plans):
                plan.check(self.student.prediction_type)
            if self.config.off_grid_weight > 0:
                scales = ends_of(self.law, self.student.schedule)
                check_convertible(scales, self.student.prediction_type)
        for role, network in (("teacher", self.teacher), ("critic", self.critic)):
            with _told_of(role):
                for law in filter(None, (self.law, self.guidance_law)):
                    scales = ends_of(law, self.teacher.schedule)
                    check_convertible(scales, network.prediction_type)
        check_critic(self.critic, self.student, self.config.critic, self.critic_law)


@contextmanager
def _told_of(role: str) -> Iterator[None]:
    """Says whose prediction it is that cannot be read."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the {role}'s prediction: {error}") from None


class _Taught(NamedTuple):
    """The teacher's x0, `(B, C, H, W)` each."""

    guided: Tensor
    conditional: Tensor
    null: Tensor | None


def _make_game(gan: GANConfig, critic: Denoiser, teacher: Denoiser) -> AdversarialGame:
    of_critic, law = gan.features == "critic", named_law(gan.timesteps)
    discriminator = LatentDiscriminator(
        critic if of_critic else teacher,
        gan.taps,
        head=named_head(gan.head),
        width=gan.head_width,
        conditioning=gan.conditioning,
        seed=gan.seed,
        freeze=not of_critic,
    )
    noising = Noising(law, law, law, shared=gan.noising == "shared", augmentation=gan.augmentation)
    adversarial, penalties = named_adversarial(gan.adversarial), named_penalties(gan.penalty)
    return AdversarialGame(discriminator, noising, adversarial, penalties)


def _guided(config: DMD2Config, cast: Cast) -> Guided:
    if cast.empty is None:
        raise ValueError(
            f"guidance is {config.guidance}, but this teacher has no condition that stands for none; set it to 1 "
            "(and leave out decoupled)."
        )
    return Guided(
        cast.teacher,
        config.guidance,
        cast.empty,
        rescale=config.guidance_rescale,
        rescale_by=config.rescale_by,
    )
