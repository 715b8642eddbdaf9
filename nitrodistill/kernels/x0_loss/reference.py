"""Loss on the data that a prediction implies: the definition.

    x0  = a x_t + b p                                       (nitrodistill.prediction.to_x0)
    L_b = w_b sum_i m_i rho(x0_i - target_i) / sum_i m_i    (m = 1 without a mask)

with rho one of

    l1           |r|
    l2           r^2
    smooth_l1    r^2 / (2 k) if |r| < k else |r| - k/2        (k = 0 is l1)
    huber        k * smooth_l1
    pseudo_huber sqrt(r^2 + k^2) - k
    charbonnier  sqrt(r^2 + k^2)

Everything is computed in float32, or in float64 where an input is float64. This file is what runs on
a CPU, what the fused kernel is tested against, and what differentiates it a second time.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.kernels.arithmetic import masked_mean, math_dtype
from nitrodistill.prediction import to_x0
from nitrodistill.types import PredictionType, Scales

ElementwiseLoss = Literal["l1", "l2", "smooth_l1", "huber", "pseudo_huber", "charbonnier"]


def elementwise_loss(x: Tensor, y: Tensor, loss: ElementwiseLoss, parameter: float = 1.0) -> Tensor:
    """rho(x - y), elementwise, in the dtype that comes in; torch's own function where there is one.

    Args:
        x: any shape.
        y: the same shape.
        loss: which rho; see the formulas above.
        parameter: k of the formulas, in the data's unit; l1 and l2 do not use it.

    Raises:
        ValueError: for an unknown `loss`.
    """
    if loss == "l1":
        return F.l1_loss(x, y, reduction="none")
    if loss == "l2":
        return F.mse_loss(x, y, reduction="none")
    if loss == "smooth_l1":
        return F.smooth_l1_loss(x, y, reduction="none", beta=parameter)
    if loss == "huber":
        return F.huber_loss(x, y, reduction="none", delta=parameter)
    square = (x - y).square()
    if loss == "pseudo_huber":
        # r^2 / (root + k) is root - k without its cancellation for small r.
        return square / (torch.sqrt(square + parameter * parameter) + parameter)
    if loss == "charbonnier":
        return torch.sqrt(square + parameter * parameter)
    raise ValueError(
        f"loss {loss!r} is not an elementwise loss; use l1, l2, smooth_l1, huber, pseudo_huber or "
        "charbonnier"
    )


def x0_loss(
    output: Tensor,
    x_t: Tensor,
    target: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    prediction_type: PredictionType,
    loss: ElementwiseLoss = "l2",
    parameter: float = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """The formulas above, `(B,)`; arguments and result as in `nitrodistill.kernels.x0_loss.x0_loss`."""
    dtype = math_dtype(output, x_t, target)
    x0 = to_x0(output.to(dtype), x_t.to(dtype), Scales(alpha, sigma), prediction_type)
    values = elementwise_loss(x0, target.to(dtype), loss, parameter)
    per_sample = masked_mean(values, mask)
    return per_sample if weight is None else per_sample * weight.to(dtype)


def loss_parameter(loss: ElementwiseLoss, parameter: float) -> float:
    """Check k for `loss`: finite; >= 0 for smooth_l1, > 0 for huber, pseudo_huber and charbonnier.

    Raises:
        ValueError: otherwise.
    """
    lowest_excluded = loss in ("huber", "pseudo_huber", "charbonnier")
    used = lowest_excluded or loss == "smooth_l1"
    low = parameter <= 0 if lowest_excluded else parameter < 0
    if used and (low or not math.isfinite(parameter)):
        rule = "positive" if lowest_excluded else "0 or more"
        raise ValueError(f"parameter of {loss} is {parameter}; it must be {rule} and finite")
    return float(parameter)
