"""A game of latents without noise: they are augmented, noised at a law's timesteps, and shown to a discriminator.

Each pass has a **use**, which decides its law and the draws of its timestep and noise:

    generator           the student's latents, in the student's loss (generator.real: the real ones there)
    real                the teacher's, in the discriminator's loss
    fake, misaligned    the student's there, and real ones with another sample's prompt

Draws depend on the use's name and the sample alone, so that a perturbed pass under one name has the timestep and
the noise of the clean one.

The student's loss goes through the network to the latents, the discriminator's loss no further than the heads.
Where the network learns from it too (DMD2's critic), `AdversarialGame.side` gives it logits, and `update` takes
the same passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nitrodistill.checks import check_choice, check_fields, check_kind, check_whole
from nitrodistill.diagnostics import logit_statistics
from nitrodistill.discriminator.augmentation import Augmentation, import_kornia
from nitrodistill.discriminator.discriminator import LatentDiscriminator
from nitrodistill.discriminator.heads import same_norms
from nitrodistill.losses import AdversarialLoss, LazyPenalty, Side
from nitrodistill.method import Draws
from nitrodistill.timesteps import TimestepLaw
from nitrodistill.types import Condition

_LAWS = {"generator": "generator", "real": "real", "fake": "fake", "misaligned": "fake"}
"""A use, up to its dot -> whose law it has."""


@dataclass(frozen=True)
class Noising:
    """How latents are prepared for the discriminator.

    Attributes:
        generator: law of the timesteps, in u, of the passes in the student's loss.
        real: of real latents in the discriminator's.
        fake: of generated ones, and of real ones with another prompt, there.
        shared: whether real and fake of one loss have the same timestep, noise and augmentation, or their own.
        augmentation: of the latents, before noise is added; None leaves them.

    Example:
        >>> low = nd.Uniform(((0.0, 0.4),))
        >>> nd.Noising(generator=nd.Uniform(), real=low, fake=low, shared=True).shared
        True
    """

    generator: TimestepLaw
    real: TimestepLaw
    fake: TimestepLaw
    shared: bool = False
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def law(self, use: str) -> TimestepLaw:
        """The law of a use.

        Raises:
            ValueError: if there is no such use.
        """
        return getattr(self, _LAWS[check_choice("use", use.split(".")[0], tuple(_LAWS))])

    def name(self, use: str) -> str:
        """Under which name a use draws."""
        if not self.shared:
            return use
        return "generator" if use.startswith("generator") else "real"


class Round(NamedTuple):
    """What the discriminator's loss is made of.

    Attributes:
        per_sample: `(B,)` the adversarial loss.
        penalties: name -> (factor, `(B,)`) of those that are due.
        real: the real side.
        fake: the generated one.
    """

    per_sample: Tensor
    penalties: dict[str, tuple[float, Tensor]]
    real: Side
    fake: Side

    def total(self, mean: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss and what the penalties add, by a mean over the samples: `(B,)` -> scalar."""
        added = (factor * mean(value) for factor, value in self.penalties.values())
        return sum(added, mean(self.per_sample))


class AdversarialGame:
    """The two losses of a student and a discriminator.

    Args:
        discriminator: heads on a network's features.
        noising: laws, and what is shared.
        adversarial: the two sides' losses.
        penalties: of the discriminator, by name.

    Attributes:
        discriminator: see above.
        noising: see above.
        adversarial: see above.
        penalties: see above.

    Raises:
        ValueError: if there are penalties and no head is trained, or another number of weights than heads.
        ModuleNotFoundError: if there is an augmentation, and no kornia.

    Example:
        >>> discriminator = nd.LatentDiscriminator(teacher.denoiser, "mid_block", width=32)
        >>> noising = nd.Noising(nd.Uniform(), nd.Uniform(), nd.Uniform())
        >>> game = nd.AdversarialGame(discriminator, noising, nd.HingeGANLoss())
        >>> loss, seen = game.generator(x0, x0, condition, nd.Draws(0, 0, torch.arange(2)))
        >>> loss.shape
        torch.Size([2])
    """

    def __init__(
        self,
        discriminator: LatentDiscriminator,
        noising: Noising,
        adversarial: AdversarialLoss,
        penalties: Mapping[str, LazyPenalty] | None = None,
    ) -> None:
        check_kind("discriminator", discriminator, LatentDiscriminator)
        check_kind("noising", noising, Noising)
        check_kind("adversarial", adversarial, AdversarialLoss)
        check_kind("penalties", penalties, Mapping[str, LazyPenalty] | None)
        self.discriminator: LatentDiscriminator = discriminator
        self.noising: Noising = noising
        self.adversarial: AdversarialLoss = adversarial
        self.penalties: Mapping[str, LazyPenalty] = penalties or {}
        weights, taps = adversarial.weights, discriminator.taps.names
        if weights is not None and len(weights) != len(taps):
            raise ValueError(
                f"the adversarial loss has {len(weights)} weights, and the discriminator {len(taps)} heads (at "
                f"{', '.join(taps)}); give one number a head, or none."
            )
        if noising.augmentation is not None:
            import_kornia()
        trained = any(p.requires_grad for p in discriminator.parameters())
        if self.penalties and not trained:
            raise ValueError(
                f"the penalties {', '.join(self.penalties)} act on the discriminator's heads, and no parameter of "
                "theirs is trained; call requires_grad_(True) on them, or leave the penalties out."
            )

    def __repr__(self) -> str:
        return f"AdversarialGame({self.adversarial}, {self.discriminator}, {self.noising})"

    def generator(
        self,
        x0: Tensor,
        z: Tensor,
        condition: Condition,
        draws: Draws,
        *,
        z_condition: Condition | None = None,
    ) -> tuple[Tensor, dict[str, Side]]:
        """The student's adversarial loss `(B,)`, and by use what the discriminator said: `seen` of `update`.

        Args:
            x0: `(B, C, H, W)` the student's latents.
            z: real ones, which a relativistic loss compares them with.
            condition: the prompts of x0.
            draws: of the samples.
            z_condition: the prompts of z; None: the same.
        """
        seen, real = {"generator": self.side(x0, condition, draws, "generator")}, None
        if self.adversarial.needs_real:
            seen["generator.real"] = self.side(z, z_condition or condition, draws, "generator.real")
            real = seen["generator.real"].logits
        return self.adversarial.generator(seen["generator"].logits, real), seen

    @torch.no_grad()
    def gap(
        self, z: Tensor, seen: Mapping[str, Side], condition: Condition, draws: Draws
    ) -> tuple[Tensor, Side]:
        """How much higher the logits of real latents are than what `generator` saw, `(B,)`; and the real side.

        Args:
            z: `(B, C, H, W)` the real ones, which get the timesteps and the noise of the student's.
            seen: what `generator` returned; with shared noise a pass of the real ones is in it, and serves here.
            condition: the prompts.
            draws: of the samples.
        """
        real = seen.get("generator.real") if self.noising.shared else None
        if real is None:
            real = self.side(z, condition, draws, "generator")
        found = logit_statistics(real.logits, seen["generator"].logits)
        return found["logit_real"] - found["logit_fake"], real

    def update(
        self,
        x0: Tensor,
        z: Tensor,
        condition: Condition,
        draws: Draws,
        number: int,
        *,
        z_condition: Condition | None = None,
        wrong: tuple[Tensor, Tensor | None] | None = None,
        seen: Mapping[str, Side] | None = None,
    ) -> Round:
        """The discriminator's loss, whose gradient reaches the heads alone.

        Args:
            x0: `(B, C, H, W)` the student's latents.
            z: real ones.
            condition: the prompts of x0.
            draws: of the samples.
            number: of the discriminator's update, which lazy penalties count.
            z_condition: the prompts of z; None: the same.
            wrong: real latents with other prompts than these, and where they are other ones (None: everywhere);
                there, they and x0 are half of the fakes each.
            seen: use -> what was said of the same latents, whose pass through the network then serves here too:
                what `generator` returned, or what `side` did for "real" and "fake".
        """
        check_whole("number", number, 0)
        found, wanted = seen or {}, self._differentiated(number)
        # with one pass for both updates and one noise for both sides, the real ones follow the generator's
        use = "generator" if "generator" in found else "fake"
        prefix = "generator." if use == "generator" and self.noising.shared else ""
        latents = {f"{prefix}real": (z, z_condition or condition), use: (x0, condition)}
        if wrong is not None:
            latents[f"{prefix}misaligned"] = wrong[0], condition
        features = {name: found[name].features for name in latents if name in found}
        features |= self._features({n: it for n, it in latents.items() if n not in found}, draws)

        def side(use: str, differentiable: bool = False) -> Side:
            how = {"heads_alone": True, "differentiable": differentiable}
            return self.side(*latents[use], draws, use, features=features[use], **how)

        real = side(f"{prefix}real", "real" in wanted)
        with same_norms(self.discriminator.heads):  # those of the pass above
            fake = side(use, "fake" in wanted)
            per_sample = self.adversarial.discriminator(real.logits, fake.logits)
            if wrong is not None:
                said = side(f"{prefix}misaligned").logits
                both = (per_sample + self.adversarial.discriminator(real.logits, said)) / 2
                per_sample = both if wrong[1] is None else torch.where(wrong[1], both, per_sample)
            due = {name: lazy.factor(number) for name, lazy in self.penalties.items()}
            penalties = {
                name: (factor, self.penalties[name].penalty(real, fake))
                for name, factor in due.items()
                if factor
            }
        return Round(per_sample, penalties, real, fake)

    def shown(self, found: Round) -> dict[str, Tensor]:
        """What is logged of a discriminator's loss, `(B,)` each and detached.

        `discriminator`, the loss; the penalties that are due, one alone as `penalty`; `advantage`, 1 - loss / the
        loss of one logit for everything; and `diagnostics.logit_statistics`.
        """
        parts = {"discriminator": found.per_sample}
        for name, (_, value) in found.penalties.items():
            parts["penalty" if len(self.penalties) == 1 else name] = value
        parts["advantage"] = 1 - found.per_sample / self.adversarial.chance
        boundary = self.adversarial.boundary
        parts |= logit_statistics(found.real.logits, found.fake.logits, boundary)
        return {name: part.detach() for name, part in parts.items()}

    def side(
        self,
        x0: Tensor,
        condition: Condition,
        draws: Draws,
        use: str,
        *,
        features: Sequence[Tensor] | None = None,
        heads_alone: bool = False,
        differentiable: bool = False,
    ) -> Side:
        """What the discriminator says of latents.

        Args:
            x0: `(B, C, H, W)` without noise.
            condition: their prompts.
            draws: theirs.
            use: what for; see above.
            features: of an earlier pass of the same use, which then is not run again.
            heads_alone: cuts the features off, so that no gradient reaches the network or the latents.
            differentiable: lets the cut features require gradients, for penalties on them.
        """
        name, t = self.noising.name(use), self._timesteps(x0, draws, use)

        def seen(latents: Tensor) -> tuple[Tensor, ...]:
            x_t = self._noised(latents, t, draws, use)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not heads_alone):
                return self.discriminator.taps.features(x_t, t, condition)

        features = seen(x0) if features is None else features
        if heads_alone:
            features = [feature.detach().requires_grad_(differentiable) for feature in features]
        return Side(
            x0,
            tuple(features),
            self.discriminator.logits(features, t, condition),
            lambda moved: self.discriminator.logits(seen(moved), t, condition),
            lambda: draws.normal(f"{name}.moved", x0.shape[1:], x0.device).to(x0.dtype),
        )

    @torch.no_grad()
    def _features(
        self, latents: Mapping[str, tuple[Tensor, Condition]], draws: Draws
    ) -> dict[str, tuple[Tensor, ...]]:
        """Use -> the features of its latents and their prompts, all from one pass through the network.

        The heads, which are trained and may normalise over a batch, see one use at a time.
        """
        if not latents:
            return {}
        t = {use: self._timesteps(x0, draws, use) for use, (x0, _) in latents.items()}
        x_t = [self._noised(x0, t[use], draws, use) for use, (x0, _) in latents.items()]
        conditions = [condition for _, condition in latents.values()]
        found = self.discriminator.taps.features(
            torch.cat(x_t), torch.cat(list(t.values())), Condition.cat(conditions)
        )
        parts = [feature.split([len(x) for x in x_t]) for feature in found]
        return dict(zip(t, zip(*parts, strict=True), strict=True))

    def _timesteps(self, x0: Tensor, draws: Draws, use: str) -> Tensor:
        u = self.noising.law(use)(draws.uniform(f"{self.noising.name(use)}.t"))
        return self.discriminator.denoiser.schedule.timestep(u).to(x0.device)

    def _noised(self, x0: Tensor, t: Tensor, draws: Draws, use: str) -> Tensor:
        name, augmentation = self.noising.name(use), self.noising.augmentation
        noise = draws.normal(f"{name}.noise", x0.shape[1:], x0.device).to(x0.dtype)
        if augmentation is not None:
            x0 = augmentation(x0, draws.uniform(f"{name}.augmentation", (6,)))
        return self.discriminator.denoiser.schedule(t).mix(x0, noise)

    def _differentiated(self, number: int) -> frozenset[str]:
        """The sides whose features the penalties that are due want gradients of."""
        due = (lazy.penalty for lazy in self.penalties.values() if lazy.factor(number))
        return frozenset(side for penalty in due for side in penalty.differentiates)
