"""Latent adversarial diffusion distillation, in two forms: AMD's Nitro models, and the paper's.

A student G, which starts as a copy of the teacher, turns noise into a latent in one step (or a few). Pairs
(eps, z) of noise and the teacher's own latent for the same prompt c are precomputed. With x0 = G(eps, c),
x0 and z noised at random timesteps, and D the heads on the frozen teacher's features:

    L_G = lambda_r smooth_l1(x0, z) + lambda_a generator(D(alpha_t x0 + sigma_t eps', t, c))
    L_D = discriminator(D(alpha_t z + sigma_t eps'', t, c), D(alpha_t' x0 + sigma_t' eps''', t', c))

**Nitro**: lambda_r = lambda_a = 1, non-saturating loss, t uniform on 0..749, strict alternation of G and D,
"misaligned" negatives (real latents with another sample's prompt, which share the fake side half and half).

**The paper**: no reconstruction, as the data are the teacher's own; heads behind every attention block (`taps:
every_block`), conditioned; t biased to high noise (`discriminator_timesteps`); up to four steps of the student,
chosen with given probabilities (`step_probabilities`).

Departure: the adversarial term may see *fresh* noise, for which no pair exists (`fresh_fraction`). On the
pairs' own noise a student of few pairs memorises, D stays at chance and the adversarial term does
nothing; so the regression alone sees the pairs. docs/demo_quality.md has what that gives.

Departure: with `balanced`, lambda_a follows what D can tell and the reconstruction's gradient (`losses.balance`).

Sauer et al. 2024, "Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion Distillation";
AMD, "Nitro diffusion models", 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor

from nitrodistill.discriminator import AdversarialGame, LatentDiscriminator, Noising
from nitrodistill.losses import AdversarialLoss, LazyPenalty, Side, WeightedSum
from nitrodistill.losses.balance import balance
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
from nitrodistill.methods.ladd.config import LADDConfig, make_noising
from nitrodistill.rows import Misaligned, Rows, is_chosen, too_few
from nitrodistill.sampling import Step, StepPlan, predict_x0
from nitrodistill.timesteps import Histogram
from nitrodistill.types import Batch, Denoiser, Terms

__all__ = ["LADD", "LADDConfig", "make_noising"]


class LADD(DistillationMethod):
    """Both forms on the contract of `nitrodistill.method`.

    Args:
        student: the denoiser that is trained; any Denoiser whose `module` can be assigned.
        discriminator: heads on a frozen backbone; None trains by reconstruction alone.
        plan: the student's steps.
        config: weights, mix, turns.
        reconstruction: loss between latents; None makes the config's.
        adversarial: the two sides of the game; None makes the config's.
        penalties: of the discriminator, by name; None makes the config's.
        noising: timestep laws of the discriminator, and what is shared; None makes the config's.

    Raises:
        ValueError: if the student cannot follow the plan, the adversarial term has no discriminator, or a penalty
            no head that is trained.

    Example:
        >>> student = teacher.denoiser.copy()
        >>> discriminator = nd.LatentDiscriminator(teacher.denoiser, "mid_block", width=32)
        >>> plan = nd.StepPlan.from_schedule(student.schedule)
        >>> method = nd.LADD(student, discriminator, plan, nd.LADDConfig(adversarial="hinge"))
        >>> list(method.trainable())
        ['student', 'discriminator']
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
        penalties: Mapping[str, LazyPenalty] | None = None,
        noising: Noising | None = None,
    ) -> None:
        self.config: LADDConfig = config or LADDConfig()
        check_build(self.config, LADDConfig, plan=plan, student=student)
        if self.config.adversarial_weight > 0 and discriminator is None:
            raise ValueError(
                "the adversarial term needs a discriminator; pass one, or set adversarial_weight=0."
            )
        self.student: Denoiser = student
        self.discriminator: LatentDiscriminator | None = None
        self.game: AdversarialGame | None = None
        if discriminator is not None and self.config.adversarial_weight > 0:
            self.discriminator = discriminator
            self.game = AdversarialGame(
                discriminator,
                noising or make_noising(self.config),
                adversarial or named_adversarial(self.config.adversarial),
                named_penalties(self.config.penalty) if penalties is None else penalties,
            )
        self.plan: StepPlan = plan.check(student.prediction_type)
        if reconstruction is None and self.config.reconstruction:
            reconstruction = named_loss(self.config.reconstruction)
        self.reconstruction: WeightedSum | None = reconstruction
        self._teacher: Frozen | None = None
        if self.discriminator is not None:
            taps = self.discriminator.taps
            self._teacher = Frozen(taps.denoiser.module, taps.names)
        self._misaligned: Misaligned = Misaligned()
        self._counted: bool = False

    @classmethod
    def build(cls, config: LADDConfig, cast: Cast) -> LADD:
        """Builds the discriminator on the teacher, and the plan on the student's schedule."""
        check_build(config, LADDConfig, cast)
        student, discriminator, loss = cast.student, None, None
        if config.adversarial_weight > 0:
            discriminator = LatentDiscriminator(
                cast.teacher,
                config.taps,
                head=config.head,
                width=config.head_width,
                conditioning=config.conditioning,
                seed=config.seed,
            )
        if config.timestep is not None:
            plan = StepPlan.from_noise(student.schedule, config.timestep)
        else:
            plan = StepPlan.from_schedule(student.schedule, config.num_inference_steps, "renoise")
        if config.reconstruction:
            loss = named_loss(config.reconstruction, decode=cast.decode, features=cast.features)
        made = cls(student, discriminator, plan, config, reconstruction=loss)
        if cast.tapped:
            names = () if discriminator is None else discriminator.taps.names
            made._teacher = Frozen(cast.teacher.module, (*names, *cast.tapped))
        return made

    def trainable(self) -> Mapping[str, Role]:
        """The student, and the discriminator's heads where there is one."""
        roles = {"student": Role(self.student)}
        if self.discriminator is not None:
            roles["discriminator"] = Role(self.discriminator, "heads")
        return roles

    def frozen(self) -> Mapping[str, Frozen]:
        """The teacher under the heads, and the networks of perceptual losses."""
        found = {} if self._teacher is None else {"teacher": self._teacher}
        if self.reconstruction is not None:
            found["reconstruction"] = Frozen(self.reconstruction, as_it_is=True)
        return found

    def active(self, step: int) -> tuple[str, ...]:
        """The student alone during warm-up; then both, or each in turn, the student first."""
        if not self._is_adversarial(step):
            return ("student",)
        if self.config.updates != "alternating":
            return ("student", "discriminator")
        return (("student", "discriminator")[(step - self.config.warmup_steps) % 2],)

    def losses(
        self, batch: Batch, active: Sequence[str], draws: Draws
    ) -> Iterator[tuple[str, Terms]]:
        """Yields the student's and the discriminator's terms; see `DistillationMethod.losses`."""
        pairs = batch.pairs
        assert pairs is not None, "LADD reads pairs"
        compared, paired = self._split(batch, draws)
        if self.config.balanced and compared is not None and not self._counted:
            self._count(batch, draws)
        noise, step = pairs.noise, self.plan.steps[0]
        if compared is not None and compared.there and self.config.fresh_fraction > 0:
            fresh = compared.draws.normal("fresh", noise.shape[1:], noise.device)
            noise = noise.index_copy(0, compared.rows, fresh.to(noise.dtype))
        if len(self.plan) > 1:
            u = draws.uniform("step")
            chances = self.config.step_probabilities
            step = self.plan.at(u if chances is None else Histogram(chances)(u))
        x_t = step.input.mix(pairs.x0, noise)

        x0: Tensor | None = None
        seen: dict[str, Side] = {}
        if "student" in active:
            with self._frozen_heads():
                x0 = predict_x0(self.student, step, x_t, pairs.condition)
                terms, seen = self._student_terms(x0, compared, paired)
                yield "student", terms
        if "discriminator" in active and compared is not None:
            fake = self._generate(compared, step, x_t) if x0 is None else x0[compared.rows].detach()
            seen = seen if self.config.updates == "shared_pass" else {}
            yield "discriminator", self._discriminator_terms(fake, seen, compared, batch, draws)

    def _student_terms(
        self, x0: Tensor, compared: Rows | None, paired: Rows | None
    ) -> tuple[Terms, dict[str, Side]]:
        """lambda_r reconstruction(x0, z) over the paired + lambda_a generator(D(x0)) over the compared."""
        balanced = self.config.balanced and compared is not None
        latents = x0.detach().requires_grad_() if balanced else x0
        terms, parts, seen = dict[str, Tensor](), dict[str, Tensor](), dict[str, Side]()
        if paired is not None and self.reconstruction is not None:
            self.reconstruction.draw(paired.draws.uniform, "reconstruction")
            found = self.reconstruction.parts(latents[paired.rows], paired.x0.to(x0.dtype))
            per_sample = self.reconstruction.weigh(found)
            terms["reconstruction"] = paired.mean(per_sample)
            parts |= paired.shown(
                {"reconstruction": per_sample, **(found if len(found) > 1 else {})}
            )
        if compared is not None and self.game is not None:
            fake, z = latents[compared.rows], compared.x0.to(x0.dtype)
            per_sample, seen = self.game.generator(fake, z, compared.condition, compared.draws)
            terms["adversarial"] = self.config.adversarial_weight * compared.mean(per_sample)
            parts |= compared.shown({"adversarial": per_sample})
            if balanced:
                gap, real = self.game.gap(z, seen, compared.condition, compared.draws)
                most, gather = self.config.adversarial_weight, compared.draws.gather
                known = gap if compared.there else gap[:0]
                terms = balance(x0, latents, terms, known, most, gather)
                parts |= compared.shown({"gap": gap})
                seen |= {"generator.real": real} if self.config.noising == "shared" else {}
        return Terms(sum(terms.values(), x0.new_zeros(())), parts, terms), seen

    def _discriminator_terms(
        self, x0: Tensor, seen: dict[str, Side], compared: Rows, batch: Batch, draws: Draws
    ) -> Terms:
        """discriminator(D(z), D(x0)) + the penalties that are due."""
        assert self.game is not None
        config, z, wrong = self.config, compared.x0.to(x0.dtype), None
        if config.misaligned_negatives:
            latents, differ = self._misaligned(batch, compared, config.fresh_fraction, draws)
            wrong = latents.to(x0.dtype), differ
        since = draws.step - config.warmup_steps
        number = since // 2 if config.updates == "alternating" else since
        found = self.game.update(
            x0, z, compared.condition, compared.draws, number, wrong=wrong, seen=seen
        )
        return Terms(found.total(compared.mean), compared.shown(self.game.shown(found)))

    @torch.no_grad()
    def _generate(self, compared: Rows, step: Step, x_t: Tensor) -> Tensor:
        return predict_x0(
            self.student, step.take(compared.places), x_t[compared.rows], compared.condition
        )

    def _count(self, batch: Batch, draws: Draws) -> None:
        """Refuses a gap of one sample, which has no standard error; once, since it waits for the device."""
        self._counted, fraction = True, self.config.fresh_fraction
        size = len(draws.gather(batch.index))
        if too_few(size, fraction):
            raise ValueError(
                "balanced wants the standard error of the discriminator's gap, and a micro-batch over all "
                f"processes has {size} (fresh_fraction {fraction}); make it large enough for two, or set "
                "balanced: false."
            )

    def _is_adversarial(self, step: int) -> bool:
        return self.discriminator is not None and step >= self.config.warmup_steps

    def _split(self, batch: Batch, draws: Draws) -> tuple[Rows | None, Rows | None]:
        """Who gets the adversarial term and who the reconstruction; None: nobody at this step."""
        fraction = self.config.fresh_fraction if self._is_adversarial(draws.step) else 0.0
        fresh = is_chosen(batch.index, fraction)
        if fraction == 0:
            everyone = Rows.cut(batch, draws, ~fresh, 1.0)
            return everyone if self._is_adversarial(draws.step) else None, everyone
        paired = None if fraction == 1 else Rows.cut(batch, draws, ~fresh, 1 - fraction)
        return Rows.cut(batch, draws, fresh, fraction), paired

    def _frozen_heads(self) -> AbstractContextManager[None]:
        if self.discriminator is None:
            return nullcontext()
        return frozen_within(self.discriminator.heads)
