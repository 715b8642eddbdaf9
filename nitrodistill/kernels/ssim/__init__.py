"""1 - SSIM per sample; see `reference` for the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from nitrodistill.kernels import backend
from nitrodistill.kernels.ssim import cpu
from nitrodistill.kernels.ssim.operation import SSIM
from nitrodistill.kernels.ssim.reference import SSIMMode, SSIMPadding

__all__ = ["SSIMMode", "SSIMPadding", "ssim_loss"]


def ssim_loss(
    x: Tensor,
    y: Tensor,
    *,
    taps: tuple[float, ...],
    c1: float | Tensor,
    c2: float | Tensor,
    offset: float | Tensor = 0.0,
    mode: SSIMMode = "full",
    padding: SSIMPadding = "valid",
    weight_map: Tensor | None = None,
) -> Tensor:
    """1 - SSIM of every sample.

    Args:
        x: `(B, C, H, W)`, any floating-point dtype.
        y: `(B, C, H, W)`.
        taps: the normalised one-dimensional window, an odd number n of taps.
        c1: (K1 L)^2 > 0, a float or one value per channel `(C,)`.
        c2: (K2 L)^2 > 0, likewise.
        offset: what is added to both means before `l` is formed (a shift of signed data into
            [0, L]; second moments do not see it), a float or `(C,)`.
        mode: "full" = 1 - l cs, "structure" = 1 - cs.
        padding: "valid" keeps the H - n + 1 by W - n + 1 whole windows, and needs sides >= n;
            "reflect" mirrors the border, keeps H by W positions, and needs sides > n // 2.
        weight_map: `(B, 1, H', W')` or `(B, C, H', W')` weights of the result's positions; the loss
            is their weighted *sum* over positions and channels (the caller normalises). None is
            the plain mean. No gradient flows into it.

    Returns:
        `(B,)`, float64 if either input is, else float32. Gradients reach x and y.

    Raises:
        ValueError: for several devices.
        TypeError: for a tensor that is not floating, or a DTensor.
    """
    if not backend.fused("ssim", (x, y), ()):
        return cpu.ssim_loss(x, y, cpu.Options(taps, c1, c2, offset, mode, padding, weight_map))
    constants = _constants((c1, c2, offset), x)
    numbers = (0.0, 0.0, 0.0) if constants is not None else (c1, c2, offset)
    weight = None if weight_map is None else weight_map.detach().contiguous()
    return SSIM.apply(
        x.contiguous(),
        y.contiguous(),
        taps,
        constants,
        weight,
        *numbers,
        mode == "structure",
        padding == "reflect",
    )


def _constants(values: tuple[float | Tensor, ...], like: Tensor) -> Tensor | None:
    """(3, C) float32 where a value is a tensor, one value per channel; None where all are numbers."""
    if not any(isinstance(value, Tensor) for value in values):
        return None
    channels = like.shape[1]
    rows = [torch.as_tensor(value, dtype=torch.float32, device=like.device) for value in values]
    return torch.stack([row.detach().expand(channels) for row in rows])
