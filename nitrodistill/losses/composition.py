"""Losses made of losses.

MultiScaleLoss   sum_s w_s loss(pool^s(pred), pool^s(target)),   pool = 2 by 2 means
WeightedSum      sum_i w_i loss_i(pred, target), with every part by its name
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nitrodistill.checks import check_kind, check_mask, check_numbers, check_pair, check_positive
from nitrodistill.kernels.arithmetic import math_dtype
from nitrodistill.losses.base import Loss, Reduction, check_part
from nitrodistill.losses.decoded import DecodedLoss, decoded_values


class MultiScaleLoss(Loss):
    """A loss summed over scales, each half the size of the one before.

    A scale is the 2 by 2 mean of the one before; at an odd side the last mean is over what is there. A
    mask is averaged likewise.

    Args:
        loss: what is taken at every scale; its own reduction must be "mean", this module has one.
        weights: one factor per scale, the finest first; both sides need 2^(len(weights) - 1) pixels or
            more.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: for no weights, a negative one, a loss with another reduction than "mean", or an unknown
            reduction.

    Example:
        >>> nd.MultiScaleLoss(nd.L1Loss(), weights=(1.0, 0.5))(torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 8, 8))
        tensor(1.5000)
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
        self.weights = check_numbers("weights", weights, zero=True)
        if len(self.weights) == 0:
            raise ValueError("weights is empty; it must hold one factor per scale.")
        self.loss = check_part("the loss", loss)

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


class WeightedSum(Loss):
    """A weighted sum of named losses: a loss itself, that knows its parts.

    Parts that are a `DecodedLoss` of one decoder are decoded once, together.

    Example:
        >>> import torch
        >>> from nitrodistill.losses import L1Loss, LatentSSIMLoss, WeightedSum
        >>> loss = WeightedSum({"l1": (1.0, L1Loss()), "ssim": (0.5, LatentSSIMLoss(8.0))})
        >>> parts = loss.parts(torch.zeros(2, 4, 16, 16), torch.ones(2, 4, 16, 16))
        >>> {name: value.round(decimals=3).tolist() for name, value in parts.items()}
        {'l1': [1.0, 1.0], 'ssim': [0.0, 0.0]}
        >>> loss.weigh(parts).tolist()
        [1.0, 1.0]

    Args:
        losses: name -> (weight, loss); their own reduction must be "mean", and the sum has one.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: for no losses, a weight that is negative or not finite, a loss with another reduction than
            "mean", or an unknown reduction.
        TypeError: for an entry that is not a pair.
    """

    weights: dict[str, float]

    def __init__(
        self, losses: Mapping[str, tuple[float, Loss]], *, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction=reduction)
        check_kind("losses", losses, Mapping, ": {name: (weight, loss)}")
        if not losses:
            raise ValueError("WeightedSum got no losses; give it {name: (weight, loss)}.")
        for name, pair in losses.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise TypeError(
                    f"the loss {name!r} is given as {type(pair).__name__}; give it as (weight, loss)."
                )
            check_part(f"the loss {name!r}", pair[1])
        self.weights = {
            name: check_positive(f"the weight of {name!r}", weight, zero=True)
            for name, (weight, _) in losses.items()
        }
        # A list, because a ModuleDict refuses names such as "half" and those with a dot.
        self.losses: nn.ModuleList = nn.ModuleList(loss for _, loss in losses.values())

    def parts(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Every loss's value before its weight, `(B,)` each; arguments as in `per_sample`.

        `weigh` makes the sum of them, so that a log and a backward pass pay once. What is not decoded is compared
        in float32 or wider, so that the gradient of the sum is rounded once.
        """
        wide = _widened(pred, target)
        values: dict[str, Tensor] = {}
        shared: dict[tuple[int, int | None], dict[str, DecodedLoss]] = {}
        for name, loss in zip(self.weights, self.losses, strict=True):
            assert isinstance(loss, Loss)
            if isinstance(loss, DecodedLoss):
                shared.setdefault((id(loss.decode), loss.chunk), {})[name] = loss
            else:
                values[name] = loss.per_sample(*wide, mask)
        for group in shared.values():
            together = decoded_values(list(group.values()), pred, target, mask)
            values |= dict(zip(group, together, strict=True))
        return {name: values[name] for name in self.weights}

    def weigh(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of `parts`, `(B,)`."""
        terms = [weight * parts[name] for name, weight in self.weights.items()]
        return torch.stack(terms).sum(0)

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.weigh(self.parts(pred, target, mask))

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"weights={self.weights}, {super().extra_repr()}"


def _widened(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype that losses compute in; what is no tensor of numbers is left for them to judge."""
    tensors = [value for value in (pred, target) if isinstance(value, Tensor)]
    if len(tensors) < 2 or not all(tensor.is_floating_point() for tensor in tensors):
        return pred, target
    dtype = math_dtype(*tensors)
    return pred.to(dtype), target.to(dtype)


def _halve(x: Tensor) -> Tensor:
    """2 by 2 means of the last two dimensions; at an odd side over what is there."""
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.avg_pool2d(flat, 2, ceil_mode=True, count_include_pad=False)
    return flat.view(*x.shape[:-2], *flat.shape[-2:])
