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
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nitrodistill.checks import check_fields
from nitrodistill.discriminator import (
    AdversarialGame,
    Augmentation,
    Conditioned,
    LatentDiscriminator,
    Noising,
    named_head,
)
from nitrodistill.losses import AdversarialLoss, LazyPenalty, Side, WeightedSum
from nitrodistill.losses.balance import balance
from nitrodistill.losses.named import (
    check_losses,
    named_adversarial,
    named_loss,
    named_penalties,
)
from nitrodistill.method import (
    Cast,
    DistillationMethod,
    Draws,
    Frozen,
    Role,
    check_build,
    frozen_within,
)
from nitrodistill.rows import Misaligned, Rows, is_chosen
from nitrodistill.sampling import Step, StepPlan, predict_x0
from nitrodistill.timesteps import Histogram, named_law
from nitrodistill.types import Batch, Denoiser, Terms

Updates = Literal["alternating", "shared", "shared_pass"]
Taps = tuple[str | float, ...] | Literal["every_block"]
Law = dict[str, Any]


@dataclass(frozen=True)
class LADDConfig:
    """Settings of LADD; the defaults are Nitro-SD2.1's.

    Attributes:
        taps: what the discriminator sees of the teacher: names of submodules, depths in (0, 1], or every_block.
        head: what stands on each map: conv (Nitro-SD2.1), token (Nitro-PixArt, for transformers), mlp (one logit
            of the pooled map), or package.module:Class.
        head_width: hidden channels of a head; null is a quarter of the map's channels for conv, and all of them
            for the others.
        conditioning: what the heads know next to the features: timestep, text (pooled), or both.
        augmentation: of what the discriminator is shown: {flip: 0.5, translation: 0.125, crop: 0.8}; null is none.
        reconstruction: the losses between the student's latent and the teacher's, by name, each with its weight or
            its settings, as in {smooth_l1: 1.0, latent_ssim: {weight: 0.2, data_range: 8}}; `decode: true` takes
            a loss between the decoded pictures. {} leaves it out.
        adversarial: the adversarial loss by name: non_saturating, hinge, least_squares, relativistic, also with
            weights of the heads: {hinge: {weights: [1, 1, 2]}}.
        adversarial_weight: its weight in the student's loss; 0 trains no discriminator.
        balanced: take adversarial_weight as how many times the reconstruction's gradient on the student's latents
            the adversarial one may be: as many where the discriminator's mean logit of the teacher's latents is
            surely higher by 1 than the student's at equal timestep and noise, in proportion below, 0 at chance.
            "Surely": less the standard error. All are those of a micro-batch over all processes.
        penalty: what keeps the discriminator smooth, by name, each with its weight or its settings, as in
            {r1: 0.1, approximate_r1: {weight: 100, scale: 0.01, every: 4}}: r1 and r1_r2 on the features that the
            heads see, approximate_r1 and approximate_r1_r2 on latents. `every: n` applies it at each n-th
            update of the discriminator, n times as strong. {} is none.
        fresh_fraction: share of a batch that gets fresh noise and the adversarial term only, the rest
            gets its pair and the reconstruction only; 0 puts both terms on the pairs (Nitro).
        warmup_steps: steps of reconstruction alone before the adversarial term begins.
        discriminator_timesteps: law of the discriminator's timesteps in u: uniform, logit_normal, shifted, karras
            or histogram.
        generator_timesteps: that of the adversarial term in the student's loss; null is discriminator_timesteps.
        real_timesteps: that of real latents in the discriminator's loss; null is discriminator_timesteps.
        fake_timesteps: that of fakes there; null is discriminator_timesteps.
        noising: "independent" draws a timestep and noise for each real and each fake; with "shared" the real and
            the fake in one place have the same.
        misaligned_negatives: show the discriminator real latents with another sample's prompt as
            fakes; the sample before's of the micro-batch (over all processes), where its prompt is another
            one.
        updates: "alternating" trains the student and the discriminator in turns; "shared" trains both at every
            step on one student sample; "shared_pass" also on one pass of it through the backbone.
        num_inference_steps: steps of the student.
        step_probabilities: of those steps in training, the noisiest first; null is the same for all.
        timestep: the timestep of a one-step student while it is fed pure noise (400 for
            Nitro-PixArt); null is the schedule's last.
        seed: of the discriminator's initial weights.

    Example:
        >>> nd.LADDConfig(adversarial="hinge", taps=(0.25, 0.5)).taps
        (0.25, 0.5)
    """

    taps: Taps = ("down_blocks.0", "down_blocks.1", "mid_block")
    head: str = "conv"
    head_width: int | None = None
    conditioning: tuple[Conditioned, ...] = ()
    augmentation: Augmentation | None = None
    reconstruction: dict[str, Any] = field(default_factory=lambda: {"smooth_l1": 1.0})
    adversarial: str | dict[str, Any] = "non_saturating"
    adversarial_weight: float = 1.0
    balanced: bool = False
    penalty: dict[str, Any] = field(default_factory=dict)
    fresh_fraction: float = 0.0
    warmup_steps: int = 0
    discriminator_timesteps: Law = field(
        default_factory=lambda: {"uniform": {"ranges": [[0.0, 0.75]]}}
    )
    generator_timesteps: Law | None = None
    real_timesteps: Law | None = None
    fake_timesteps: Law | None = None
    noising: Literal["independent", "shared"] = "independent"
    misaligned_negatives: bool = False
    updates: Updates = "alternating"
    num_inference_steps: int = 1
    step_probabilities: tuple[float, ...] | None = None
    timestep: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, adversarial_weight=0, warmup_steps=0, num_inference_steps=1)
        probabilities, of_fakes = self.step_probabilities, self.fake_timesteps is not None
        if not 0 <= self.fresh_fraction <= 1:
            raise ValueError(f"fresh_fraction is {self.fresh_fraction}; it must be in [0, 1].")
        _refuse(
            not self.reconstruction and self.adversarial_weight == 0,
            "reconstruction is {} and adversarial_weight 0; nothing to do.",
        )
        _refuse(
            not self.reconstruction and self.warmup_steps > 0,
            f"warmup_steps is {self.warmup_steps}, but warm-up is reconstruction alone and there is none; leave "
            "one of them out.",
        )
        plays = self.adversarial_weight > 0
        _refuse(
            plays and not self.reconstruction and 0 < self.fresh_fraction < 1,
            f"reconstruction is {{}} and fresh_fraction {self.fresh_fraction}, so that the samples without fresh "
            "noise would have no loss; set fresh_fraction: 1, or 0 for the pairs' own noise.",
        )
        _refuse(
            bool(self.penalty) and self.adversarial_weight == 0,
            f"penalty is {self.penalty}, but adversarial_weight 0 trains no discriminator; leave one of them out.",
        )
        sides = plays and self.fresh_fraction < 1 and bool(self.reconstruction)
        _refuse(
            self.balanced and not sides,
            "balanced weighs the adversarial term against the reconstruction, and one of them is left out; leave "
            "balanced out too.",
        )
        _refuse(
            plays
            and bool(self.reconstruction)
            and self.fresh_fraction == 1
            and not self.warmup_steps,
            "fresh_fraction is 1, so that no sample is left for the reconstruction; set reconstruction: {}, or "
            "lower fresh_fraction.",
        )
        _refuse(
            self.timestep is not None and self.num_inference_steps > 1,
            f"timestep={self.timestep} is for a one-step student, but num_inference_steps is "
            f"{self.num_inference_steps}; leave one of them out.",
        )
        _refuse(
            probabilities is not None and len(probabilities) != self.num_inference_steps,
            f"step_probabilities are {probabilities}, but num_inference_steps is {self.num_inference_steps}; give "
            "one a step.",
        )
        _refuse(
            self.noising == "shared" and (of_fakes or self.real_timesteps is not None),
            "noising is 'shared', so real and fake latents have one timestep; leave real_timesteps and "
            "fake_timesteps out.",
        )
        _refuse(
            self.updates == "shared_pass" and of_fakes,
            "updates is 'shared_pass', so fakes have the timesteps of the student's loss; leave fake_timesteps "
            "out, or set updates: shared.",
        )
        _refuse(
            self.updates == "shared_pass"
            and self.noising == "shared"
            and self.generator_timesteps is not None,
            "updates is 'shared_pass' and noising 'shared', so all latents have the timesteps of the student's "
            "loss; leave generator_timesteps out, and set discriminator_timesteps.",
        )
        if self.reconstruction:
            check_losses(self.reconstruction)
        named_adversarial(self.adversarial)
        named_penalties(self.penalty)
        named_head(self.head)
        make_noising(self)
        if probabilities is not None:
            Histogram(probabilities)


def _refuse(broken: bool, sentence: str) -> None:
    if broken:
        raise ValueError(sentence)


def make_noising(config: LADDConfig) -> Noising:
    """How the discriminator's latents are noised.

    Raises:
        ValueError: for an unknown law or setting.
    """
    laws = (config.generator_timesteps, config.real_timesteps, config.fake_timesteps)
    found = [named_law(law or config.discriminator_timesteps) for law in laws]
    return Noising(*found, shared=config.noising == "shared", augmentation=config.augmentation)


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
            found = self.reconstruction.parts(latents[paired.rows], paired.x0.to(x0.dtype))
            per_sample = self.reconstruction.weigh(found)
            terms["reconstruction"] = paired.mean(per_sample)
            parts |= paired.shown(
                {"reconstruction": per_sample, **(found if len(found) > 1 else {})}
            )
        if compared is not None and self.game is not None:
            fake, z = latents[compared.rows], compared.x0.to(x0.dtype)
            per_sample, side = self.game.generator(fake, z, compared.condition, compared.draws)
            terms["adversarial"] = self.config.adversarial_weight * compared.mean(per_sample)
            parts |= compared.shown({"adversarial": per_sample})
            seen = {"generator": side}
            if balanced:
                gap, real = self.game.gap(z, side, compared.condition, compared.draws)
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
        if size * (fraction or 1) < 2 - 1e-6:
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
