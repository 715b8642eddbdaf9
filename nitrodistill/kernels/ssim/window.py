"""The window of SSIM over a stack of maps, and its adjoint: matrix products with banded matrices.

A stack is `(M, *map)`, so that one call filters all M maps.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from nitrodistill.kernels.banded import Axis, Banded, filter_leading, filter_trailing
from nitrodistill.kernels.ssim.reference import SSIMPadding


class Window(NamedTuple):
    """The window over planes `(P, H, W)` of one size.

    Maps are `(H, P, W)`: with the planes between rows and columns both are filtered without a transposition.
    """

    vertical: Axis
    horizontal: Axis

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of its positions."""
        return self.vertical.forward[-1].rows.stop, self.horizontal.forward[-1].rows.stop

    def mean(self, maps: Tensor) -> Tensor:
        """The mean of each map under the window, in new memory."""
        return _filter(maps, self.vertical.forward, self.horizontal.forward)

    def adjoint(self, maps: Tensor) -> Tensor:
        """The adjoint of `mean`, in new memory."""
        return _filter(maps, self.vertical.adjoint, self.horizontal.adjoint)


def _filter(maps: Tensor, vertical: Banded, horizontal: Banded) -> Tensor:
    count, _, planes, columns = maps.shape
    rows = vertical[-1].rows.stop
    half_way = maps.new_empty(rows, planes, columns)
    out = maps.new_empty(count, rows, planes, horizontal[-1].rows.stop)
    for source, target in zip(maps, out, strict=True):
        filter_trailing(filter_leading(source, vertical, half_way), horizontal, target)
    return out


def window_of(
    height: int,
    width: int,
    taps: tuple[float, ...],
    padding: SSIMPadding,
    dtype: torch.dtype,
    device: torch.device,
) -> Window:
    """The window over planes of one size."""
    return Window(
        _axis(height, taps, padding, dtype, device), _axis(width, taps, padding, dtype, device)
    )


@lru_cache(maxsize=32)
def _axis(
    size: int,
    taps: tuple[float, ...],
    padding: SSIMPadding,
    dtype: torch.dtype,
    device: torch.device,
) -> Axis:
    """The window along an axis of length `size`."""
    reach = len(taps) // 2
    start = reach if padding == "valid" else 0
    rows = torch.arange(size - 2 * start)
    matrix = torch.zeros(len(rows), size, dtype=torch.float64)
    for k, tap in enumerate(taps):
        column = (rows + start + k - reach).abs()
        column = torch.minimum(column, 2 * (size - 1) - column)
        matrix[rows, column] += tap
    return Axis.of(matrix, dtype, device)
