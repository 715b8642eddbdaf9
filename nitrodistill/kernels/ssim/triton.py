"""Triton kernels of `ssim_loss`; `reference` has the formulas.

Four separable passes over s = x + y and d = x - y, centred: rows (x, y to the filtered s, d, s^2, d^2),
columns (those to the loss and to the derivatives by the four means), and for the gradient the two
adjoint passes. The shift c that keeps squares from cancelling may be any constant of a plane; here it is
the mean of at most 1024 of y's pixels. With m, M the means of s and s^2, e, E those of d and d^2,

    v_s = M - m^2, v_d = E - e^2, q = v_s + v_d + 2 C2, b = 2 v_d / q                      (1 - cs)
    p = (m + 2 c + 2 offset)^2 + e^2 + 2 C1,            a = 2 e^2 / p                      (1 - l)
    loss = a + b - a b        dx, dy = W^T[dm] +- W^T[de] + 2 s W^T[dM] +- 2 d W^T[dE]
"""

# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportOptionalOperand=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nitrodistill.kernels._tiles import tile
from nitrodistill.kernels.finish import finish
from nitrodistill.kernels.launch import Options


@triton.jit
def _centre_kernel(y, centre, size, stride, SAMPLES: tl.constexpr):
    """Mean of every `stride`-th pixel of a plane."""
    plane = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, SAMPLES) * stride
    inside = offsets < size
    values = tl.load(y + plane * size + offsets, mask=inside, other=0.0).to(tl.float32)
    count = tl.sum(inside.to(tl.float32), 0)
    tl.store(centre + plane, tl.sum(values, 0) / count)


@triton.jit
def _mirror(i, size):
    """The index inside [0, size) that i reflects to, without repeating the border."""
    i = tl.abs(i)
    return tl.minimum(i, 2 * (size - 1) - i)


@triton.jit
def _rows_kernel(
    x,  # (planes, H, W)
    y,
    centre,  # (planes,) float32
    taps,  # (TAPS,) float32
    maps,  # (4, planes, H, pitch) float32: s, d, s^2, d^2 filtered along rows
    height,
    width,
    width_out,
    pitch,  # W' rounded up, so that rows of maps are aligned; the padding never counts
    map_stride,
    TAPS: tl.constexpr,
    REFLECT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    plane, i, j, written = tile(tl.program_id(0), height, pitch, ROWS, COLUMNS)
    inside = written & (j < width_out)
    x += plane * height * width
    y += plane * height * width
    c = tl.load(centre + plane)
    s = tl.zeros([ROWS, COLUMNS], tl.float32)
    d = tl.zeros([ROWS, COLUMNS], tl.float32)
    ss = tl.zeros([ROWS, COLUMNS], tl.float32)
    dd = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in tl.static_range(TAPS):
        column = j + k
        if REFLECT:
            column = _mirror(column - TAPS // 2, width)
        tap = tl.load(taps + k)
        fx = tl.load(x + i * width + column, mask=inside, other=0.0).to(tl.float32) - c
        fy = tl.load(y + i * width + column, mask=inside, other=0.0).to(tl.float32) - c
        s += tap * (fx + fy)
        d += tap * (fx - fy)
        ss += tap * (fx + fy) * (fx + fy)
        dd += tap * (fx - fy) * (fx - fy)
    maps += plane * height * pitch
    offsets = i * pitch + j
    map_stride = map_stride.to(tl.int64)
    tl.store(maps + offsets, s, mask=written)
    tl.store(maps + map_stride + offsets, d, mask=written)
    tl.store(maps + 2 * map_stride + offsets, ss, mask=written)
    tl.store(maps + 3 * map_stride + offsets, dd, mask=written)


@triton.jit
def _columns_kernel(
    maps,  # (4, planes, H, pitch) float32
    centre,
    taps,
    constants,  # (3, C) float32 c1, c2, offset, or None
    weight,  # (B, 1 or C, H', W') or None
    partial,  # (planes * tiles,) float32
    slopes,  # (3 or 4, planes, H', pitch) float32, or None
    c1,
    c2,
    offset,
    height,
    pitch,
    height_out,
    width_out,
    channels,
    weight_channels,
    map_stride,
    slope_stride,
    STRUCTURE: tl.constexpr,
    WANT_X: tl.constexpr,
    WANT_Y: tl.constexpr,
    TAPS: tl.constexpr,
    REFLECT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    plane, i, j, inside = tile(tl.program_id(0), height_out, pitch, ROWS, COLUMNS)
    maps += plane * height * pitch
    map_stride = map_stride.to(tl.int64)
    m = tl.zeros([ROWS, COLUMNS], tl.float32)
    e = tl.zeros([ROWS, COLUMNS], tl.float32)
    var_s = tl.zeros([ROWS, COLUMNS], tl.float32)
    var_d = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in tl.static_range(TAPS):
        row = i + k
        if REFLECT:
            row = _mirror(row - TAPS // 2, height)
        tap = tl.load(taps + k)
        where = row * pitch + j
        m += tap * tl.load(maps + where, mask=inside, other=0.0)
        e += tap * tl.load(maps + map_stride + where, mask=inside, other=0.0)
        var_s += tap * tl.load(maps + 2 * map_stride + where, mask=inside, other=0.0)
        var_d += tap * tl.load(maps + 3 * map_stride + where, mask=inside, other=0.0)
    if constants is not None:
        channel = plane % channels
        c1 = tl.load(constants + channel)
        c2 = tl.load(constants + channels + channel)
        offset = tl.load(constants + 2 * channels + channel)
    var_s -= m * m
    var_d -= e * e
    q = 1 / (var_s + var_d + 2 * c2)
    b = 2 * var_d * q
    if STRUCTURE:
        loss = b
        keep = 1.0
        d_m = 0.0
        d_e = 0.0
    else:
        bright = m + 2 * (tl.load(centre + plane) + offset)
        p = 1 / (bright * bright + e * e + 2 * c1)
        a = 2 * e * e * p
        loss = a + b - a * b
        keep = 1 - a
        d_m = -2 * (1 - b) * a * bright * p
        d_e = 2 * (1 - b) * (2 - a) * e * p
    if weight is not None:
        group = plane // channels * weight_channels + plane % channels % weight_channels
        weight += group * height_out * width_out
        w = tl.load(weight + i * width_out + j, mask=inside & (j < width_out), other=0)
        w = w.to(tl.float32)
        loss *= w
    loss = tl.where(inside & (j < width_out), loss, 0.0)
    tl.store(partial + tl.program_id(0), tl.sum(tl.sum(loss, 1), 0))
    if slopes is not None:
        d_ss = -keep * b * q
        d_dd = keep * (2 - b) * q
        d_m -= 2 * m * d_ss
        d_e -= 2 * e * d_dd
        if weight is not None:
            d_m *= w
            d_e *= w
            d_ss *= w
            d_dd *= w
        slopes += plane * height_out * pitch + i * pitch + j
        slope_stride = slope_stride.to(tl.int64)
        if WANT_X and WANT_Y:
            tl.store(slopes, d_m, mask=inside)
            tl.store(slopes + 3 * slope_stride, d_e, mask=inside)
        elif WANT_X:
            tl.store(slopes, d_m + d_e, mask=inside)
        else:
            tl.store(slopes, d_m - d_e, mask=inside)
        tl.store(slopes + slope_stride, d_ss, mask=inside)
        tl.store(slopes + 2 * slope_stride, d_dd, mask=inside)


@triton.jit
def _result(line, shift, IMAGE: tl.constexpr, size, size_out):
    """Which of the filter's results saw `line` under one tap, and whether it exists: as it is (0), or as
    its mirror image beyond the first (1) or the last (2) of the `size` samples."""
    if IMAGE == 0:
        at = line + shift
        there = line >= 0
    elif IMAGE == 1:
        at = shift - line
        there = line > 0
    else:
        at = 2 * (size - 1) - line + shift
        there = line < size - 1
    return at, there & (at >= 0) & (at < size_out)


@triton.jit
def _columns_adjoint_kernel(
    slopes,  # (planes, H', pitch) float32
    taps,
    maps,  # (planes, H, pitch) float32
    height,
    pitch,
    height_out,
    TAPS: tl.constexpr,
    REFLECT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    plane, i, j, inside = tile(tl.program_id(0), height, pitch, ROWS, COLUMNS)
    slopes += plane * height_out * pitch
    START: tl.constexpr = TAPS // 2 if REFLECT else 0
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in tl.static_range(TAPS):
        tap = tl.load(taps + k)
        for image in tl.static_range(3 if REFLECT else 1):
            row, there = _result(i, START - k, image, height, height_out)
            total += tap * tl.load(slopes + row * pitch + j, mask=inside & there, other=0.0)
    tl.store(maps + plane * height * pitch + i * pitch + j, total, mask=inside)


@triton.jit
def _rows_adjoint_kernel(
    upstream,  # (B,) float32
    x,
    y,
    centre,
    taps,
    maps,  # (3 or 4, planes, H, pitch) float32
    to_x,  # gradients, or None
    to_y,
    height,
    width,
    width_out,
    pitch,
    channels,
    upstream_stride,
    map_stride,
    scale,
    TAPS: tl.constexpr,
    REFLECT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    plane, i, j, inside = tile(tl.program_id(0), height, width, ROWS, COLUMNS)
    maps += plane * height * pitch + i * pitch
    map_stride = map_stride.to(tl.int64)
    START: tl.constexpr = TAPS // 2 if REFLECT else 0
    d_m = tl.zeros([ROWS, COLUMNS], tl.float32)
    d_ss = tl.zeros([ROWS, COLUMNS], tl.float32)
    d_dd = tl.zeros([ROWS, COLUMNS], tl.float32)
    d_e = tl.zeros([ROWS, COLUMNS], tl.float32)
    # Not unrolled: the masks of eleven taps at once would spill on AMD.
    for k in tl.range(0, TAPS, num_stages=1):
        tap = tl.load(taps + k)
        for image in tl.static_range(3 if REFLECT else 1):
            column, there = _result(j, START - k, image, width, width_out)
            there &= inside
            d_m += tap * tl.load(maps + column, mask=there, other=0.0)
            d_ss += tap * tl.load(maps + map_stride + column, mask=there, other=0.0)
            d_dd += tap * tl.load(maps + 2 * map_stride + column, mask=there, other=0.0)
            if to_x is not None and to_y is not None:
                d_e += tap * tl.load(maps + 3 * map_stride + column, mask=there, other=0.0)
    where = plane * height * width + i * width + j
    c = tl.load(centre + plane)
    fx = tl.load(x + where, mask=inside, other=0.0).to(tl.float32) - c
    fy = tl.load(y + where, mask=inside, other=0.0).to(tl.float32) - c
    scale *= tl.load(upstream + plane // channels * upstream_stride)
    along_s = d_m + 2 * (fx + fy) * d_ss
    along_d = d_e + 2 * (fx - fy) * d_dd
    if to_x is not None:
        g = scale * (along_s + along_d)
        tl.store(to_x + where, g.to(to_x.dtype.element_ty), mask=inside)
    if to_y is not None:
        g = scale * (along_s - along_d)
        tl.store(to_y + where, g.to(to_y.dtype.element_ty), mask=inside)


class Call(NamedTuple):
    """What both passes are given: contiguous (B, C, H, W) and the window as a float32 tensor."""

    x: Tensor
    y: Tensor
    taps: Tensor
    constants: Tensor | None
    weight: Tensor | None
    c1: float
    c2: float
    offset: float
    structure: bool
    reflect: bool

    def size_out(self) -> tuple[int, int]:
        """Rows and columns of the loss map."""
        cut = 0 if self.reflect else self.taps.numel() - 1
        return self.x.shape[2] - cut, self.x.shape[3] - cut

    def scale(self) -> float:
        """What the sum over the loss map is multiplied by."""
        rows, columns = self.size_out()
        return 1.0 if self.weight is not None else 1 / (self.x.shape[1] * rows * columns)


def _tiles(rows: int, columns: int, options: Options, axis: str) -> tuple[int, dict[str, int]]:
    tall, wide = options[f"{axis}_rows"], options[f"{axis}_columns"]
    count = triton.cdiv(rows, tall) * triton.cdiv(columns, wide)
    return count, {"ROWS": tall, "COLUMNS": wide, "num_warps": options["warps"]}


def forward(
    call: Call, want_x: bool, want_y: bool, options: Options
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The (B,) loss, the derivatives by the filtered maps (None if unwanted) and the centres."""
    batch, channels, height, width = call.x.shape
    planes, (rows, columns) = batch * channels, call.size_out()
    new = lambda *shape: call.x.new_empty(shape, dtype=torch.float32)  # noqa: E731
    window = {"TAPS": call.taps.numel(), "REFLECT": call.reflect}
    centre, size = new(planes), height * width
    stride = triton.cdiv(size, 1024)
    _centre_kernel[(planes,)](call.y, centre, size, stride, SAMPLES=1024, num_warps=4)
    pitch = triton.cdiv(columns, 16) * 16
    maps = new(4, planes, height, pitch)
    count, shape = _tiles(height, pitch, options, "row")
    _rows_kernel[(planes * count,)](
        call.x, call.y, centre, call.taps, maps, height, width, columns, pitch, maps.stride(0), **window, **shape
    )  # fmt: skip
    count, shape = _tiles(rows, pitch, options, "column")
    partial = new(batch, channels * count)
    slopes = new(3 + (want_x and want_y), planes, rows, pitch) if want_x or want_y else None
    channels_of_weight = 1 if call.weight is None else call.weight.shape[1]
    strides = maps.stride(0), 0 if slopes is None else slopes.stride(0)
    _columns_kernel[(planes * count,)](
        maps, centre, call.taps, call.constants, call.weight, partial, slopes,
        call.c1, call.c2, call.offset, height, pitch, rows, columns, channels, channels_of_weight,
        *strides, STRUCTURE=call.structure, WANT_X=want_x, WANT_Y=want_y, **window, **shape,
    )  # fmt: skip
    return finish(partial, call.scale())[0], slopes, centre


def backward(
    upstream: Tensor,
    call: Call,
    slopes: Tensor,
    centre: Tensor,
    want_x: bool,
    want_y: bool,
    options: Options,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of (x, y), None where not wanted."""
    batch, channels, height, width = call.x.shape
    planes, (rows, columns) = batch * channels, call.size_out()
    window = {"TAPS": call.taps.numel(), "REFLECT": call.reflect}
    pitch = slopes.shape[3]
    maps = slopes.new_empty(slopes.shape[0], planes, height, pitch)
    count, shape = _tiles(height, pitch, options, "column")
    _columns_adjoint_kernel[(maps.shape[0] * planes * count,)](
        slopes, call.taps, maps, height, pitch, rows, **window, **shape
    )
    to_x = torch.empty_like(call.x) if want_x else None
    to_y = torch.empty_like(call.y) if want_y else None
    count, shape = _tiles(height, width, options, "row")
    if call.reflect:  # three times the addresses: half the tile, or registers run out on AMD
        half = {**options, "row_columns": options["row_columns"] // 2}
        count, shape = _tiles(height, width, half, "row")
    _rows_adjoint_kernel[(planes * count,)](
        upstream, call.x, call.y, centre, call.taps, maps, to_x, to_y, height, width, columns, pitch,
        channels, upstream.stride(0), maps.stride(0), call.scale(), **window, **shape,
    )  # fmt: skip
    return to_x, to_y
