"""The loss of a denoiser on the data that its prediction stands for.

    x0_hat = x0(prediction, x_t)          (nitrodistill.prediction)
    loss   = reduce_b  weight_b mean rho(x0_hat - x0)

in one call, and on a GPU in one kernel: what critics, regressions and any diffusion loop need.
"""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from nitrodistill.checks import (
    check_choice,
    check_mask,
    check_pair,
    check_positive,
    check_scales,
    check_weight,
)
from nitrodistill.kernels.x0_loss import ElementwiseLoss, x0_loss, x0_loss_mean
from nitrodistill.losses.base import Reduction
from nitrodistill.types import PredictionType, Scales, check_prediction_type

_PARAMETERS: dict[str, float] = {"pseudo_huber": 1e-3, "charbonnier": 1e-3}


def denoising_loss(
    output: Tensor,
    x_t: Tensor,
    target: Tensor,
    scales: Scales,
    prediction_type: PredictionType,
    *,
    loss: ElementwiseLoss = "l2",
    parameter: float | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of `output`, read as x0, against the data.

    Args:
        output: what the network said, `(B, *)`.
        x_t: what it was shown, `(B, *)`.
        target: the data x0, `(B, *)`.
        scales: alpha and sigma of x_t, `(B,)` or zero-dimensional. Where alpha is 0 an epsilon
            prediction says nothing of x0 and the loss is not finite:
            `nitrodistill.prediction.check_convertible` refuses that on the host.
        prediction_type: what `output` is.
        loss: "l1", "l2", "smooth_l1", "huber", "pseudo_huber" or "charbonnier".
        parameter: beta, delta, c or eps of the loss; None is 1 for smooth_l1 and huber, 1e-3 for the
            others.
        mask: broadcasts to `target`.
        weight: `(B,)`, for example an SNR weight.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or `(B,)` with reduction "none"; float64 if an input is, else float32.

    Raises:
        ValueError: for unequal shapes, scales that are not per sample, or an unknown option.
        TypeError: for tensors that are not floating point.

    Example:
        >>> x0, noise = torch.zeros(2, 4), torch.ones(2, 4)
        >>> scales = nd.RectifiedFlow()(torch.tensor([100.0, 900.0]))
        >>> x_t = scales.mix(x0, noise)
        >>> nd.denoising_loss(noise - x0, x_t, noise - x0, scales, "flow_prediction").item()
        1.0
    """
    check_pair(output, target)
    check_pair(x_t, target)
    check_prediction_type(prediction_type)
    check_choice("loss", loss, get_args(ElementwiseLoss))
    check_choice("reduction", reduction, get_args(Reduction))
    check_scales(scales, output.shape[0])
    if mask is not None:
        check_mask(mask, target)
    if weight is not None:
        check_weight(weight, output.shape[0])
    if parameter is None:
        parameter = _PARAMETERS.get(loss, 1.0)
    parameter = check_positive("parameter", parameter, zero=loss == "smooth_l1")
    # Where the fused kernel runs, a mean without mask comes with its gradient, in one pass.
    fused = x0_loss_mean if reduction == "mean" else x0_loss
    value = fused(
        output,
        x_t,
        target,
        *scales,
        prediction_type=prediction_type,
        loss=loss,
        parameter=parameter,
        mask=mask,
        weight=weight,
    )
    return value.sum() if reduction == "sum" else value
