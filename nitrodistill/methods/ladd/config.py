"""Settings of latent adversarial diffusion distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from nitrodistill.checks import check_fields
from nitrodistill.discriminator import Augmentation, Conditioned, Noising, named_head
from nitrodistill.losses.named import check_losses, named_adversarial, named_penalties
from nitrodistill.timesteps import Histogram, named_law

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
