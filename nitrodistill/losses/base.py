"""What all losses share: the reduction, and the `Loss` base.

A loss is a pure function with one value per sample, and a module around it:

    loss(pred, target, *, mask=None, weight=None) = reduce_b( weight_b * value_b(pred, target, mask) )

`weight` (B,) is a factor per sample, for example an SNR weight; it is not normalised, so "mean" is
sum_b(weight_b value_b) / B. `mask` broadcasts to the data and says where the loss looks; a sample
whose mask is zero everywhere has the value 0 and no gradient. What is checked is static (type, dtype,
shape): looking at values would stall a device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor, nn

from nitrodistill.checks import check_choice, check_weight

Reduction = Literal["mean", "sum", "none"]
"""How per-sample values become the result; "none" keeps them."""


class Loss(nn.Module, ABC):
    """A loss on two tensors of one shape, with a mask, a weight per sample and a reduction.

    float64 input is computed and returned in float64, every other dtype in float32; gradients come
    in each input's own dtype.

    Args:
        reduction: "mean" or "sum" over the samples, or "none" for one value per sample `(B,)`.

    Attributes:
        reduction: see above.
        num_draws: how many random numbers a sample this loss takes in train mode; a class that takes some sets it.
        drawn: those numbers, `(B, num_draws)` float32, which `draw` sets, on the CPU where they are of `Draws`;
            None where nobody has drawn.

    Raises:
        ValueError: for an unknown reduction.

    Example:
        >>> class Cosine(nd.Loss):
        ...     def per_sample(self, pred, target, mask=None):
        ...         return 1 - torch.cosine_similarity(pred.flatten(1), target.flatten(1))
        >>> Cosine()(torch.ones(2, 4), -torch.ones(2, 4)).item()
        2.0
    """

    reduction: Reduction
    num_draws: int = 0
    drawn: Tensor | None = None

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.reduction = check_choice("reduction", reduction, get_args(Reduction))

    @abstractmethod
    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of every sample.

        Args:
            pred: what is compared, `(B, *)`.
            target: what it should be, the same shape.
            mask: non-negative, broadcasts to `pred`, of the same number of dimensions.

        Returns:
            `(B,)`, float64 if an input is, else float32.
        """

    def plain_mean(self, pred: Tensor, target: Tensor) -> Tensor:
        """The mean over the batch without mask and weight; a loss may know a faster way to it."""
        return self.per_sample(pred, target).mean()

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The reduced loss.

        Args:
            pred: what is compared, `(B, *)`.
            target: what it should be, the same shape.
            mask: non-negative, broadcasts to `pred`, of the same number of dimensions.
            weight: `(B,)`, a factor for every sample.

        Returns:
            A scalar, or `(B,)` with reduction "none".
        """
        if mask is None and weight is None and self.reduction == "mean":
            return self.plain_mean(pred, target)
        return reduce(self.per_sample(pred, target, mask), weight, self.reduction)

    def draw(self, uniform: Callable[[str, int], Tensor], name: str = "loss") -> None:
        """Draws what this loss and those inside of it take at random, for the calls until it is called again.

        A method calls it before each call of its losses, with its own `Draws`: then a run that is resumed has the
        draws of an unbroken one, and every sample its own.

        Args:
            uniform: (name, n) -> `(B, n)` uniform draws in [0, 1): `Draws.uniform`.
            name: what the names of the draws begin with.
        """
        for path, part in self.named_modules(prefix=name):
            if isinstance(part, Loss) and part.num_draws:
                part.drawn = uniform(path, part.num_draws)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"reduction={self.reduction!r}"


def reduce(per_sample: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    """Weights and reduces per-sample values `(B,)`.

    Raises:
        ValueError: if `weight` is not `(B,)`.
        TypeError: if `weight` is not a real floating-point tensor.
    """
    if weight is not None:
        check_weight(weight, per_sample.shape[0])
        per_sample = per_sample * weight.to(per_sample.dtype)
    if reduction == "mean":
        return per_sample.mean()
    return per_sample.sum() if reduction == "sum" else per_sample


def check_part(name: str, loss: Loss) -> Loss:
    """Returns `loss` if it can be a part of another one, which does the reducing.

    Raises:
        TypeError: if it is no `Loss`.
        ValueError: if it has another reduction than "mean".
    """
    if not isinstance(loss, Loss):
        raise TypeError(f"{name} is a {type(loss).__name__}; it must be a nitrodistill.Loss.")
    if loss.reduction != "mean":
        raise ValueError(
            f"{name} has reduction {loss.reduction!r}, which would not be used; give the reduction to the "
            "loss around it."
        )
    return loss


def refuse_trainable(role: str, value: object) -> None:
    """Refuses a network that a loss would train.

    Raises:
        ValueError: if it has parameters that require gradients.
    """
    if isinstance(value, nn.Module) and any(p.requires_grad for p in value.parameters()):
        raise ValueError(
            f"the {role} has parameters that require gradients, and the loss would train them; call "
            ".eval().requires_grad_(False) on it first."
        )


def to_frames(data: Tensor, name: str = "pred") -> Tensor:
    """Views `(B, C, H, W)` or `(B, C, T, H, W)` as images `(B, C * T, H, W)`: a frame is a channel.

    Losses over windows look at single frames, and every sample keeps one value.

    Raises:
        ValueError: for any other number of dimensions.
    """
    if data.ndim not in (4, 5):
        raise ValueError(
            f"{name} has shape {tuple(data.shape)}; images (B, C, H, W) or videos (B, C, T, H, W) "
            "are wanted."
        )
    return data if data.ndim == 4 else data.flatten(1, 2)


def expand_frames(mask: Tensor, data: Tensor) -> Tensor:
    """A mask that broadcasts to `data`, as one that broadcasts to `to_frames(data)` over channels.

    Its last two dimensions are those of the data.
    """
    mask = mask.expand(data.shape[0], *mask.shape[1:-2], *data.shape[-2:])
    if mask.ndim == 5:
        if mask.shape[1] > 1 or mask.shape[2] > 1:
            mask = mask.expand(data.shape)
        mask = mask.flatten(1, 2)
    return mask
