"""Regularisers of a discriminator: how fast its logits move with its input.

    R1   ||grad_x D(x)||^2  at real samples      R2   the same at fake ones      (Mescheder et al. 2018)
    approximate R1   mean (D(x) - D(x + scale n))^2,  n ~ N(0, I)                (APT: Lin et al. 2025)

The exact form differentiates twice and so cannot go through every backbone; ADD (Sauer et al. 2023)
applies it at the input of each *head*: pass those features as `inputs`. The approximate form needs two
evaluations only. For a discriminator that noises its input itself, both evaluations must see the *same*
noise and timestep, else the penalty measures the noise and does not vanish with the perturbation: here
the discriminator is called with nothing but the samples, so that what it draws is fixed outside. At
scale = 0 the penalty is 0.

No factor is included: the usual gamma / 2 is the caller's weight. In recipes the penalties have names, as
losses have (`named_penalties`); each is a `Penalty` on the two sides that a discriminator was shown.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nitrodistill.checks import check_fields, check_positive, check_tensor, check_whole
from nitrodistill.kernels.arithmetic import math_dtype
from nitrodistill.losses.adversarial import Logits, as_heads, mean_of_heads


def gradient_penalty(logits: Logits, inputs: Tensor | Sequence[Tensor]) -> Tensor:
    """The squared gradient norm of every sample's logits, exact R1 on real and R2 on fake samples.

    A head's logits are averaged over a sample first, and heads are summed, so that their gradients
    are independent where every head has its own input.

    Args:
        logits: `(B, *)`, or one tensor per head.
        inputs: `(B, *)` samples or features that require gradients and that the logits were made
            from: the pixels, or each head's input as in ADD.

    Returns:
        `(B,)`: the sum over the inputs of ||gradient||^2, differentiable.

    Raises:
        ValueError: for inputs that do not require gradients, or that no logit depends on.
        TypeError: for tensors that are not floating point.

    Example:
        >>> x = torch.tensor([[1.0], [2.0]], requires_grad=True)
        >>> nd.functional.gradient_penalty(x.square(), x)
        tensor([ 4., 16.], grad_fn=<SumBackward1>)
    """
    heads = as_heads("logits", logits)
    tensors = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    for tensor in tensors:
        check_tensor("inputs", tensor)
        if not tensor.requires_grad:
            raise ValueError(
                "an input does not require gradients; call requires_grad_() on it before the "
                "discriminator sees it."
            )
    outputs = [head.reshape(head.shape[0], -1).mean(1).sum() for head in heads]
    gradients = torch.autograd.grad(outputs, tensors, create_graph=True, allow_unused=True)
    norms = []
    for gradient in gradients:
        if gradient is None:
            raise ValueError(
                "an input was not used by these logits; pass the tensors that the discriminator saw."
            )
        norms.append(gradient.to(math_dtype(gradient)).flatten(1).square().sum(1))
    return torch.stack(norms).sum(0)


def approximate_gradient_penalty(
    discriminate: Callable[[Tensor], Logits],
    samples: Tensor,
    *,
    scale: float,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    logits: Logits | None = None,
) -> Tensor:
    """The squared change of the logits under a small perturbation: approximate R1 (real), R2 (fake).

    Args:
        discriminate: samples -> logits. It must give the same logits for the same samples: fix its
            noise, its timestep and its condition outside, and call it in eval mode if a pass in train mode
            draws or changes something (dropout; the spectral norm of `TokenHead`).
        samples: `(B, *)`, real for R1, fake for R2.
        scale: standard deviation of the perturbation, >= 0, in the samples' unit (0.01 for images in
            [-1, 1], 0.1 for latents in APT).
        generator: what the perturbation is drawn from, on the samples' device.
        noise: instead of `generator`, the perturbation before its scale, the shape of `samples`.
        logits: `discriminate(samples)`, where it is known already.

    Returns:
        `(B,)`: the mean over a head's logits, then over heads, of (D(x) - D(x + scale n))^2.

    Raises:
        ValueError: unless exactly one of `generator` and `noise` is given, or for a wrong shape.
        TypeError: for tensors that are not floating point.

    Example:
        >>> nd.functional.approximate_gradient_penalty(
        ...     lambda x: 3 * x, torch.zeros(2, 1), scale=0.1, noise=torch.ones(2, 1)
        ... )
        tensor([0.0900, 0.0900])
    """
    check_tensor("samples", samples)
    check_positive("scale", scale, zero=True)
    if (generator is None) == (noise is None):
        raise ValueError("give exactly one of generator and noise; nothing is drawn globally.")
    if noise is None:
        noise = torch.randn(
            samples.shape, generator=generator, device=samples.device, dtype=samples.dtype
        )
    check_tensor("noise", noise)
    if noise.shape != samples.shape:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)} and samples {tuple(samples.shape)}; they must be "
            "equal."
        )
    here = as_heads("logits", discriminate(samples) if logits is None else logits)
    moved = as_heads("logits", discriminate(samples + scale * noise))
    for one, other in zip(here, moved, strict=True):
        if one.shape != other.shape:
            raise ValueError(
                f"logits are {tuple(one.shape)} and {tuple(other.shape)}; they must be equal."
            )
    return mean_of_heads(_squared_difference, here, moved)


def _squared_difference(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square()


@dataclass(frozen=True)
class Side:
    """One side of the adversarial game, real or fake, and what the discriminator said of it.

    Attributes:
        samples: `(B, *)`, before any noise is added.
        features: what the heads saw, `(B, C_i, H_i, W_i)` each; they require gradients for a penalty that
            `differentiates` this side.
        logits: `(B, *)`, one a head.
        discriminate: samples -> logits, at the noise, the timesteps and the condition of `logits`.
        perturbation: standard normal noise shaped like `samples`.

    Example:
        >>> samples = torch.zeros(2, 4)
        >>> side = nd.Side(samples, (), (samples + 1,), lambda x: (x + 1,), lambda: torch.ones_like(samples))
        >>> nd.ApproximateR1Penalty(scale=0.1)(side, side)
        tensor([0.0100, 0.0100])
    """

    samples: Tensor
    features: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]
    discriminate: Callable[[Tensor], Logits]
    perturbation: Callable[[], Tensor]


class Penalty(ABC):
    """A regulariser of the discriminator, one value per sample; derive yours from it.

    Attributes:
        differentiates: the sides whose features must require gradients.

    Example:
        >>> isinstance(nd.R1Penalty(), nd.Penalty), nd.R1Penalty().differentiates
        (True, ('real',))
    """

    differentiates: ClassVar[tuple[Literal["real", "fake"], ...]] = ()

    @abstractmethod
    def __call__(self, real: Side, fake: Side) -> Tensor:
        """The penalty `(B,)`, differentiable in the discriminator's weights.

        Args:
            real: real samples.
            fake: generated ones, as many.
        """


@dataclass(frozen=True)
class R1Penalty(Penalty):
    """Exact R1 on the heads' inputs, as in ADD (Sauer et al. 2023).

    Example:
        >>> lazy = nd.LazyPenalty(nd.R1Penalty(), weight=10.0, every=16)
        >>> lazy.factor(0), lazy.factor(1)
        (160.0, 0.0)
    """

    differentiates: ClassVar[tuple[Literal["real", "fake"], ...]] = ("real",)

    def __call__(self, real: Side, fake: Side) -> Tensor:
        return gradient_penalty(real.logits, real.features)


@dataclass(frozen=True)
class R1R2Penalty(Penalty):
    """Exact R1 + R2 on the heads' inputs (R3GAN: Huang et al. 2024).

    Example:
        >>> nd.R1R2Penalty().differentiates
        ('real', 'fake')
    """

    differentiates: ClassVar[tuple[Literal["real", "fake"], ...]] = ("real", "fake")

    def __call__(self, real: Side, fake: Side) -> Tensor:
        r1, r2 = (gradient_penalty(side.logits, side.features) for side in (real, fake))
        return r1 + r2


@dataclass(frozen=True)
class ApproximateR1Penalty(Penalty):
    """Approximate R1 (APT: Lin et al. 2025).

    Args:
        scale: standard deviation of the perturbation, in the samples' unit.

    Example:
        >>> nd.named_penalties({"approximate_r1": {"weight": 100, "scale": 0.01}})["approximate_r1"].penalty
        ApproximateR1Penalty(scale=0.01)
    """

    scale: float = 0.1

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    def __call__(self, real: Side, fake: Side) -> Tensor:
        return _approximate(real, self.scale)


@dataclass(frozen=True)
class ApproximateR1R2Penalty(Penalty):
    """Approximate R1 + R2.

    Args:
        scale: standard deviation of the perturbation, in the samples' unit.

    Example:
        >>> nd.LazyPenalty(nd.ApproximateR1R2Penalty(scale=0.01), weight=100.0)
        LazyPenalty(penalty=ApproximateR1R2Penalty(scale=0.01), weight=100.0, every=1)
    """

    scale: float = 0.1

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    def __call__(self, real: Side, fake: Side) -> Tensor:
        return _approximate(real, self.scale) + _approximate(fake, self.scale)


@dataclass(frozen=True)
class LazyPenalty:
    """A penalty with its weight, applied at every n-th update and n times as strong (StyleGAN2's lazy form).

    Attributes:
        penalty: what is added.
        weight: its factor, >= 0.
        every: n.

    Example:
        >>> nd.LazyPenalty(nd.R1Penalty(), weight=1.0, every=4).factor(4)
        4.0
    """

    penalty: Penalty
    weight: float = 1.0
    every: int = 1

    def __post_init__(self) -> None:
        check_fields(self, weight=0, every=1)

    def factor(self, update: int) -> float:
        """What the penalty is multiplied with at the discriminator's update number `update`: 0, or n weight."""
        check_whole("update", update, 0)
        return self.weight * self.every if update % self.every == 0 else 0.0


def _approximate(side: Side, scale: float) -> Tensor:
    return approximate_gradient_penalty(
        side.discriminate, side.samples, scale=scale, noise=side.perturbation(), logits=side.logits
    )
