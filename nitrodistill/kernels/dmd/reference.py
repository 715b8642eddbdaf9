"""Distribution-matching gradient as a loss: the definition.

    g_b = (fake_b - real_b) / mean_i |x0_bi - real_bi|
    L_b = w_b mean_i g_bi^2 / 2          with  dL_b / dx0_bi = w_b g_bi / n

Yin et al. 2024a (DMD), eq. 7-8, and 2024b (DMD2): `real` and `fake` are the two denoisers' data
predictions of a noised x0, n is the number of elements of a sample. It is the value and gradient of
0.5 * mse(x0, (x0 - g).detach()) without the rounding of x0 - (x0 - g). g is a constant: no gradient
reaches `real` or `fake`, and the second derivative is zero. Where x0 equals `real` everywhere the
normaliser is zero and so is g (DMD replaces the NaN by zero likewise).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nitrodistill.kernels.arithmetic import math_dtype


def dmd_gradient(x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """g of the formula above, (B, *), detached."""
    dims = tuple(range(1, x0.dim()))
    x0, real, fake = x0.detach(), real.detach(), fake.detach()
    scale = (x0 - real).abs().mean(dims, keepdim=True)
    empty = scale == 0
    inverse = torch.where(empty, torch.zeros_like(scale), 1 / (scale + empty))
    return (fake - real) * inverse


def dmd(x0: Tensor, real: Tensor, fake: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """The surrogate loss whose gradient is the normalised distribution-matching gradient.

    Args:
        x0: the student's data (B, *), floating; the only argument that receives a gradient.
        real: the teacher's data prediction (B, *).
        fake: the fake-score network's data prediction (B, *).
        weight: per-sample factor (B,).

    Returns:
        (B,), float32, or float64 where an input is float64.
    """
    dtype = math_dtype(x0, real, fake)
    x0, real, fake = x0.to(dtype), real.to(dtype), fake.to(dtype)
    gradient = dmd_gradient(x0, real, fake)
    dims = tuple(range(1, x0.dim()))
    # x0 - x0.detach() is zero and carries the gradient.
    values = 0.5 * gradient.square() + gradient * (x0 - x0.detach())
    per_sample = values.mean(dims)
    return per_sample if weight is None else per_sample * weight.to(dtype)
