"""Elementwise losses on the difference d = pred - target.

    L1            |d|
    L2            d^2
    smooth L1     d^2 / (2 beta) if |d| < beta else |d| - beta / 2
    Huber         d^2 / 2 if |d| <= delta else delta (|d| - delta / 2)
    pseudo-Huber  sqrt(d^2 + c^2) - c          (Charbonnier et al. 1997; consistency models: LCM, iCT)
    Charbonnier   sqrt(d^2 + eps^2)            (Lai et al. 2017)

The value of a sample is the mean over its elements, with a mask m the mean sum(m e) / sum(m).
`dim="sample"` of pseudo-Huber takes the norm over the whole sample, sqrt(||d||^2 + c^2) - c, as in
improved consistency training (Song & Dhariwal 2023); under a mask ||d||^2 is N sum(m d^2) / sum(m).
Pseudo-Huber is computed as d^2 / (sqrt(d^2 + c^2) + c), which does not cancel where d is far below c.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.checks import check_choice, check_mask, check_pair, check_positive
from nitrodistill.kernels.arithmetic import masked_mean, math_dtype
from nitrodistill.kernels.x0_loss.reference import elementwise_loss
from nitrodistill.losses.base import Loss, Reduction

NormDim = Literal["element", "sample"]
"""What pseudo-Huber takes the norm of: every element, or the whole sample."""


def l1_loss(pred: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean |pred - target| of every sample.

    Args:
        pred: `(B, *)`.
        target: `(B, *)`.
        mask: broadcasts to `pred`; the mean becomes sum(m e) / sum(m).

    Returns:
        `(B,)`.

    Example:
        >>> nd.functional.l1_loss(torch.zeros(2, 4), torch.ones(2, 4))
        tensor([1., 1.])
    """
    pred, target = _prepare(pred, target, mask)
    return masked_mean(F.l1_loss(pred, target, reduction="none"), mask)


def l2_loss(pred: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean (pred - target)^2 of every sample; arguments as in `l1_loss`.

    Example:
        >>> nd.functional.l2_loss(torch.zeros(2, 4), torch.full((2, 4), 3.0))
        tensor([9., 9.])
    """
    pred, target = _prepare(pred, target, mask)
    return masked_mean(F.mse_loss(pred, target, reduction="none"), mask)


def smooth_l1_loss(
    pred: Tensor, target: Tensor, *, beta: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Smooth L1 of every sample: quadratic below `beta` >= 0, 0 being L1; else as `l1_loss`.

    Example:
        >>> nd.functional.smooth_l1_loss(torch.zeros(2, 4), torch.full((2, 4), 2.0), beta=1.0)
        tensor([1.5000, 1.5000])
    """
    beta = check_positive("beta", beta, zero=True)
    pred, target = _prepare(pred, target, mask)
    return masked_mean(F.smooth_l1_loss(pred, target, reduction="none", beta=beta), mask)


def huber_loss(
    pred: Tensor, target: Tensor, *, delta: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Huber loss of every sample, `delta` > 0 times smooth L1; else as `l1_loss`.

    Example:
        >>> nd.functional.huber_loss(torch.zeros(2, 4), torch.full((2, 4), 2.0), delta=1.0)
        tensor([1.5000, 1.5000])
    """
    delta = check_positive("delta", delta)
    pred, target = _prepare(pred, target, mask)
    return masked_mean(F.huber_loss(pred, target, reduction="none", delta=delta), mask)


def pseudo_huber_loss(
    pred: Tensor,
    target: Tensor,
    *,
    c: float | None = None,
    dim: NormDim = "element",
    mask: Tensor | None = None,
) -> Tensor:
    """Pseudo-Huber loss sqrt(d^2 + c^2) - c of every sample.

    Args:
        pred: `(B, *)`.
        target: `(B, *)`.
        c: where the quadratic becomes linear, > 0, in the data's unit. None is 1e-3 for elements
            (LCM) and 0.00054 sqrt(N) for samples of N elements (iCT).
        dim: "element" is the mean of the elementwise loss, "sample" takes d as the norm of the
            whole sample.
        mask: broadcasts to `pred`.

    Returns:
        `(B,)`.

    Example:
        >>> nd.functional.pseudo_huber_loss(torch.zeros(1, 3), torch.ones(1, 3), c=1.0, dim="sample")
        tensor([1.])
    """
    check_choice("dim", dim, get_args(NormDim))
    c = None if c is None else check_positive("c", c)
    pred, target = _prepare(pred, target, mask)
    if dim == "element":
        c = 1e-3 if c is None else c
        return masked_mean(elementwise_loss(pred, target, "pseudo_huber", c), mask)
    difference = pred - target
    size = difference[0].numel()
    c = 0.00054 * math.sqrt(size) if c is None else c
    square = size * masked_mean(difference.square(), mask)
    return square / ((square + c * c).sqrt() + c)


def charbonnier_loss(
    pred: Tensor, target: Tensor, *, eps: float = 1e-3, mask: Tensor | None = None
) -> Tensor:
    """Mean sqrt(d^2 + eps^2) of every sample, `eps` > 0; else as `l1_loss`.

    Example:
        >>> nd.functional.charbonnier_loss(torch.zeros(1, 1), torch.full((1, 1), 4.0), eps=3.0)
        tensor([5.])
    """
    eps = check_positive("eps", eps)
    pred, target = _prepare(pred, target, mask)
    return masked_mean(elementwise_loss(pred, target, "charbonnier", eps), mask)


class L1Loss(Loss):
    """Mean absolute difference; see `l1_loss`.

    Example:
        >>> nd.L1Loss()(torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 8, 8))
        tensor(1.)
    """

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return l1_loss(pred, target, mask=mask)

    def plain_mean(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(*_prepare(pred, target, None))


class L2Loss(Loss):
    """Mean squared difference; see `l2_loss`.

    Example:
        >>> nd.L2Loss(reduction="none")(torch.zeros(2, 4), torch.tensor([[1.0], [2.0]]).expand(2, 4))
        tensor([1., 4.])
    """

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return l2_loss(pred, target, mask=mask)

    def plain_mean(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(*_prepare(pred, target, None))


class SmoothL1Loss(Loss):
    """Smooth L1; see `smooth_l1_loss`.

    Args:
        beta: where the quadratic becomes linear, >= 0, in the data's unit.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: for a negative `beta` or an unknown reduction.

    Example:
        >>> nd.SmoothL1Loss(beta=1.0)(torch.zeros(2, 4), torch.full((2, 4), 2.0))
        tensor(1.5000)
    """

    beta: float

    def __init__(self, beta: float = 1.0, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.beta = check_positive("beta", beta, zero=True)

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return smooth_l1_loss(pred, target, beta=self.beta, mask=mask)

    def plain_mean(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(*_prepare(pred, target, None), beta=self.beta)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, {super().extra_repr()}"


class HuberLoss(Loss):
    """Huber loss; see `huber_loss`.

    Args:
        delta: where the quadratic becomes linear, > 0, in the data's unit.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: for `delta` <= 0 or an unknown reduction.

    Example:
        >>> nd.HuberLoss(delta=0.5)(torch.zeros(2, 4), torch.ones(2, 4))
        tensor(0.3750)
    """

    delta: float

    def __init__(self, delta: float = 1.0, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.delta = check_positive("delta", delta)

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return huber_loss(pred, target, delta=self.delta, mask=mask)

    def plain_mean(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(*_prepare(pred, target, None), delta=self.delta)

    def extra_repr(self) -> str:
        return f"delta={self.delta}, {super().extra_repr()}"


class PseudoHuberLoss(Loss):
    """Pseudo-Huber loss sqrt(d^2 + c^2) - c; see `pseudo_huber_loss`.

    Args:
        c: where the quadratic becomes linear, > 0; None is 1e-3 for elements (LCM) and
            0.00054 sqrt(N) for samples of N elements (iCT).
        dim: "element", or "sample" for the norm over the whole sample.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: for `c` <= 0, an unknown `dim` or an unknown reduction.

    Example:
        >>> nd.PseudoHuberLoss(c=1.0)(torch.zeros(1, 1), torch.full((1, 1), 3.0**0.5))
        tensor(1.)
    """

    c: float | None
    dim: NormDim

    def __init__(
        self, c: float | None = None, dim: NormDim = "element", *, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction=reduction)
        self.c = None if c is None else check_positive("c", c)
        self.dim = check_choice("dim", dim, get_args(NormDim))

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return pseudo_huber_loss(pred, target, c=self.c, dim=self.dim, mask=mask)

    def extra_repr(self) -> str:
        return f"c={self.c}, dim={self.dim!r}, {super().extra_repr()}"


class CharbonnierLoss(Loss):
    """Charbonnier loss sqrt(d^2 + eps^2); see `charbonnier_loss`.

    Args:
        eps: its value at d = 0, > 0, in the data's unit.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: for `eps` <= 0 or an unknown reduction.

    Example:
        >>> nd.CharbonnierLoss(eps=3.0)(torch.zeros(1, 1), torch.full((1, 1), 4.0))
        tensor(5.)
    """

    eps: float

    def __init__(self, eps: float = 1e-3, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.eps = check_positive("eps", eps)

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return charbonnier_loss(pred, target, eps=self.eps, mask=mask)

    def extra_repr(self) -> str:
        return f"eps={self.eps}, {super().extra_repr()}"


def _prepare(pred: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Checks the inputs and brings them to the dtype that the loss computes in."""
    check_pair(pred, target)
    if mask is not None:
        check_mask(mask, pred)
    if pred.dtype is torch.float32 and target.dtype is torch.float32:
        return pred, target  # the common case, where a microsecond shows
    dtype = math_dtype(pred, target)
    return pred.to(dtype), target.to(dtype)
