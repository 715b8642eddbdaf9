"""Structural dissimilarity, 1 - SSIM (Wang et al. 2004), one value per sample.

With a normalised separable window w and the moments of x and y under it,

    l    = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 + C1)
    cs   = (2 s_xy + C2) / (s_xx + s_yy + C2)
    loss = mean over positions and channels of 1 - l cs        ("structure": 1 - cs)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["SSIMMode", "SSIMPadding", "ssim_loss"]

SSIMMode = Literal["full", "structure"]
SSIMPadding = Literal["valid", "reflect"]


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
        taps: the normalised one-dimensional window, an odd number of taps.
        c1: (K1 L)^2, a float or one value per channel `(C,)`.
        c2: (K2 L)^2, likewise.
        offset: what is added to both means before `l` is formed (a shift of signed data into
            [0, L]; second moments do not see it), a float or `(C,)`.
        mode: "full" = 1 - l cs, "structure" = 1 - cs.
        padding: "valid" keeps the H - n + 1 by W - n + 1 whole windows; "reflect" mirrors the border
            and keeps H by W positions.
        weight_map: `(B, 1, H', W')` or `(B, C, H', W')` float weights of the positions of the result;
            the loss is their weighted *sum* over positions and channels (the caller normalises).
            None is the plain mean. No gradient flows into it.

    Returns:
        `(B,)`, float64 if either input is, else float32.
    """
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    x, y = x.to(dtype), y.to(dtype)
    height = _band(x.shape[-2], taps, padding, x)
    width = _band(x.shape[-1], taps, padding, x)
    c1, c2, offset = (_per_channel(value, x) for value in (c1, c2, offset))
    shift = y.detach().mean((-2, -1), keepdim=True)
    s, d = x + y - 2 * shift, x - y
    with torch.autocast(x.device.type, enabled=False):
        maps = height @ torch.stack([s, d, s * s, d * d]) @ width.T
    mean_s, mean_d, square_s, square_d = maps.unbind(0)
    var_s, var_d = square_s - mean_s**2, square_d - mean_d**2
    loss = 2 * var_d / (var_s + var_d + 2 * c2)
    if mode == "full":
        luminance = 2 * mean_d**2
        luminance = luminance / ((mean_s + 2 * (shift + offset)) ** 2 + mean_d**2 + 2 * c1)
        loss = luminance + loss - luminance * loss
    if weight_map is None:
        return loss.flatten(1).mean(1)
    return (loss * weight_map).flatten(1).sum(1)


def _per_channel(value: float | Tensor, like: Tensor) -> float | Tensor:
    if isinstance(value, Tensor) and value.ndim == 1:
        return value.to(like).view(-1, 1, 1)
    return value


def _band(size: int, taps: tuple[float, ...], padding: SSIMPadding, like: Tensor) -> Tensor:
    """The `(size', size)` matrix that filters one axis of length `size`."""
    reach = len(taps) // 2
    start = reach if padding == "valid" else 0
    matrix = torch.zeros(size - 2 * start, size, dtype=torch.float64)
    for row in range(matrix.shape[0]):
        for k, tap in enumerate(taps):
            column = abs(row + start + k - reach)
            matrix[row, min(column, 2 * (size - 1) - column)] += tap
    return matrix.to(like)
