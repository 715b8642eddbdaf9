"""The Laplacian-pyramid loss per sample; see `reference` for the definition."""

from __future__ import annotations

from torch import Tensor

from nitrodistill.kernels import backend
from nitrodistill.kernels.laplacian import reference
from nitrodistill.kernels.laplacian.operation import Laplacian
from nitrodistill.kernels.laplacian.reference import PyramidConvention, pyramid_shapes

__all__ = ["PyramidConvention", "laplacian_loss", "pyramid_shapes"]


def laplacian_loss(
    x: Tensor,
    y: Tensor,
    *,
    weights: tuple[float, ...],
    convention: PyramidConvention = "burt_adelson",
    weight_maps: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """The weighted mean absolute difference of two Laplacian pyramids, for every sample.

    Args:
        x: `(B, C, H, W)`, any floating-point dtype.
        y: `(B, C, H, W)`.
        weights: one factor per band, the finest first; the last one is the low-pass (0 leaves a band
            out).
        convention: "burt_adelson" or "kornia"; only the first has a fused kernel.
        weight_maps: per band a `(B, 1, h, w)` or `(B, C, h, w)` map of the sizes that
            `pyramid_shapes` names, all with the same number of channels; a band's term is then the
            weighted *sum* of |L_j| over positions and channels (the caller normalises). None is the
            plain mean. No gradient flows into them.

    Returns:
        `(B,)`, float64 if either input is, else float32. Gradients reach x and y.

    Raises:
        ValueError: for several devices.
        TypeError: for a tensor that is not floating, or a DTensor.
    """
    shapes = pyramid_shapes(x.shape[-2], x.shape[-1], len(weights), convention)
    # The kernel folds at most one reflection per border into its stencils.
    plain = convention != "burt_adelson" or any(min(shape) < 3 for shape in shapes[:-1])
    if not backend.fused("laplacian", (x, y), ()) or plain:
        return reference.laplacian_loss(
            x, y, weights=weights, convention=convention, weight_maps=weight_maps
        )
    maps = tuple(m.detach().contiguous() for m in weight_maps or ())
    return Laplacian.apply(x.contiguous(), y.contiguous(), weights, maps)
