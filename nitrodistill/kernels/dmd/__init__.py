"""Distribution-matching gradient, normalised, as a surrogate loss; see `reference`."""

from __future__ import annotations

from torch import Tensor

from nitrodistill.checks import check_weight
from nitrodistill.kernels import backend
from nitrodistill.kernels.dmd import reference
from nitrodistill.kernels.dmd.operation import DMD
from nitrodistill.kernels.layout import aligned

__all__ = ["dmd"]


def dmd(x0: Tensor, real: Tensor, fake: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """The surrogate loss whose gradient is the normalised distribution-matching gradient.

    Args:
        x0: the student's data (B, *), floating; the only argument that receives a gradient, but for
            `weight`.
        real: the teacher's data prediction (B, *).
        fake: the fake-score network's data prediction (B, *).
        weight: per-sample factor (B,).

    Returns:
        (B,), float32, or float64 where an input is float64.

    Raises:
        ValueError: for unequal shapes or several devices, or a weight that is not (B,).
        TypeError: for a tensor that is not floating, or a DTensor.
    """
    if not x0.shape == real.shape == fake.shape:
        raise ValueError(
            f"x0, real and fake have shapes {tuple(x0.shape)}, {tuple(real.shape)} and "
            f"{tuple(fake.shape)}; they must be equal."
        )
    if weight is not None:
        check_weight(weight, x0.shape[0])
    real, fake = real.detach(), fake.detach()
    if not backend.fused("dmd", (x0, real, fake), ()):
        return reference.dmd(x0, real, fake, weight=weight)
    inside = None if weight is None or weight.requires_grad else weight
    per_sample = DMD.apply(*aligned(x0, real, fake), inside)
    return per_sample if weight is inside else per_sample * weight
