"""All conversions between what networks predict.

With `x_t = alpha x0 + sigma eps` every prediction is `p = c x0 + d eps`:

    epsilon          (c, d) = (0, 1)
    sample           (c, d) = (1, 0)
    v_prediction     (c, d) = (-sigma, alpha)      (Salimans & Ho 2022)
    flow_prediction  (c, d) = (-1, 1)              (rectified flow: eps - x0)

so that `x0` and `eps` are one 2x2 solve away, with determinant `D = alpha d - sigma c`:

    x0 = (d x_t - sigma p) / D        eps = (alpha p - c x_t) / D
    p' = ((c' d - d' c) x_t + (alpha d' - sigma c') p) / D

`D` is 0 for epsilon where alpha = 0 and for sample where sigma = 0: there x0 or eps does not exist, and
`check_convertible` says so. Scales on the CPU are looked at in every conversion, where it costs nothing. On a
device, and inside of `torch.compile`, they never are (a look would stall it, and cannot be captured in a graph):
there the result is infinite or NaN, so whoever composes a schedule with a prediction type calls
`check_convertible` once, on the host, as `StepPlan.check` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from nitrodistill.checks import check_floating, check_scales, on_host
from nitrodistill.types import PredictionType, Scales, check_prediction_type, expand


@dataclass(frozen=True)
class Clamp:
    """What a sampler does to x0 on its way: clips it, or thresholds it dynamically.

    Dynamic thresholding (Saharia et al. 2022, section 2.3): with s the quantile of |x0| of each sample, held
    in [1, limit], x0 is clipped to +-s and divided by s.

    Args:
        limit: x0 is clipped to +-limit; for dynamic thresholding the largest s.
        quantile: in (0, 1], of dynamic thresholding; None clips.
        rederives_eps: whether the noise that goes on is what the clamped x0 leaves of x_t,
            `(x_t - alpha x0) / sigma`, as in DDPM and DPM++; else it is the network's own, as in DDIM.
    """

    limit: float = 1.0
    quantile: float | None = None
    rederives_eps: bool = False

    def __call__(self, x0: Tensor) -> Tensor:
        """Clamps x0 `(B, *)`; NaN stays NaN."""
        if self.quantile is None:
            return x0.clamp(-self.limit, self.limit)
        s = x0.flatten(1).abs().quantile(self.quantile, dim=1).clamp(min=1.0, max=self.limit)
        s = expand(s, x0)
        return x0.clamp(-s, s) / s


@runtime_checkable
class Clamped(Protocol):
    """A denoiser whose own sampler clamps x0."""

    @property
    def clamp(self) -> Clamp | None:
        """How; None: it does not."""
        ...


def convert_prediction(
    prediction: Tensor, x_t: Tensor, scales: Scales, source: PredictionType, target: PredictionType
) -> Tensor:
    """Converts a prediction from one type to another.

    Args:
        prediction: `(B, *)` what the network said, of type `source`.
        x_t: `(B, *)` what it was shown.
        scales: alpha and sigma, `(B,)` or zero-dimensional.
        source: the type of `prediction`.
        target: the type wanted.

    Returns:
        `(B, *)` in the wider of float32 and the inputs' dtype (float64 stays float64); `prediction`
        itself where the types are equal.

    Raises:
        ValueError: on unknown types or unequal shapes, and where the conversion does not exist, if the scales are
            on the CPU; on a device the result is infinite or NaN there (`check_convertible`).
        TypeError: for tensors that are not floating point.

    Example:
        >>> scales = nd.RectifiedFlow()(torch.tensor([500.0]))
        >>> x0, eps = torch.ones(1, 2), torch.zeros(1, 2)
        >>> nd.convert_prediction(eps - x0, scales.mix(x0, eps), scales, "flow_prediction", "sample")
        tensor([[1., 1.]])
    """
    check_floating("prediction", prediction)
    check_floating("x_t", x_t)
    if prediction.shape != x_t.shape:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)} and x_t {tuple(x_t.shape)}; they must "
            "be equal (drop the learned-sigma channels of PixArt and DiT first)."
        )
    check_prediction_type(source)
    check_prediction_type(target)
    check_scales(scales, x_t.shape[0] if x_t.ndim else None)
    if source == target:
        return prediction
    alpha, sigma = scales = Scales(*scales)
    if on_host(alpha) and on_host(sigma):
        check_convertible(scales, source, target)
    c, d = _coefficients(source, scales)
    c_new, d_new = _coefficients(target, scales)
    determinant = alpha * d - sigma * c
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, x_t.dtype), torch.float32)
    of_x_t = expand((c_new * d - d_new * c) / determinant, x_t).to(dtype)
    of_prediction = expand((alpha * d_new - sigma * c_new) / determinant, x_t).to(dtype)
    return of_x_t * x_t + of_prediction * prediction


def to_x0(
    prediction: Tensor, x_t: Tensor, scales: Scales, prediction_type: PredictionType
) -> Tensor:
    """The x0 that a prediction stands for; see `convert_prediction`.

    Example:
        >>> x_t = nd.RectifiedFlow()(500).mix(torch.ones(1, 2), torch.zeros(1, 2))
        >>> nd.to_x0(-torch.ones(1, 2), x_t, nd.RectifiedFlow()(500), "flow_prediction")
        tensor([[1., 1.]])
    """
    return convert_prediction(prediction, x_t, scales, prediction_type, "sample")


def to_eps(
    prediction: Tensor, x_t: Tensor, scales: Scales, prediction_type: PredictionType
) -> Tensor:
    """The noise that a prediction stands for; see `convert_prediction`.

    Example:
        >>> x_t = nd.RectifiedFlow()(500).mix(torch.ones(1, 2), torch.zeros(1, 2))
        >>> nd.to_eps(torch.ones(1, 2), x_t, nd.RectifiedFlow()(500), "sample")
        tensor([[0., 0.]])
    """
    return convert_prediction(prediction, x_t, scales, prediction_type, "epsilon")


def prediction_target(
    x0: Tensor, noise: Tensor, scales: Scales, prediction_type: PredictionType
) -> Tensor:
    """What a network of this type should predict: `c x0 + d noise`, `(B, *)` in `noise`'s dtype.

    Example:
        >>> x0, noise, scales = torch.ones(1, 2), torch.zeros(1, 2), nd.RectifiedFlow()(500)
        >>> nd.prediction_target(x0, noise, scales, "flow_prediction")
        tensor([[-1., -1.]])
    """
    check_scales(scales)
    c, d = _coefficients(check_prediction_type(prediction_type), scales)
    return Scales(c, d).mix(x0, noise)


def check_convertible(
    scales: Scales, source: PredictionType, target: PredictionType = "sample"
) -> None:
    """Refuses a conversion that divides by zero; looks at the values, so call it on the host once.

    Raises:
        ValueError: naming the value, the rule and the way out.

    Example:
        >>> nd.check_convertible(nd.RectifiedFlow()(900), "flow_prediction")
    """
    check_prediction_type(source)
    check_prediction_type(target)
    if source == target:
        return
    alpha, sigma = scales
    if source == "epsilon" and bool((alpha == 0).any()):
        raise ValueError(
            f"'epsilon' cannot be converted to {target!r} where alpha is 0 (zero terminal SNR): pure "
            "noise says nothing of x0. Use 'v_prediction' or 'sample', or a step whose output "
            "scales are not rescaled (StepPlan.from_noise)."
        )
    if source == "sample" and bool((sigma == 0).any()):
        raise ValueError(
            f"'sample' cannot be converted to {target!r} where sigma is 0: there is no noise left to "
            "tell. Stop the schedule before its first timestep."
        )


def _coefficients(prediction_type: PredictionType, scales: Scales) -> tuple[Tensor, Tensor]:
    """(c, d) of `p = c x0 + d eps`, shaped like the scales."""
    one, zero = torch.ones_like(scales.alpha), torch.zeros_like(scales.alpha)
    if prediction_type == "epsilon":
        return zero, one
    if prediction_type == "sample":
        return one, zero
    if prediction_type == "v_prediction":
        return -scales.sigma, scales.alpha
    return -one, one
