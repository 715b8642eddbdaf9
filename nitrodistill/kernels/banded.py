"""Filters along an axis as banded matrices, multiplied tile by tile.

A filter of n taps over an axis is a matrix whose row i is non-zero only near column i (mirrored borders,
decimation and interpolation are such matrices too, and so is every adjoint). Cut into blocks of some
rows and the columns that those rows reach, it is a few small matrix products: on a CPU several times
faster than a direct convolution. The block size was measured (AVX-512, float32): smaller products lose
efficiency, larger ones multiply too many zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ROWS_ON_CPU, _ROWS_ELSEWHERE = 16, 128
_CHUNK = 1 << 18
"""Elements of a map that are worked on at a time, per CPU thread: some twenty stay in a cache."""


class Tile(NamedTuple):
    """Some rows of a banded matrix and the columns where they are not zero.

    Attributes:
        rows: the rows, a range of the result's axis.
        columns: the columns, a range of the input's axis.
        block: `(rows, columns)`.
        transposed: `(columns, rows)`, contiguous.
    """

    rows: slice
    columns: slice
    block: Tensor
    transposed: Tensor


Banded = tuple[Tile, ...]
"""A banded matrix in order of its rows."""


def banded(matrix: Tensor, dtype: torch.dtype, device: torch.device) -> Banded:
    """Cuts a `(rows, columns)` float64 matrix on the CPU into tiles of `dtype` on `device`."""
    height = _ROWS_ON_CPU if device.type == "cpu" else _ROWS_ELSEWHERE
    tiles = []
    for start in range(0, matrix.shape[0], height):
        block = matrix[start : start + height]
        reached = block.abs().sum(0).nonzero().flatten()
        columns = slice(int(reached[0]), int(reached[-1]) + 1)
        block = block[:, columns].to(device=device, dtype=dtype).contiguous()
        rows = slice(start, start + block.shape[0])
        tiles.append(Tile(rows, columns, block, block.T.contiguous()))
    return tuple(tiles)


class Axis(NamedTuple):
    """A linear map along one axis, and its adjoint."""

    forward: Banded
    adjoint: Banded

    @classmethod
    def of(cls, dense: Tensor, dtype: torch.dtype, device: torch.device) -> Axis:
        """From a float64 matrix on the CPU."""
        return cls(banded(dense, dtype, device), banded(dense.T, dtype, device))


def filter_leading(x: Tensor, matrix: Banded, out: Tensor | None = None) -> Tensor:
    """Filters the first axis of a contiguous tensor, `(columns, *) -> (rows, *)`."""
    if out is None:
        out = x.new_empty(matrix[-1].rows.stop, *x.shape[1:])
    flat, flat_out = x.view(x.shape[0], -1), out.view(out.shape[0], -1)
    for tile in matrix:
        torch.mm(tile.block, flat[tile.columns], out=flat_out[tile.rows])
    return out


def filter_trailing(x: Tensor, matrix: Banded, out: Tensor | None = None) -> Tensor:
    """Filters the last axis of a contiguous tensor, `(*, columns) -> (*, rows)`."""
    if out is None:
        out = x.new_empty(*x.shape[:-1], matrix[-1].rows.stop)
    flat, flat_out = x.view(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    for tile in matrix:
        torch.mm(flat[:, tile.columns], tile.transposed, out=flat_out[:, tile.rows])
    return out


def rows_first(x: Tensor) -> Tensor:
    """Views `(B, C, H, W)` as `(H, B * C, W)`.

    With the planes between rows and columns both axes are filtered without a transposition.
    """
    return x.reshape(-1, *x.shape[2:]).transpose(0, 1)


def plane_chunks(planes: int, size: int, device: torch.device) -> list[slice]:
    """Ranges of planes of `size` elements to work on together: what caches hold; on a device all."""
    if device.type != "cpu":
        return [slice(0, planes)]
    step = max(1, _CHUNK * torch.get_num_threads() // size)
    return [slice(start, start + step) for start in range(0, planes, step)]
