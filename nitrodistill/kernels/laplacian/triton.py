"""Triton kernels of `laplacian_loss`, convention "burt_adelson"; `reference` has the formulas.

One launch per level and direction. Both the band L_{j-1} = G_{j-1} - up(G_j) and the next level
G_{j+1} = down(G_j) read what the previous launch wrote, so they share a launch. Mirrored borders are
folded into the weights of the 3- and 5-tap stencils (`_folded`). For the backward pass only the signs of the
bands are kept, one byte each:

    E_j = scale_j sign(L_j) + down^T(E_{j+1}) - up^T(scale_{j-1} sign(L_{j-1})),     dL/dx = E_0
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
def _folded(source, at, size):
    """Weight of `source` in the binomial around `at`, with the mirror images of `source` beyond 0 and
    size - 1 added."""
    near = _binomial(source - at)
    near += tl.where(source > 0, _binomial(-source - at), 0.0)
    return near + tl.where(source < size - 1, _binomial(2 * (size - 1) - source - at), 0.0)


@triton.jit
def _binomial(distance):
    """[1 4 6 4 1] / 16."""
    d = tl.abs(distance)
    return tl.where(d == 0, 0.375, tl.where(d == 1, 0.25, tl.where(d == 2, 0.0625, 0.0)))


@triton.jit
def _load_level(level, other, offsets, inside):
    """A level of the pyramid; the finest is the difference of two images."""
    values = tl.load(level + offsets, mask=inside, other=0.0).to(tl.float32)
    if other is not None:
        values -= tl.load(other + offsets, mask=inside, other=0.0).to(tl.float32)
    return values


@triton.jit
def _leave_band(
    band, plane, i, j, inside, height, width, weight, weight_planes, channels, scale, signs, partial, part
):  # fmt: skip
    """Store the signs of a band and the program's share of its weighted L1 norm."""
    offsets = i * width + j
    if signs is not None:
        sign = tl.where(band > 0, 1, tl.where(band < 0, -1, 0)).to(tl.int8)
        tl.store(signs + plane * height * width + offsets, sign, mask=inside)
    size = tl.where(inside, tl.abs(band), 0.0)
    size *= _load_weight(weight, plane, offsets, inside, height, width, weight_planes, channels)
    tl.store(partial + part, tl.sum(tl.sum(size, 1), 0) * scale)


@triton.jit
def _load_weight(weight, plane, offsets, inside, height, width, weight_planes, channels):
    """The weight map at `offsets`, or 1."""
    values = 1.0
    if weight is not None:
        group = plane // channels * weight_planes + plane % channels % weight_planes
        values = tl.load(weight + group * height * width + offsets, mask=inside, other=0)
        values = values.to(tl.float32)
    return values


@triton.jit
def _forward_kernel(
    fine,  # G_{j-1} (planes, H, W), or x where that is the finest level; None at j = 0
    fine_other,  # y there, else None
    level,  # G_j (planes, h, w), or x at j = 0
    level_other,
    coarse,  # G_{j+1}, written; None at the last level, whose band is G_j itself
    fine_weight,  # (B, 1 or C, H, W) or None
    level_weight,
    fine_signs,  # int8, or None
    level_signs,
    partial,  # (planes, parts) float32
    fine_height,
    fine_width,
    height,
    width,
    fine_programs,  # programs that compute the band of j - 1; the rest go to level j
    parts,
    fine_part,  # columns of `partial` for either
    level_part,
    channels,
    weight_planes,
    fine_scale,
    level_scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    pid = tl.program_id(0)
    if pid < fine_programs:
        if fine is not None:
            plane, i, j, inside = tile(pid, fine_height, fine_width, ROWS, COLUMNS)
            start = plane * height * width
            band = _load_level(
                fine + plane * fine_height * fine_width,
                None if fine_other is None else fine_other + plane * fine_height * fine_width,
                i * fine_width + j,
                inside,
            )
            for a in tl.range(3, num_stages=1):
                row = i // 2 + a - 1
                in_row = (row >= 0) & (row < height)
                vertical = 4 * _folded(2 * row, i, fine_height)
                for b in tl.static_range(3):
                    column = j // 2 + b - 1
                    there = inside & in_row & (column >= 0) & (column < width)
                    tap = vertical * _folded(2 * column, j, fine_width)
                    band -= tap * _load_level(
                        level + start,
                        None if level_other is None else level_other + start,
                        row * width + column,
                        there,
                    )
            tiles = tl.cdiv(fine_height, ROWS) * tl.cdiv(fine_width, COLUMNS)
            part = plane * parts + fine_part + pid % tiles
            _leave_band(
                band, plane, i, j, inside, fine_height, fine_width, fine_weight, weight_planes,
                channels, fine_scale, fine_signs, partial, part,
            )  # fmt: skip
    elif coarse is None:
        pid -= fine_programs
        plane, i, j, inside = tile(pid, height, width, ROWS, COLUMNS)
        start = plane * height * width
        band = _load_level(
            level + start,
            None if level_other is None else level_other + start,
            i * width + j,
            inside,
        )
        tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
        part = plane * parts + level_part + pid % tiles
        _leave_band(
            band, plane, i, j, inside, height, width, level_weight, weight_planes, channels,
            level_scale, level_signs, partial, part,
        )  # fmt: skip
    else:
        half_height = (height + 1) // 2
        half_width = (width + 1) // 2
        plane, i, j, inside = tile(pid - fine_programs, half_height, half_width, ROWS, COLUMNS)
        start = plane * height * width
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for a in tl.range(5, num_stages=1):
            row = 2 * i + a - 2
            in_row = (row >= 0) & (row < height)
            vertical = _folded(row, 2 * i, height)
            for b in tl.static_range(5):
                column = 2 * j + b - 2
                there = inside & in_row & (column >= 0) & (column < width)
                total += (vertical * _folded(column, 2 * j, width)) * _load_level(
                    level + start,
                    None if level_other is None else level_other + start,
                    row * width + column,
                    there,
                )
        tl.store(coarse + plane * half_height * half_width + i * half_width + j, total, mask=inside)


@triton.jit
def _backward_kernel(
    upstream,  # (B,) float32 at the finest level, else None
    fine_signs,  # of band j - 1, or None at j = 0
    signs,  # of band j
    coarse,  # E_{j+1}, or None at the last level
    fine_weight,
    weight,
    to_x,  # E_j, or dL/dx at the finest level; None if unwanted
    to_y,  # dL/dy at the finest level, or None
    fine_height,
    fine_width,
    height,
    width,
    channels,
    weight_planes,
    upstream_stride,
    fine_scale,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    plane, i, j, inside = tile(tl.program_id(0), height, width, ROWS, COLUMNS)
    offsets = i * width + j
    where = plane * height * width + offsets
    total = scale * tl.load(signs + where, mask=inside, other=0).to(tl.float32)
    total *= _load_weight(weight, plane, offsets, inside, height, width, weight_planes, channels)
    if coarse is not None:
        half_height = (height + 1) // 2
        half_width = (width + 1) // 2
        for a in tl.range(3, num_stages=1):
            row = i // 2 + a - 1
            in_row = (row >= 0) & (row < half_height)
            vertical = _folded(i, 2 * row, height)
            for b in tl.static_range(3):
                column = j // 2 + b - 1
                there = inside & in_row & (column >= 0) & (column < half_width)
                source = plane * half_height * half_width + row * half_width + column
                tap = vertical * _folded(j, 2 * column, width)
                total += tap * tl.load(coarse + source, mask=there, other=0.0)
    if fine_signs is not None:
        for a in tl.range(5, num_stages=1):
            row = 2 * i + a - 2
            in_row = (row >= 0) & (row < fine_height)
            vertical = 4 * fine_scale * _folded(2 * i, row, fine_height)
            for b in tl.static_range(5):
                column = 2 * j + b - 2
                there = inside & in_row & (column >= 0) & (column < fine_width)
                at = row * fine_width + column
                sign = tl.load(
                    fine_signs + plane * fine_height * fine_width + at, mask=there, other=0
                )
                share = _load_weight(
                    fine_weight, plane, at, there, fine_height, fine_width, weight_planes, channels
                )
                total -= vertical * _folded(2 * j, column, fine_width) * sign.to(tl.float32) * share
    if upstream is not None:
        total *= tl.load(upstream + plane // channels * upstream_stride)
    if to_x is not None:
        tl.store(to_x + where, total.to(to_x.dtype.element_ty), mask=inside)
    if to_y is not None:
        tl.store(to_y + where, (-total).to(to_y.dtype.element_ty), mask=inside)


class Call(NamedTuple):
    """What both passes are given: contiguous (B, C, H, W), weights and weight maps per band."""

    x: Tensor
    y: Tensor
    weights: list[float]
    weight_maps: list[Tensor]

    def shapes(self) -> list[tuple[int, int]]:
        """Height and width of every band."""
        height, width = self.x.shape[2:]
        return [(-(-height // 2**j), -(-width // 2**j)) for j in range(len(self.weights))]

    def scales(self) -> list[float]:
        """What a band's sum of weighted magnitudes is multiplied by."""
        if self.weight_maps:
            return list(self.weights)
        sizes = [self.x.shape[1] * height * width for height, width in self.shapes()]
        return [weight / size for weight, size in zip(self.weights, sizes, strict=True)]

    def weight_map(self, j: int) -> Tensor | None:
        """The weight map of band j, if there are any."""
        return self.weight_maps[j] if self.weight_maps else None

    def weight_planes(self) -> int:
        """Channels of the weight maps."""
        return self.weight_maps[0].shape[1] if self.weight_maps else 1


def forward(call: Call, save: bool, options: Options) -> tuple[Tensor, Tensor]:
    """The (B,) loss and the signs of all bands, one after the other (empty without `save`)."""
    batch, channels = call.x.shape[:2]
    planes, shapes, scales = batch * channels, call.shapes(), call.scales()
    tiles = [_tiles(shape, options) for shape in shapes]
    columns = [sum(tiles[:j]) for j in range(len(shapes) + 1)]
    partial = call.x.new_empty((planes, columns[-1]), dtype=torch.float32)
    signs = call.x.new_empty(signs_size(call) if save else 0, dtype=torch.int8)
    sign = _split_signs(signs, planes, shapes) if save else [None] * len(shapes)
    levels: list[tuple[Tensor, Tensor | None]] = [(call.x, call.y)]
    for j, shape in enumerate(shapes):
        coarse = None
        if j + 1 < len(shapes):
            coarse = partial.new_empty((planes, *shapes[j + 1]))
            levels.append((coarse, None))
        fine, fine_other = levels[j - 1] if j else (None, None)
        fine_programs = planes * tiles[j - 1] if j else 0
        own = tiles[j] if coarse is None else tiles[j + 1]
        _forward_kernel[(fine_programs + planes * own,)](
            fine,
            fine_other,
            *levels[j],
            coarse,
            call.weight_map(j - 1) if j else None,
            call.weight_map(j) if coarse is None else None,
            sign[j - 1] if j else None,
            sign[j] if coarse is None else None,
            partial,
            *(shapes[j - 1] if j else (0, 0)),
            *shape,
            fine_programs,
            columns[-1],
            columns[j - 1] if j else 0,
            columns[j],
            channels,
            call.weight_planes(),
            scales[j - 1] if j else 0.0,
            scales[j],
            ROWS=options["rows"],
            COLUMNS=options["columns"],
            num_warps=options["warps"],
        )
    return finish(partial.view(batch, -1))[0], signs


def backward(
    upstream: Tensor, call: Call, signs: Tensor, want_x: bool, want_y: bool, options: Options
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of (x, y), None where not wanted."""
    channels = call.x.shape[1]
    planes, shapes, scales = call.x.shape[0] * channels, call.shapes(), call.scales()
    sign = _split_signs(signs, planes, shapes)
    to_x = torch.empty_like(call.x) if want_x else None
    to_y = torch.empty_like(call.y) if want_y else None
    coarse = None
    for j in reversed(range(len(shapes))):
        level = to_x if j == 0 else upstream.new_empty((planes, *shapes[j]))
        _backward_kernel[(planes * _tiles(shapes[j], options),)](
            None if j else upstream,
            sign[j - 1] if j else None,
            sign[j],
            coarse,
            call.weight_map(j - 1) if j else None,
            call.weight_map(j),
            level,
            None if j else to_y,
            *(shapes[j - 1] if j else (0, 0)),
            *shapes[j],
            channels,
            call.weight_planes(),
            upstream.stride(0),
            scales[j - 1] if j else 0.0,
            scales[j],
            ROWS=options["rows"],
            COLUMNS=options["columns"],
            num_warps=options["warps"],
        )
        coarse = level
    return to_x, to_y


def signs_size(call: Call) -> int:
    """Bytes that the signs of all bands take."""
    batch, channels = call.x.shape[:2]
    return batch * channels * sum(height * width for height, width in call.shapes())


def _tiles(shape: tuple[int, int], options: Options) -> int:
    return triton.cdiv(shape[0], options["rows"]) * triton.cdiv(shape[1], options["columns"])


def _split_signs(signs: Tensor, planes: int, shapes: list[tuple[int, int]]) -> list[Tensor]:
    return list(signs.split([planes * height * width for height, width in shapes]))
