"""x0-conversion, elementwise loss, mask and per-sample weight in one call; see `reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from nitrodistill.checks import check_weight
from nitrodistill.kernels import backend
from nitrodistill.kernels.layout import aligned
from nitrodistill.kernels.x0_loss import reference
from nitrodistill.kernels.x0_loss.operation import X0Loss, X0LossMean
from nitrodistill.kernels.x0_loss.reference import ElementwiseLoss, elementwise_loss, loss_parameter
from nitrodistill.types import PredictionType, check_prediction_type

__all__ = ["ElementwiseLoss", "elementwise_loss", "loss_parameter", "x0_loss", "x0_loss_mean"]


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
    """Convert a prediction to x0 and take its loss against the data, one value per sample.

    Args:
        output: what the network said (B, *), floating.
        x_t: what it was given (B, *).
        target: the data it should have meant (B, *).
        alpha: scale of the data in x_t, (B,) or zero-dimensional. Not zero for epsilon.
        sigma: scale of the noise in x_t, of the same shape.
        prediction_type: what `output` is.
        loss: elementwise loss on x0 - target.
        parameter: its k: beta of smooth_l1, delta of huber, c of pseudo_huber, eps of charbonnier.
        mask: non-negative, broadcasts to (B, *); the mean becomes sum(m rho) / sum(m).
        weight: per-sample factor (B,), for example an SNR weight.

    Returns:
        (B,), float32, or float64 where an input is float64. Gradients reach output, x_t, target and
        weight, each in its own dtype.

    Raises:
        ValueError: for unequal shapes, several devices, an unknown type or loss, or a parameter out of
            range.
        TypeError: for a tensor that is not floating, or a DTensor.
    """
    parameter = _check(output, x_t, target, alpha, sigma, prediction_type, loss, parameter, weight)
    if not backend.fused("x0_loss", (output, x_t, target), (alpha, sigma, mask)):
        return reference.x0_loss(
            output, x_t, target, alpha, sigma, prediction_type=prediction_type,
            loss=loss, parameter=parameter, mask=mask, weight=weight,
        )  # fmt: skip
    inside = None if weight is None or weight.requires_grad else weight
    per_sample = X0Loss.apply(
        *aligned(output, x_t, target),
        *_scales(alpha, sigma, output),
        mask,
        inside,
        prediction_type,
        loss,
        parameter,
    )
    return per_sample if weight is inside else per_sample * weight


def x0_loss_mean(
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
    """The mean of `x0_loss` over the batch, a scalar.

    Where the fused kernel runs, only `output` needs a gradient and there is no mask, the forward pass
    writes that gradient too (three reads and one write in all); the backward pass keeps it where the
    upstream gradient is one, and recomputes it where it is not.

    Args and Raises: as for `x0_loss`.
    """
    one_pass = (
        mask is None
        and torch.is_grad_enabled()
        and output.requires_grad
        and not torch.compiler.is_compiling()
        and backend.fused("x0_loss", (output, x_t, target), (x_t, target, alpha, sigma, weight))
    )
    if not one_pass:
        return x0_loss(
            output, x_t, target, alpha, sigma, prediction_type=prediction_type,
            loss=loss, parameter=parameter, mask=mask, weight=weight,
        ).mean()  # fmt: skip
    parameter = _check(output, x_t, target, alpha, sigma, prediction_type, loss, parameter, weight)
    return X0LossMean.apply(
        *aligned(output, x_t, target),
        *_scales(alpha, sigma, output),
        weight,
        prediction_type,
        loss,
        parameter,
    )


def _check(
    output: Tensor,
    x_t: Tensor,
    target: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction_type: PredictionType,
    loss: ElementwiseLoss,
    parameter: float,
    weight: Tensor | None,
) -> float:
    if not output.shape == x_t.shape == target.shape:
        raise ValueError(
            f"output, x_t and target have shapes {tuple(output.shape)}, {tuple(x_t.shape)} and "
            f"{tuple(target.shape)}; they must be equal."
        )
    if alpha.shape != sigma.shape or alpha.shape not in ((), output.shape[:1]):
        raise ValueError(
            f"alpha and sigma have shapes {tuple(alpha.shape)} and {tuple(sigma.shape)}; both must "
            f"be {tuple(output.shape[:1])}, one value per sample, or ()."
        )
    if weight is not None:
        check_weight(weight, output.shape[0])
    check_prediction_type(prediction_type)
    return loss_parameter(loss, parameter)


def _scales(alpha: Tensor, sigma: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    return alpha.to(like.device).contiguous(), sigma.to(like.device).contiguous()
