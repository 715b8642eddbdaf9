"""1 - SSIM per sample; see `reference` for the definition."""

from __future__ import annotations

from nitrodistill.kernels.ssim.reference import SSIMMode, SSIMPadding, ssim_loss

__all__ = ["SSIMMode", "SSIMPadding", "ssim_loss"]
