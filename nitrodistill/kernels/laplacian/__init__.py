"""The Laplacian-pyramid loss per sample; see `reference` for the definition."""

from __future__ import annotations

from nitrodistill.kernels.laplacian.reference import (
    PyramidConvention,
    laplacian_loss,
    pyramid_shapes,
)

__all__ = ["PyramidConvention", "laplacian_loss", "pyramid_shapes"]
