"""Distribution-matching gradient, normalised, as a surrogate loss."""

from __future__ import annotations

from nitrodistill.kernels.dmd.reference import dmd

__all__ = ["dmd"]
