"""Triton kernels of `lpips_head`; `reference` has the formulas.

Forward: a program takes all channels of some positions. Up to `resident` channels (rounded up to a power
of two) stay in registers; above that two loops over the channels read them twice. Students converge to
where x and y are nearly equal, so nothing may cancel there: with r = 1 / n(x), q = 1 / n(y), the
difference of the normalised features is

    d = r x - q y = r (x - y) + (r - q) y,    r - q = (sum_c (y - x) (y + x)) r^2 q^2 / (r + q)

(expanding the square of d into sums instead costs 1% of the value at features 0.1% apart). For the
backward pass r, r - q, sum_c w r x d and sum_c w q y d are kept per position, in float32, so that the
gradient is pointwise, one pass in any layout and with few registers:

    d dist / d x_c = 2 r (w_c d_c - r x_c sum w r x d)
    d dist / d y_c = -2 q (w_c d_c - q y_c sum w q y d)
"""

# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportOptionalOperand=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nitrodistill.kernels.finish import finish
from nitrodistill.kernels.launch import Options
from nitrodistill.kernels.layout import empty_aligned


@triton.jit
def _load_tile(features, c, p, channels, positions, stride_c, stride_p):
    """(C, P) float32, zero outside."""
    inside = (c[:, None] < channels) & (p[None, :] < positions)
    offsets = c[:, None] * stride_c + p[None, :] * stride_p
    return tl.load(features + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _load_weights(weight, c, channels):
    """(C, 1) float32, zero outside."""
    w = tl.load(weight + c, mask=c < channels, other=0.0)  # not bulk: one per channel
    return w.to(tl.float32)[:, None]


@triton.jit
def _load_factor(factor, p, positions):
    """(P,) float32, zero outside."""
    values = tl.load(factor + p, mask=p < positions, other=0)  # not bulk: one per position
    return values.to(tl.float32)


@triton.jit
def _inverse_norms(sx, sy, difference, eps):
    """r and r - q from sum x^2, sum y^2 and their difference; an inverse is 0 where the sum is."""
    r = tl.where(sx > 0, 1 / tl.sqrt(sx + eps), 0.0)
    q = tl.where(sy > 0, 1 / tl.sqrt(sy + eps), 0.0)
    both = (sx > 0) & (sy > 0)
    change = difference * (r * q) * (r * q) / tl.where(both, r + q, 1.0)
    return r, tl.where(both, change, r - q)


@triton.jit
def _forward_kernel(
    x,
    y,
    weight,  # (C,)
    mask,  # (B or 1, P) or None
    partial,  # (B, parts) float32
    count,  # (B, parts) float32 or None
    saved,  # (B, 4, P) float32 or None
    channels,
    positions,
    x_stride,  # elements between samples
    y_stride,
    stride_c,
    stride_p,
    mask_stride,
    parts,
    eps,
    RESIDENT: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    part = tl.program_id(0) % parts
    sample = (tl.program_id(0) // parts).to(tl.int64)
    x += sample * x_stride
    y += sample * y_stride
    p = part * POSITIONS + tl.arange(0, POSITIONS)
    c = tl.arange(0, CHANNELS)
    if RESIDENT:
        fx = _load_tile(x, c, p, channels, positions, stride_c, stride_p)
        fy = _load_tile(y, c, p, channels, positions, stride_c, stride_p)
        w = _load_weights(weight, c, channels)
        difference = tl.sum((fy - fx) * (fy + fx), 0)
        r, change = _inverse_norms(tl.sum(fx * fx, 0), tl.sum(fy * fy, 0), difference, eps)
        d = (fx - fy) * r[None, :] + fy * change[None, :]
        distance = tl.sum(w * d * d, 0)
        if saved is not None:
            along_x = tl.sum(w * fx * d, 0) * r
            along_y = tl.sum(w * fy * d, 0) * (r - change)
    else:
        sx = tl.zeros([POSITIONS], tl.float32)
        sy = tl.zeros([POSITIONS], tl.float32)
        difference = tl.zeros([POSITIONS], tl.float32)
        for start in tl.range(0, channels, CHANNELS, num_stages=1):
            fx = _load_tile(x, start + c, p, channels, positions, stride_c, stride_p)
            fy = _load_tile(y, start + c, p, channels, positions, stride_c, stride_p)
            sx += tl.sum(fx * fx, 0)
            sy += tl.sum(fy * fy, 0)
            difference += tl.sum((fy - fx) * (fy + fx), 0)
        r, change = _inverse_norms(sx, sy, difference, eps)
        distance = tl.zeros([POSITIONS], tl.float32)
        along_x = tl.zeros([POSITIONS], tl.float32)
        along_y = tl.zeros([POSITIONS], tl.float32)
        for start in tl.range(0, channels, CHANNELS, num_stages=1):
            fx = _load_tile(x, start + c, p, channels, positions, stride_c, stride_p)
            fy = _load_tile(y, start + c, p, channels, positions, stride_c, stride_p)
            w = _load_weights(weight, start + c, channels)
            d = (fx - fy) * r[None, :] + fy * change[None, :]
            distance += tl.sum(w * d * d, 0)
            if saved is not None:
                along_x += tl.sum(w * fx * d, 0) * r
                along_y += tl.sum(w * fy * d, 0) * (r - change)
    inside = p < positions
    if saved is not None:
        saved += sample * 4 * positions
        tl.store(saved + p, r, mask=inside)
        saved += positions
        tl.store(saved + p, change, mask=inside)
        saved += positions
        tl.store(saved + p, along_x, mask=inside)
        saved += positions
        tl.store(saved + p, along_y, mask=inside)
    if mask is not None:
        m = _load_factor(mask + sample * mask_stride, p, positions)
        distance *= m
        tl.store(count + sample * parts + part, tl.sum(m, 0))
    tl.store(partial + sample * parts + part, tl.sum(distance, 0))


@triton.jit
def _backward_kernel(
    upstream,  # (B,) float32
    x,
    y,
    weight,
    mask,
    inverse,  # (B,) float32 where there is a mask, else None
    saved,
    to_x,  # gradients, or None
    to_y,
    channels,
    positions,
    x_stride,
    y_stride,
    upstream_stride,
    stride_c,
    stride_p,
    mask_stride,
    parts,
    groups,  # blocks of channels
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    pid = tl.program_id(0)
    p = (pid // groups) % parts * POSITIONS + tl.arange(0, POSITIONS)
    c = pid % groups * CHANNELS + tl.arange(0, CHANNELS)
    sample = (pid // groups // parts).to(tl.int64)
    at = p < positions
    scale = 2 * tl.load(upstream + sample * upstream_stride)
    if mask is None:
        scale = scale / positions
    else:
        m = _load_factor(mask + sample * mask_stride, p, positions)
        scale = scale * tl.load(inverse + sample) * m
    saved += sample * 4 * positions
    r = _load_factor(saved, p, positions)
    saved += positions
    change = _load_factor(saved, p, positions)
    saved += positions
    fx = _load_tile(x + sample * x_stride, c, p, channels, positions, stride_c, stride_p)
    fy = _load_tile(y + sample * y_stride, c, p, channels, positions, stride_c, stride_p)
    w = _load_weights(weight, c, channels)
    wd = w * ((fx - fy) * r[None, :] + fy * change[None, :])
    first = sample * channels * positions
    offsets = c[:, None] * stride_c + p[None, :] * stride_p
    inside = (c[:, None] < channels) & at[None, :]
    if to_x is not None:
        along = _load_factor(saved, p, positions)
        g = (wd - fx * (r * along)[None, :]) * (scale * r)[None, :]
        tl.store(to_x + first + offsets, g.to(to_x.dtype.element_ty), mask=inside)
    if to_y is not None:
        q = r - change
        along = _load_factor(saved + positions, p, positions)
        g = (fy * (q * along)[None, :] - wd) * (scale * q)[None, :]
        tl.store(to_y + first + offsets, g.to(to_y.dtype.element_ty), mask=inside)


class Call(NamedTuple):
    """What both passes are given: maps of equal layout with evenly spaced positions."""

    fx: Tensor
    fy: Tensor
    weight: Tensor
    mask: Tensor | None
    eps: float

    def sizes(self) -> tuple[int, int]:
        """Channels and positions."""
        batch, channels = self.fx.shape[:2]
        return channels, self.fx.numel() // (batch * channels)

    def strides(self) -> tuple[int, int]:
        """Elements between channels and between positions."""
        channels_last = self.fx.stride(1) == 1 and self.fx.shape[1] > 1
        channels, positions = self.sizes()
        return (1, channels) if channels_last else (positions, 1)

    def mask_stride(self) -> int:
        """Elements between the masks of two samples."""
        return 0 if self.mask is None or self.mask.shape[0] == 1 else self.mask.shape[1]


def forward(call: Call, save: bool, options: Options) -> tuple[Tensor, Tensor, Tensor | None]:
    """The (B,) distance, the (B,) inverse of the mask's sum, and what the backward pass needs."""
    batch = call.fx.shape[0]
    channels, positions = call.sizes()
    padded = max(16, triton.next_power_of_2(channels))
    resident = padded <= options["resident"]
    block_c = padded if resident else options["loop_channels"]
    # A tile of constant size: few channels, many positions.
    wide = "wide_" if block_c >= 256 else ""
    block_p = options[f"{wide}tile" if resident else "loop_tile"] // block_c
    block_p = max(16, min(block_p, triton.next_power_of_2(positions)))
    parts = triton.cdiv(positions, block_p)
    new = call.fx.new_empty
    partial = new((batch, parts), dtype=torch.float32)
    count = None if call.mask is None else torch.empty_like(partial)
    saved = new((batch, 4, positions), dtype=torch.float32) if save else None
    _forward_kernel[(batch * parts,)](
        *call[:4],
        partial,
        count,
        saved,
        channels,
        positions,
        call.fx.stride(0),
        call.fy.stride(0),
        *call.strides(),
        call.mask_stride(),
        parts,
        call.eps,
        RESIDENT=resident,
        CHANNELS=block_c,
        POSITIONS=block_p,
        num_warps=options[f"{wide}warps"],
    )
    return *finish(partial, 1 / positions, count=count), saved


def backward(
    upstream: Tensor,
    call: Call,
    inverse: Tensor,
    saved: Tensor,
    wanted: Sequence[bool],
    options: Options,
) -> list[Tensor | None]:
    """Gradients of (fx, fy), None where not `wanted`."""
    channels, positions = call.sizes()
    stride_c, stride_p = call.strides()
    wide, narrow = options["backward_wide"], options["backward_narrow"]
    block_c, block_p = (wide, narrow) if stride_c == 1 else (narrow, wide)
    parts, groups = triton.cdiv(positions, block_p), triton.cdiv(channels, block_c)
    gradients = [
        empty_aligned(tensor) if want else None
        for tensor, want in zip(call[:2], wanted, strict=True)
    ]
    _backward_kernel[(call.fx.shape[0] * parts * groups,)](
        upstream,
        *call[:4],
        inverse if call.mask is not None else None,
        saved,
        *gradients,
        channels,
        positions,
        call.fx.stride(0),
        call.fy.stride(0),
        upstream.stride(0),
        stride_c,
        stride_p,
        call.mask_stride(),
        parts,
        groups,
        CHANNELS=block_c,
        POSITIONS=block_p,
        num_warps=options["warps"],
    )
    return gradients
