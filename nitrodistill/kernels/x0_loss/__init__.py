"""x0-conversion, elementwise loss, mask and per-sample weight in one call."""

from __future__ import annotations

from nitrodistill.kernels.x0_loss.reference import ElementwiseLoss, x0_loss

__all__ = ["ElementwiseLoss", "x0_loss"]
