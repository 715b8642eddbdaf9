"""Structural dissimilarity 1 - SSIM (Wang et al. 2004), one value per sample: the definition.

With a normalised separable window w and the moments of x and y under it,

    l    = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 + C1)
    cs   = (2 s_xy + C2) / (s_xx + s_yy + C2)
    loss = mean over positions and channels of 1 - l cs        ("structure": of 1 - cs)

With s = x + y and d = x - y four filtered maps suffice instead of five, and the two factors become

    1 - l  = 2 mu_d^2 / (mu_s^2 + mu_d^2 + 2 C1)          1 - cs = 2 v_d / (v_s + v_d + 2 C2)

(v the variance under the window), which does not cancel where x is near y. The mean of y, per plane, is
subtracted before anything is squared, and added back to mu_s: variances are invariant to it, and
`w*x^2 - mu^2` no longer cancels on bright flat images.

Compiled graphs and second derivatives use it; `cpu` computes the same faster, and is tested against it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.kernels.arithmetic import math_dtype, without_autocast

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
        `(B,)`, float64 if either input is, else float32.
    """
    dtype = math_dtype(x, y)
    x, y = x.to(dtype), y.to(dtype)
    c1, c2, offset = (_per_channel(value, x) for value in (c1, c2, offset))
    shift = y.detach().mean((-2, -1), keepdim=True)
    x, y = x - shift, y - shift
    s, d = x + y, x - y
    maps = window_mean(torch.cat([s, d, s * s, d * d]), taps, padding)
    mean_s, mean_d, square_s, square_d = maps.chunk(4)
    var_s, var_d = square_s - mean_s * mean_s, square_d - mean_d * mean_d
    loss = 2 * var_d / (var_s + var_d + 2 * c2)
    if mode == "full":
        square = mean_d * mean_d
        bright = 2 * square / ((mean_s + 2 * (shift + offset)) ** 2 + square + 2 * c1)
        loss = bright + loss - bright * loss
    if weight_map is None:
        return loss.flatten(1).mean(1)
    return (loss * weight_map).flatten(1).sum(1)


def _per_channel(value: float | Tensor, like: Tensor) -> float | Tensor:
    if isinstance(value, Tensor) and value.ndim == 1:
        return value.to(like).view(-1, 1, 1)
    return value


def window_mean(x: Tensor, taps: tuple[float, ...], padding: SSIMPadding) -> Tensor:
    """The mean under the window of `(B, C, H, W)`, a differentiable product with a matrix per axis."""
    reach = len(taps) // 2
    if padding == "reflect":
        x = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    with without_autocast(x.device):
        rows, columns = (_valid_windows(x.shape[dim], taps, x) for dim in (-2, -1))
        return rows @ x @ columns.T


def _valid_windows(size: int, taps: tuple[float, ...], like: Tensor) -> Tensor:
    """The dense `(size - n + 1, size)` matrix of n taps, made of operations that compile."""
    column = torch.arange(size, device=like.device)
    tap = column - torch.arange(size - len(taps) + 1, device=like.device).unsqueeze(1)
    values = torch.tensor(taps, dtype=like.dtype, device=like.device)
    inside = (tap >= 0) & (tap < len(taps))
    return torch.where(inside, values[tap.clamp(0, len(taps) - 1)], 0.0)
