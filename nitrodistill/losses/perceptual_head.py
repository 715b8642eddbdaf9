"""The LPIPS head on a CPU: the definition of `nitrodistill.kernels.lpips_head`, some positions at a time.

    d_b = sum_p m_p sum_c w_c (x_cp / n(x)_p - y_cp / n(y)_p)^2 / sum_p m_p,   n(f) = sqrt(sum_c f_c^2 + eps)

Features are taken channels-last, so that a position's channels are neighbours, and in blocks that stay
in the cache; the backward pass, written out below, computes the differences again instead of keeping
them. On a device, in a compiled graph and for a second derivative the kernel's own forms are used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nitrodistill.kernels.arithmetic import math_dtype
from nitrodistill.kernels.lpips_head import lpips_head

__all__ = ["perceptual_distance"]

_EPS = 1e-20
"""Under the root: far below any feature, so that the value is that of `lpips` (1e-10 beside the root)."""

_BLOCK = 1 << 16
"""Elements that are worked on at a time, per CPU thread."""


def perceptual_distance(fx: Tensor, fy: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    """The weighted squared distance of unit-normalised features, one value per sample.

    Args:
        fx: `(B, C, h, w)`.
        fy: `(B, C, h, w)`.
        weight: `(C,)`, non-negative.
        mask: `(B, 1, h, w)` or None.

    Returns:
        `(B,)`, float64 if a feature is, else float32.
    """
    if fx.device.type != "cpu" or torch.compiler.is_compiling():
        return lpips_head(fx, fy, weight, eps=_EPS, mask=mask)
    dtype = math_dtype(fx, fy)
    batch, _, height, width = fx.shape
    if mask is None:
        share = torch.full((batch, height * width), 1 / (height * width), dtype=dtype)
    else:
        share = mask.to(dtype).expand(batch, 1, height, width).reshape(batch, -1)
        total = share.sum(1, keepdim=True)
        share = share / (total + (total == 0))
    return _Head.apply(fx, fy, weight.to(dtype), share)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fx: Tensor, fy: Tensor, weight: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(fx, fy, weight, share)
        x, y = _positions(fx), _positions(fy)
        values = torch.empty(x.shape[0], dtype=weight.dtype)
        with torch.autocast("cpu", enabled=False):
            for rows in _blocks(x):
                u, *_ = _difference(x[rows].to(weight.dtype), y[rows].to(weight.dtype))
                torch.mv(u.square_(), weight, out=values[rows])
        return (values.view(share.shape) * share).sum(1)

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        fx, fy, weight, share = ctx.saved_tensors
        need_x, need_y = ctx.needs_input_grad[:2]
        (grad,) = grad_outputs
        if torch.is_grad_enabled():
            wanted = [tensor for tensor, need in ((fx, need_x), (fy, need_y)) if need]
            mask = share.view(fx.shape[0], 1, *fx.shape[2:])
            distance = lpips_head(fx, fy, weight, eps=_EPS, mask=mask)
            found = torch.autograd.grad(distance, wanted, grad, create_graph=True)
            return found[0] if need_x else None, found[-1] if need_y else None, None, None
        x, y = _positions(fx), _positions(fy)
        of_x, of_y = _like(fx) if need_x else None, _like(fy) if need_y else None
        share = (share * (2 * grad).unsqueeze(1)).view(-1, 1)
        with torch.autocast("cpu", enabled=False):
            for rows in _blocks(x):
                part_x, part_y = x[rows].to(weight.dtype), y[rows].to(weight.dtype)
                u, inverse_x, inverse_y = _difference(part_x, part_y)
                u.mul_(weight).mul_(share[rows])
                if of_x is not None:
                    _positions(of_x)[rows] = _through_norm(u, part_x, inverse_x)
                if of_y is not None:
                    _positions(of_y)[rows] = _through_norm(u, part_y, inverse_y).neg_()
        return of_x, of_y, None, None


def _difference(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The difference of the unit vectors in the rows `(P, C)`, and the inverse norms `(P, 1)`."""
    inverse_x, inverse_y = _inverse_norm(x), _inverse_norm(y)
    # Two products and a difference: a fused multiply-add would not be 0 for equal features.
    return (x * inverse_x).sub_(y * inverse_y), inverse_x, inverse_y


def _inverse_norm(x: Tensor) -> Tensor:
    """1 / sqrt(|x|^2 + eps) of every row; 0 for a zero row, which has no direction."""
    square = torch.linalg.vector_norm(x, dim=1, keepdim=True).square_()
    return square.add_(_EPS).rsqrt_().masked_fill_(square <= 2 * _EPS, 0.0)


def _through_norm(u: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
    """The gradient in x of u . x / |x|: the part of u across x, over |x|."""
    unit = x * inverse
    along = (unit * u).sum(1, keepdim=True)
    return torch.addcmul(u, unit, along, value=-1).mul_(inverse)


def _positions(features: Tensor) -> Tensor:
    """`(B, C, h, w)` as `(B * h * w, C)`; a view where features are channels-last."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def _like(features: Tensor) -> Tensor:
    return torch.empty_like(features, memory_format=torch.channels_last)


def _blocks(rows: Tensor) -> list[slice]:
    step = max(1, _BLOCK * torch.get_num_threads() // rows.shape[1])
    return [slice(start, start + step) for start in range(0, rows.shape[0], step)]
