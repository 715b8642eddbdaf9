"""LPIPS head: weighted squared distance of unit-normalised features; see `reference`."""

from __future__ import annotations

from torch import Tensor

from nitrodistill.kernels import backend
from nitrodistill.kernels.layout import aligned
from nitrodistill.kernels.lpips_head import reference
from nitrodistill.kernels.lpips_head.operation import LPIPSHead

__all__ = ["lpips_head"]


def lpips_head(
    fx: Tensor, fy: Tensor, weight: Tensor, *, eps: float = 1e-10, mask: Tensor | None = None
) -> Tensor:
    """Distance of two feature maps, one value per sample.

    Args:
        fx: features (B, C, *spatial), floating.
        fy: features of the other image, same shape.
        weight: non-negative channel weights (C,).
        eps: added to the squared norm.
        mask: non-negative, broadcasts to (B, 1, *spatial); weights the mean over positions.

    Returns:
        (B,), float32, or float64 where an input is float64. Gradients reach both maps, each in its
        own dtype; where a feature vector is exactly zero its gradient is zero.

    Raises:
        ValueError: for unequal shapes or several devices.
        TypeError: for a tensor that is not floating, or a DTensor.
    """
    if fx.shape != fy.shape or fx.dim() < 3 or weight.shape != fx.shape[1:2]:
        raise ValueError(
            f"fx, fy and weight have shapes {tuple(fx.shape)}, {tuple(fy.shape)} and "
            f"{tuple(weight.shape)}; they must be (B, C, *spatial) twice and (C,)."
        )
    if not backend.fused("lpips_head", (fx, fy), (weight, mask)):
        return reference.lpips_head(fx, fy, weight, eps=eps, mask=mask)
    fx, fy = aligned(fx, fy)
    if not _evenly_spaced(fx):
        fx, fy = fx.contiguous(), fy.contiguous()
    return LPIPSHead.apply(fx, fy, weight.contiguous(), mask, eps)


def _evenly_spaced(features: Tensor) -> bool:
    """Whether the positions of a channel have one stride, as in NCHW and channels_last."""
    sample = features[0]
    return sample.is_contiguous() or sample.movedim(0, -1).is_contiguous()
