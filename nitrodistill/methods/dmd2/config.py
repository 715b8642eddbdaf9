"""Settings of distribution-matching distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from nitrodistill.checks import check_fields
from nitrodistill.discriminator import Augmentation, Conditioned, named_head
from nitrodistill.losses import NonSaturatingGANLoss
from nitrodistill.losses.distribution_matching import Divergence
from nitrodistill.losses.named import check_losses, named_adversarial, named_penalties
from nitrodistill.models.guidance import RescaleBy
from nitrodistill.sampling import Transition
from nitrodistill.timesteps import named_law
from nitrodistill.types import Part

CriticWeight = Literal["auto", "prediction", "sample", "edm", "min_snr", "snr_plus_one"]
Law = dict[str, Any]


def _everywhere() -> Law:
    return {"uniform": {"ranges": [[0.0, 1.0]]}}


def _inside() -> Law:
    return {"uniform": {"ranges": [[0.02, 0.98]]}}


@dataclass(frozen=True)
class CriticConfig:
    """The network that learns what the student draws, by denoising score matching.

    Attributes:
        updates: of the critic, to one of the student (DMD2's two-time-scale rule: 5, for SD1.5 10).
        timesteps: law of its timesteps, in u.
        weight: of its squared error. "prediction": 1 on what the network predicts (DMD2 on SD and SDXL: epsilon;
            flows: the flow). "sample": 1 on x0 (SwD). "edm": 1 / sigma^2 + 1 / sigma_data^2 on x0 (EDM).
            "min_snr": min(SNR, 5) on x0 (TDM). "snr_plus_one": SNR + 1 on x0 (rCM). "auto": "edm" for a network
            with EDM's preconditioning, else "prediction".
        follow: decay of the pull towards the student at the end of each step that updates it, `critic <- follow
            critic + (1 - follow) student` (IDA, published .97); null does not pull. With `updates: shared` the
            critic has made its own update of that step before, which 0 (a copy) would undo. On LoRA roles it
            averages the factors A and B, which is not the average of the product B A.
        follow_average: pulls towards the student's moving average instead (CDM: follow 0, a copy of it).
    """

    updates: int = 5
    timesteps: Law = field(default_factory=_everywhere)
    weight: CriticWeight = "auto"
    follow: float | None = None
    follow_average: bool = False

    def __post_init__(self) -> None:
        check_fields(self, updates=1, follow=0)
        if self.follow is not None and self.follow >= 1:
            raise ValueError(f"follow is {self.follow}; it must be in [0, 1), or null.")
        if self.follow_average and self.follow is None:
            raise ValueError(
                "follow_average is true, but follow is null and nothing is pulled; set it (0 copies), or leave "
                "out both."
            )
        named_law(self.timesteps)


@dataclass(frozen=True)
class GANConfig:
    """A discriminator that compares noised samples with noised data.

    Attributes:
        weight: of its opinion in the student's loss (published 1e-3 to 5e-3).
        real: the data: latents of the "pairs", or "real" ones (`nitrodistill encode`).
        features: whose features the heads see: the "critic"'s (DMD2) or the frozen "teacher"'s (FastGen).
        critic_weight: of the discriminator's loss in the critic's, with the critic's features; 0 trains the heads
            alone.
        taps: of the network: names of submodules, or depths in (0, 1]; 0.5 is a UNet's middle block, as published.
        head: conv, token, mlp (one logit of the pooled map), or package.module:Class; see `LADDConfig`. Departure:
            the published head is deeper, with a logit a sample.
        head_width: hidden channels of a head; null is the head's own choice.
        conditioning: what the heads know beside the features: timestep, text (pooled), or both.
        augmentation: of what the discriminator is shown: {flip: 0.5, translation: 0.125, crop: 0.8}; null is none.
        adversarial: the loss by name: non_saturating, hinge, least_squares, relativistic; also with weights of the
            heads: {hinge: {weights: [1, 1, 2]}}.
        penalty: what keeps the heads smooth, by name; see `LADDConfig`. It is in the heads' loss alone, not in the
            critic's.
        timesteps: law of the timesteps at which samples and data are noised, in u.
        noising: "independent" draws a timestep and noise for each sample and each piece of data; with "shared"
            those in one place have the same (modelopt).
        seed: of the heads' initial weights.
    """

    weight: float = 1e-3
    real: Literal["pairs", "real"] = "real"
    features: Literal["critic", "teacher"] = "critic"
    critic_weight: float = 1e-2
    taps: tuple[str | float, ...] = (0.5,)
    head: str = "conv"
    head_width: int | None = None
    conditioning: tuple[Conditioned, ...] = ()
    augmentation: Augmentation | None = None
    adversarial: str | dict[str, Any] = "non_saturating"
    penalty: dict[str, Any] = field(default_factory=dict)
    timesteps: Law = field(default_factory=_everywhere)
    noising: Literal["independent", "shared"] = "independent"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, weight=0, critic_weight=0, seed=0)
        if self.features == "teacher" and self.critic_weight not in (0, GANConfig.critic_weight):
            raise ValueError(
                f"critic_weight is {self.critic_weight}, but features is 'teacher', in which the critic has "
                "no part; take 'critic', or leave it out."
            )
        named_adversarial(self.adversarial)
        named_penalties(self.penalty)
        named_head(self.head)
        named_law(self.timesteps)

    @property
    def tells_ratio(self) -> bool:
        """Whether the logits of the best discriminator are those of the density ratio."""
        return isinstance(named_adversarial(self.adversarial), NonSaturatingGANLoss)


@dataclass(frozen=True)
class RegressionConfig:
    """DMD's regression: the student's x0 against the teacher's, from the pair's own noise.

    Attributes:
        losses: by name and weight, as in {lpips: {decode: true}}; see `LADDConfig.reconstruction`.
        weight: of their sum (DMD: 0.25).
        share: of a batch whose rows are pairs; the others have fresh noise. In several steps a pair's input is its
            own latent and noise mixed, so that with 1 no input is simulated.
        warmup_steps: first steps, in which the student learns by regression alone, on all rows.
    """

    losses: dict[str, Any] = field(default_factory=lambda: {"smooth_l1": 1.0})
    weight: float = 0.25
    share: float = 1.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_fields(self, weight=0, warmup_steps=0)
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be in (0, 1].")
        check_losses(self.losses)


@dataclass(frozen=True)
class DecoupledConfig:
    """Guidance as a term of its own (Decoupled DMD).

    Attributes:
        timesteps: law of its timesteps, as a share of the student's noise: 1 is the student's own step.
        floor: of its normaliser.
    """

    timesteps: Law = field(default_factory=_everywhere)
    floor: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, floor=0)
        named_law(self.timesteps)


@dataclass(frozen=True)
class DMD2Config:
    """Settings of `DMD2`; the defaults are its one-step student without GAN.

    Attributes:
        guidance: the teacher's scale, 1 for none. (Flux-dev, which embeds guidance, gets its own from the
            prompts' Condition: leave it at 1.)
        guidance_rescale: in [0, 1]; see `Guided`.
        rescale_by: "deviation", "norm", "row" or "token"; see `Guided`.
        timesteps: law of the timesteps of matching, in u.
        normaliser: what mean |x0 - .| is taken of: the "guided" teacher (DMD2), the "conditional" one (CDM, and
            always with `decoupled`), or "none".
        normaliser_floor: its least value, in the data's unit.
        alpha_weight: weighs the gradient by alpha_t, as the DMD paper does and the published code does not.
        divergence: whose gradient is followed (f-distill); all but "reverse_kl" take the density ratio from the
            discriminator, whose loss must be non_saturating, and whose `gan.timesteps` should cover `timesteps`.
            Like `alpha_weight` it weighs the matching term, and neither `decoupled`'s nor `off_grid_weight`'s.
        decoupled: guidance as a term of its own; null matches the guided teacher.
        off_grid_weight: of matching at a point of the student's trajectory between its steps (CDM), for any number
            of steps; 0 leaves it out.
        updates: "shared" trains the critic at every step and the student at each `critic.updates`-th, on one
            sample (DMD2's counting); "alternating" trains the student at one step and the critic at the next
            `critic.updates`, each on a sample of its own (FastGen's counting, whose frequency is one more).
        critic: its settings.
        gan: a discriminator; null has none, and needs no data.
        regression: on pairs; null has none.
        conditions: the part of a batch that holds the prompts to draw: "prompts", "pairs" or "real".
        num_inference_steps: steps of the student.
        transition: between them: "renoise" or "ode".
        timestep: that a one-step student gets with pure noise (399 for DMD2-SDXL); null is the schedule's last.
        step_range: least and largest number of steps of a trajectory in training, drawn for each update; null is
            `num_inference_steps` always.
        backward: probability that the input of a later step is the student's own (backward simulation); else it is
            noised data with their own prompts, of `gan.real`, or the pairs.

    Example:
        >>> nd.DMD2Config(guidance=3.0).guidance
        3.0
    """

    guidance: float = 1.0
    guidance_rescale: float = 0.0
    rescale_by: RescaleBy = "deviation"
    timesteps: Law = field(default_factory=_inside)
    normaliser: Literal["guided", "conditional", "none"] = "guided"
    normaliser_floor: float = 0.0
    alpha_weight: bool = False
    divergence: Divergence = "reverse_kl"
    decoupled: DecoupledConfig | None = None
    off_grid_weight: float = 0.0
    updates: Literal["shared", "alternating"] = "shared"
    critic: CriticConfig = field(default_factory=CriticConfig)
    gan: GANConfig | None = None
    regression: RegressionConfig | None = None
    conditions: Part = "prompts"
    num_inference_steps: int = 1
    transition: Transition = "renoise"
    timestep: float | None = None
    step_range: tuple[int, int] | None = None
    backward: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, normaliser_floor=0, off_grid_weight=0, num_inference_steps=1)
        check_fields(self, guidance=1, backward=0, guidance_rescale=0)
        named_law(self.timesteps)
        for name in ("backward", "guidance_rescale"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1].")
        self._check_together()
        self._check_parts()
        self._check_steps()

    def _check_together(self) -> None:
        if self.decoupled is not None and self.guidance == 1:
            raise ValueError(
                "decoupled is set, but guidance is 1 and its term would be zero; raise guidance, or leave it out."
            )
        if self.rescale_by != "deviation" and self.guidance_rescale == 0:
            raise ValueError(
                f"rescale_by is {self.rescale_by!r}, but guidance_rescale is 0 and nothing is rescaled; set it, "
                "or leave out both."
            )
        if self.guidance_rescale > 0 and (self.guidance == 1 or self.decoupled is not None):
            raise ValueError(
                f"guidance_rescale is {self.guidance_rescale}, but nothing is matched with guidance "
                f"({'decoupled is set' if self.decoupled else 'guidance is 1'}); leave it out."
            )
        if self.normaliser == "none" and self.normaliser_floor > 0:
            raise ValueError(
                f"normaliser_floor is {self.normaliser_floor}, but normaliser is 'none'; leave one of them out."
            )
        if self.divergence != "reverse_kl" and self.gan is None:
            raise ValueError(
                f"divergence is {self.divergence!r}, which takes the density ratio from a discriminator; set gan, "
                "or take reverse_kl."
            )
        if self.divergence != "reverse_kl" and self.gan is not None and not self.gan.tells_ratio:
            raise ValueError(
                f"divergence is {self.divergence!r}, but gan.adversarial is {self.gan.adversarial!r}; take "
                "non_saturating, whose logits are those of the density ratio, or reverse_kl."
            )
        if self.backward < 1 and self.data is None:
            raise ValueError(
                f"backward is {self.backward}, so that some inputs are noised data, but there is none; set gan or "
                "regression, or backward to 1."
            )

    def _check_parts(self) -> None:
        if self.updates == "shared" and self.critic.follow == 0:
            raise ValueError(
                "critic.follow is 0, a copy of the student, which with updates 'shared' undoes the critic's own "
                "update of the same step; take 'alternating'."
            )
        floor = None if self.decoupled is None else self.decoupled.floor
        if self.normaliser == "none" and floor not in (None, 0, DecoupledConfig.floor):
            raise ValueError(
                f"decoupled.floor is {floor}, but normaliser is 'none'; leave one of them out."
            )
        if self.backward < 1 and self.regression is not None and self.regression.share == 1:
            raise ValueError(
                f"backward is {self.backward}, but with regression.share 1 all inputs are pairs and none is "
                "simulated; lower the share, or leave backward out."
            )

    @property
    def data(self) -> Literal["pairs", "real"] | None:
        """Where clean latents come from."""
        if self.gan is not None:
            return self.gan.real
        return None if self.regression is None else "pairs"

    @property
    def reads(self) -> frozenset[Part]:
        """The parts of a batch that are needed."""
        parts: set[Part] = {self.conditions}
        if self.gan is not None:
            parts.add(self.gan.real)
        if self.regression is not None:
            parts.add("pairs")
        return frozenset(parts)

    @property
    def warmup_steps(self) -> int:
        """Steps of regression alone."""
        return 0 if self.regression is None else self.regression.warmup_steps

    def _check_steps(self) -> None:
        several = self.num_inference_steps > 1 or self.step_range is not None
        if self.timestep is not None and several:
            raise ValueError(
                f"timestep={self.timestep} is for a one-step student, but num_inference_steps is "
                f"{self.num_inference_steps} and step_range {self.step_range}; leave one of them out."
            )
        if self.step_range is not None and not 1 <= self.step_range[0] <= self.step_range[1]:
            raise ValueError(
                f"step_range is {self.step_range}; give (least, largest) numbers of steps, from 1 on."
            )
        low, most = self.step_range or (self.num_inference_steps,) * 2
        if not low <= self.num_inference_steps <= most and self.off_grid_weight == 0:
            raise ValueError(
                f"the student is to draw in {self.num_inference_steps} steps (num_inference_steps), but is "
                f"trained in {low} to {most} (step_range); choose one of these, or set off_grid_weight, which "
                "trains it for any."
            )
        if self.backward < 1 and most == 1:
            raise ValueError(
                f"backward is {self.backward}, but a trajectory of one step has no later one whose input could be "
                "noised data; leave it out."
            )
