"""Losses made of losses.

MultiScaleLoss   sum_s w_s loss(pool^s(pred), pool^s(target)),   pool = 2 by 2 means
WeightedSum      sum_i w_i loss_i(pred, target), with every part by its name
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nitrodistill.kernels.arithmetic import math_dtype
from nitrodistill.losses.base import Loss, Reduction, check_mask, check_pair, check_positive
from nitrodistill.types import Terms

__all__ = ["MultiScaleLoss", "WeightedSum"]


class MultiScaleLoss(Loss):
    """A loss summed over scales, each half the size of the one before.

    A scale is the 2 by 2 mean of the one before; at an odd side the last mean is over what is there. A
    mask is averaged likewise.

    Args:
        loss: what is taken at every scale; its own reduction is not used.
        weights: one factor per scale, the finest first; both sides need 2^(len(weights) - 1) pixels or
            more.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: for no weights, a negative one, or an unknown reduction.
    """

    loss: Loss
    weights: tuple[float, ...]

    def __init__(
        self,
        loss: Loss,
        weights: Sequence[float] = (1.0, 1.0, 1.0),
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        if len(weights) == 0:
            raise ValueError("weights is empty; it must hold one factor per scale.")
        self.loss = loss
        self.weights = tuple(check_positive("a weight", weight, zero=True) for weight in weights)

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `Loss.per_sample`; `pred` is `(B, C, H, W)` or `(B, C, T, H, W)`."""
        check_pair(pred, target)
        if pred.ndim not in (4, 5) or min(pred.shape[-2:]) < 2 ** (len(self.weights) - 1):
            raise ValueError(
                f"pred has shape {tuple(pred.shape)}; {len(self.weights)} scales need images "
                f"(B, C, [T,] H, W) with sides of {2 ** (len(self.weights) - 1)} or more."
            )
        dtype = math_dtype(pred, target)
        pred, target = pred.to(dtype), target.to(dtype)
        if mask is not None:
            check_mask(mask, pred)
            mask = mask.to(dtype).expand(*mask.shape[:-2], *pred.shape[-2:])
        total = pred.new_zeros(pred.shape[0])
        for scale, weight in enumerate(self.weights):
            if scale > 0:
                pred, target = _halve(pred), _halve(target)
                mask = None if mask is None else _halve(mask)
            total = total + weight * self.loss.per_sample(pred, target, mask)
        return total

    def extra_repr(self) -> str:
        return f"weights={self.weights}, {super().extra_repr()}"


class WeightedSum(nn.Module):
    """A weighted sum of named losses.

    Example:
        >>> import torch
        >>> from nitrodistill.losses import L1Loss, LatentSSIMLoss, WeightedSum
        >>> loss = WeightedSum({"l1": (1.0, L1Loss()), "ssim": (0.5, LatentSSIMLoss(8.0))})
        >>> total, parts = loss(torch.zeros(2, 4, 16, 16), torch.ones(2, 4, 16, 16))
        >>> sorted(parts)
        ['l1', 'ssim']

    Args:
        losses: name -> (weight, loss). Every loss keeps its own reduction, "mean" or "sum".

    Raises:
        ValueError: for no losses, a weight that is not finite, or a loss with reduction "none".
        TypeError: for an entry that is not a pair.
    """

    weights: dict[str, float]

    def __init__(self, losses: Mapping[str, tuple[float, Loss]]) -> None:
        super().__init__()
        if not losses:
            raise ValueError("WeightedSum got no losses; give it {name: (weight, loss)}.")
        for name, pair in losses.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise TypeError(
                    f"the loss {name!r} is given as {type(pair).__name__}; give it as (weight, loss)."
                )
            _, loss = pair
            if loss.reduction == "none":
                raise ValueError(
                    f"the loss {name!r} has reduction 'none'; a sum needs scalars, use 'mean' or 'sum'."
                )
        self.weights = {
            name: check_positive(f"the weight of {name!r}", weight, zero=True)
            for name, (weight, _) in losses.items()
        }
        self.losses: nn.ModuleDict = nn.ModuleDict(
            {name: loss for name, (_, loss) in losses.items()}
        )

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Terms:
        """The sum and its parts.

        Args:
            pred: what is judged, `(B, *)`.
            target: what it should be, the same shape.
            mask: given to every loss.
            weight: `(B,)`, given to every loss.

        Returns:
            `Terms(total, parts)`: the scalar to call backward on, and every loss's detached value
            before its weight, by name.
        """
        values = {
            name: loss(pred, target, mask=mask, weight=weight) for name, loss in self.losses.items()
        }
        total = torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        return Terms(total, {name: value.detach() for name, value in values.items()})

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"weights={self.weights}"


def _halve(x: Tensor) -> Tensor:
    """2 by 2 means of the last two dimensions; at an odd side over what is there."""
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.avg_pool2d(flat, 2, ceil_mode=True, count_include_pad=False)
    return flat.view(*x.shape[:-2], *flat.shape[-2:])
