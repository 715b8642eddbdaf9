"""LPIPS head: weighted squared distance of unit-normalised features."""

from __future__ import annotations

from nitrodistill.kernels.lpips_head.reference import lpips_head

__all__ = ["lpips_head"]
