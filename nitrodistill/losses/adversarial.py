"""Adversarial losses, generator and discriminator side by side.

With r = D(real), f = D(fake) (logits, high = real):

    name            discriminator                    generator           source
    non-saturating  softplus(-r) + softplus(f)       softplus(-f)        Goodfellow et al. 2014
    hinge           relu(1 - r) + relu(1 + f)        -f                  Lim & Ye 2017
    least squares   ((r - 1)^2 + f^2) / 2            (f - 1)^2 / 2       Mao et al. 2017
    relativistic    softplus(f - r)                  softplus(r - f)     Jolicoeur-Martineau 2018,
                                                                         paired: Huang et al. 2024

Logits are one tensor `(B, *)` or a sequence of them, one per head or scale. The value of a sample is
the mean over the logits of a head, then the mean over heads, so that the number and the size of the
heads do not change the strength of the term. `weights`, one number a head, weigh that mean instead: Nitro
concatenates all logits of a sample, which is a weight of each head's number of logits. Computed in float32
or better: half-precision logits neither overflow nor round.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.checks import check_numbers, check_tensor
from nitrodistill.kernels.arithmetic import math_dtype

Logits = Tensor | Sequence[Tensor]
"""One tensor of logits `(B, *)`, or one per head."""

Weights = Sequence[float] | None
"""One number > 0 a head, in proportion; None weighs the heads equally."""


def as_heads(name: str, logits: Logits) -> tuple[Tensor, ...]:
    """The heads of `logits`, checked.

    Raises:
        TypeError: for anything but floating-point tensors.
        ValueError: for no heads, an empty head, or heads of different batch sizes.
    """
    if not isinstance(logits, Sequence | Tensor):
        raise TypeError(
            f"{name} is a {type(logits).__name__}; it must be logits, a tensor or several."
        )
    heads = (logits,) if isinstance(logits, Tensor) else tuple(logits)
    for head in heads:
        check_tensor(name, head)
    if len({head.shape[0] for head in heads}) != 1:
        raise ValueError(
            f"{name} holds heads of shapes {[tuple(head.shape) for head in heads]}; it needs at "
            "least one head, and all of one batch size."
        )
    return heads


def mean_of_heads(
    function: Callable[..., Tensor], *logits: tuple[Tensor, ...], weights: Weights = None
) -> Tensor:
    """Applies an elementwise function head by head; the mean over logits, then over heads: `(B,)`.

    Args:
        function: of as many tensors as there are `logits`.
        logits: one tensor a head each.
        weights: of the heads, in proportion; None weighs them equally.

    Raises:
        ValueError: for another number of weights than heads.
    """
    values = []
    for group in zip(*logits, strict=True):
        dtype = math_dtype(*group)
        value = function(*(head.to(dtype) for head in group))
        values.append(value.reshape(value.shape[0], -1).mean(1))
    if weights is None:
        return torch.stack(values).mean(0)
    if len(weights) != len(values):
        raise ValueError(
            f"there are {len(weights)} weights for {len(values)} heads; give one number a head, or none."
        )
    total = sum(weights)
    return torch.stack([v * (w / total) for v, w in zip(values, weights, strict=True)]).sum(0)


def non_saturating_generator(fake: Logits, weights: Weights = None) -> Tensor:
    """softplus(-D(fake)), `(B,)`; `fake` is `(B, *)` logits or one such tensor per head, weighed by `weights`.

    Example:
        >>> nd.functional.non_saturating_generator(torch.zeros(2, 9))
        tensor([0.6931, 0.6931])
    """
    return mean_of_heads(_softplus_negative, as_heads("fake", fake), weights=weights)


def non_saturating_discriminator(real: Logits, fake: Logits, weights: Weights = None) -> Tensor:
    """softplus(-D(real)) + softplus(D(fake)), `(B,)`.

    Example:
        >>> nd.functional.non_saturating_discriminator(torch.zeros(2, 9), torch.zeros(2, 9))  # 2 ln 2
        tensor([1.3863, 1.3863])
    """
    return _sum_of_sides(_softplus_negative, F.softplus, real, fake, weights)


def hinge_generator(fake: Logits, weights: Weights = None) -> Tensor:
    """-D(fake), `(B,)`.

    Example:
        >>> nd.functional.hinge_generator(torch.full((2, 9), 0.5))
        tensor([-0.5000, -0.5000])
    """
    return mean_of_heads(torch.neg, as_heads("fake", fake), weights=weights)


def hinge_discriminator(real: Logits, fake: Logits, weights: Weights = None) -> Tensor:
    """relu(1 - D(real)) + relu(1 + D(fake)), `(B,)`.

    Example:
        >>> nd.functional.hinge_discriminator(torch.zeros(2, 9), torch.zeros(2, 9))
        tensor([2., 2.])
    """
    return _sum_of_sides(_hinge_real, _hinge_fake, real, fake, weights)


def least_squares_generator(fake: Logits, weights: Weights = None) -> Tensor:
    """(D(fake) - 1)^2 / 2, `(B,)`.

    Example:
        >>> nd.functional.least_squares_generator(torch.ones(2, 9))
        tensor([0., 0.])
    """
    return mean_of_heads(_square_real, as_heads("fake", fake), weights=weights)


def least_squares_discriminator(real: Logits, fake: Logits, weights: Weights = None) -> Tensor:
    """((D(real) - 1)^2 + D(fake)^2) / 2, `(B,)`.

    Example:
        >>> nd.functional.least_squares_discriminator(torch.zeros(2, 9), torch.zeros(2, 9))
        tensor([0.5000, 0.5000])
    """
    return _sum_of_sides(_square_real, _square_fake, real, fake, weights)


def relativistic_generator(fake: Logits, real: Logits, weights: Weights = None) -> Tensor:
    """softplus(D(real) - D(fake)), `(B,)`; every fake is paired with the real of its place.

    Example:
        >>> nd.functional.relativistic_generator(torch.zeros(2, 9), torch.zeros(2, 9))
        tensor([0.6931, 0.6931])
    """
    fakes, reals = _paired(as_heads("fake", fake), as_heads("real", real))
    return mean_of_heads(_softplus_difference, reals, fakes, weights=weights)


def relativistic_discriminator(real: Logits, fake: Logits, weights: Weights = None) -> Tensor:
    """softplus(D(fake) - D(real)), `(B,)`; every fake is paired with the real of its place.

    Example:
        >>> nd.functional.relativistic_discriminator(torch.zeros(2, 9), torch.zeros(2, 9))
        tensor([0.6931, 0.6931])
    """
    fakes, reals = _paired(as_heads("fake", fake), as_heads("real", real))
    return mean_of_heads(_softplus_difference, fakes, reals, weights=weights)


class AdversarialLoss(ABC):
    """The two sides of an adversarial game, one value per sample each.

    Attributes:
        needs_real: whether the generator's side looks at the real logits too.
        weights: one number > 0 a head, in proportion; None weighs the heads equally.
        chance: the discriminator's loss where it gives the same best logit to everything.
        boundary: the logit that its best discriminator gives what is as likely real as generated; None where only
            the difference of two logits means anything.

    Raises:
        ValueError: for a weight that is not positive; when called, for another number of weights than heads.

    Example:
        >>> game = nd.HingeGANLoss()  # an AdversarialLoss
        >>> real, fake = torch.full((2, 9), 2.0), torch.full((2, 9), -0.5)
        >>> game.discriminator(real, fake), game.generator(fake)
        (tensor([0.5000, 0.5000]), tensor([0.5000, 0.5000]))
    """

    needs_real: ClassVar[bool] = False
    boundary: ClassVar[float | None] = 0.0
    chance: ClassVar[float]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.weights is not None:
            check_numbers("weights", self.weights)

    @abstractmethod
    def generator(self, fake: Logits, real: Logits | None = None) -> Tensor:
        """What the generator minimises.

        Args:
            fake: logits of generated samples, `(B, *)` or one such tensor per head.
            real: logits of real samples, where `needs_real`; ignored otherwise.

        Returns:
            `(B,)`.
        """

    @abstractmethod
    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        """What the discriminator minimises, `(B,)`.

        Args:
            real: logits of real samples.
            fake: logits of generated samples, of the same batch size.
        """


@dataclass(frozen=True)
class NonSaturatingGANLoss(AdversarialLoss):
    """softplus(-r) + softplus(f) against softplus(-f) (Goodfellow et al. 2014).

    Example:
        >>> nd.NonSaturatingGANLoss().generator(torch.zeros(2, 9))  # ln 2
        tensor([0.6931, 0.6931])
    """

    chance: ClassVar[float] = 2 * math.log(2)

    weights: tuple[float, ...] | None = None

    def generator(self, fake: Logits, real: Logits | None = None) -> Tensor:
        return non_saturating_generator(fake, self.weights)

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        return non_saturating_discriminator(real, fake, self.weights)


@dataclass(frozen=True)
class HingeGANLoss(AdversarialLoss):
    """relu(1 - r) + relu(1 + f) against -f (Lim & Ye 2017).

    Example:
        >>> nd.HingeGANLoss().discriminator(torch.full((2, 9), 2.0), torch.full((2, 9), -2.0))
        tensor([0., 0.])
    """

    chance: ClassVar[float] = 2.0

    weights: tuple[float, ...] | None = None

    def generator(self, fake: Logits, real: Logits | None = None) -> Tensor:
        return hinge_generator(fake, self.weights)

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        return hinge_discriminator(real, fake, self.weights)


@dataclass(frozen=True)
class LeastSquaresGANLoss(AdversarialLoss):
    """((r - 1)^2 + f^2) / 2 against (f - 1)^2 / 2 (Mao et al. 2017).

    Example:
        >>> nd.LeastSquaresGANLoss().discriminator(torch.ones(2, 9), -torch.ones(2, 9))
        tensor([0.5000, 0.5000])
    """

    boundary: ClassVar[float | None] = 0.5
    chance: ClassVar[float] = 0.25

    weights: tuple[float, ...] | None = None

    def generator(self, fake: Logits, real: Logits | None = None) -> Tensor:
        return least_squares_generator(fake, self.weights)

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        return least_squares_discriminator(real, fake, self.weights)


@dataclass(frozen=True)
class RelativisticGANLoss(AdversarialLoss):
    """softplus(f - r) against softplus(r - f), paired (R3GAN, Huang et al. 2024).

    Example:
        >>> nd.RelativisticGANLoss().generator(torch.zeros(2, 9), torch.zeros(2, 9))
        tensor([0.6931, 0.6931])
    """

    needs_real: ClassVar[bool] = True
    boundary: ClassVar[float | None] = None
    chance: ClassVar[float] = math.log(2)

    weights: tuple[float, ...] | None = None

    def generator(self, fake: Logits, real: Logits | None = None) -> Tensor:
        if real is None:
            raise ValueError(
                "RelativisticGANLoss.generator got no real logits; it compares every fake with a real "
                "one, call generator(fake, real)."
            )
        return relativistic_generator(fake, real, self.weights)

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        return relativistic_discriminator(real, fake, self.weights)


def _sum_of_sides(
    of_real: Callable[[Tensor], Tensor],
    of_fake: Callable[[Tensor], Tensor],
    real: Logits,
    fake: Logits,
    weights: Weights,
) -> Tensor:
    reals, fakes = as_heads("real", real), as_heads("fake", fake)
    if reals[0].shape[0] != fakes[0].shape[0]:
        raise ValueError(
            f"real holds {reals[0].shape[0]} samples and fake {fakes[0].shape[0]}; one value per "
            "sample needs equally many."
        )
    return mean_of_heads(of_real, reals, weights=weights) + mean_of_heads(
        of_fake, fakes, weights=weights
    )


def _paired(
    fakes: tuple[Tensor, ...], reals: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    shapes = [[tuple(head.shape) for head in heads] for heads in (fakes, reals)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"fake logits have shapes {shapes[0]} and real ones {shapes[1]}; a relativistic loss "
            "pairs them one by one, they must be equal."
        )
    return fakes, reals


def _softplus_negative(logits: Tensor) -> Tensor:
    return F.softplus(-logits)


def _softplus_difference(high: Tensor, low: Tensor) -> Tensor:
    return F.softplus(high - low)


def _hinge_real(logits: Tensor) -> Tensor:
    return F.relu(1 - logits)


def _hinge_fake(logits: Tensor) -> Tensor:
    return F.relu(1 + logits)


def _square_real(logits: Tensor) -> Tensor:
    return 0.5 * (logits - 1).square()


def _square_fake(logits: Tensor) -> Tensor:
    return 0.5 * logits.square()
