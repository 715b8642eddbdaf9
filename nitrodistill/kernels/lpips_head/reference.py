"""Weighted squared distance of unit-normalised features (LPIPS head): the definition.

    n(f)_p = sqrt(sum_c f_cp^2 + eps)
    d_b    = sum_p m_p sum_c w_c (x_cp / n(x)_p - y_cp / n(y)_p)^2 / sum_p m_p

Zhang et al. 2018, eq. 1, for one layer. Two departures. `lpips` divides by `sqrt(sum) + 1e-10`;
here eps sits inside the root, which is the same number to 1e-6 and has a gradient at small features.
And where a feature vector is exactly zero its direction does not exist: `lpips` returns a NaN
gradient, here the normalised vector and its gradient are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nitrodistill.kernels.arithmetic import masked_mean, math_dtype, without_autocast


def unit_normalize(features: Tensor, eps: float) -> Tensor:
    """features / sqrt(sum_c features^2 + eps) over dim 1; zero, with zero gradient, at zero."""
    square = features.square().sum(1, keepdim=True)
    empty = square == 0
    inverse = torch.rsqrt(torch.where(empty, torch.ones_like(square), square) + eps)
    return features * torch.where(empty, torch.zeros_like(inverse), inverse)


def lpips_head(
    fx: Tensor, fy: Tensor, weight: Tensor, *, eps: float = 1e-10, mask: Tensor | None = None
) -> Tensor:
    """Distance of two feature maps, one value per sample.

    Args:
        fx: features (B, C, *spatial), floating.
        fy: features of the other image, same shape.
        weight: non-negative channel weights (C,).
        eps: added to the squared norm.
        mask: non-negative, broadcasts to (B, 1, *spatial); weights the mean over positions.

    Returns:
        (B,), float32, or float64 where an input is float64.
    """
    dtype = math_dtype(fx, fy)
    difference = unit_normalize(fx.to(dtype), eps) - unit_normalize(fy.to(dtype), eps)
    with without_autocast(fx.device):  # a product with a vector: on a CPU twice as fast as a sum
        values = torch.einsum("bc...,c->b...", difference.square(), weight.to(dtype))
    return masked_mean(values.unsqueeze(1), mask)
