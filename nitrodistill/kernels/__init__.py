"""Fused kernels: one PyTorch definition, one Triton source and one dispatcher per operation.

| package | what it fuses |
|---|---|
| `x0_loss` | conversion to x0, elementwise loss, mask, per-sample weight |
| `lpips_head` | unit normalisation, weighted squared difference, spatial mean |
| `ssim` | windowed moments, 1 - SSIM, its mean |
| `laplacian` | pyramid, magnitudes, their weighted means |
| `dmd` | the normalised distribution-matching gradient as a loss |

Each holds plain functions of tensors; which implementation runs is decided per call by `use` and, by
default, by what a committed measurement shows (`backend`). They compute in float32 from float32, bfloat16
or float16, sum in a fixed order, and differentiate twice (the second time through the reference).
"""

from __future__ import annotations

from nitrodistill.kernels.backend import Backend, use

__all__ = ["Backend", "use"]
