"""The window of SSIM over a stack of maps, and its adjoint, in two forms.

    Banded      maps `(H, P, W)`: a matrix product per axis and 16 rows (`kernels.banded`). Any dtype,
                any device, any number P of planes.
    Depthwise   maps `(H, W, P)`: convolutions that take the planes as channels, one lane of a vector
                each. It multiplies no zeros, but planes are transposed on the way in and out: the
                faster one for whole windows (padding="valid") of enough planes, in float32 on a CPU.

A stack is `(M, *map)`, so that one call filters all M maps.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.kernels.banded import (
    Banded,
    banded,
    filter_leading,
    filter_trailing,
    plane_chunks,
)

__all__ = ["SSIMPadding", "Window", "chunks", "window_of"]

SSIMPadding = Literal["valid", "reflect"]

_LANES = 16
"""Planes that a vector of float32 holds (AVX-512): with fewer the depthwise form is no faster."""
_CHUNK = 1 << 18
"""Elements of a map that the depthwise form works on at a time, per thread."""
_LARGEST = 1 << 19
"""The largest map of it: above that neither caches nor the allocator hold its memory."""


class Window(Protocol):
    """A window over the planes `(P, H, W)` of one size."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of its positions."""
        ...

    def map_shape(self, planes: int, rows: int, columns: int) -> tuple[int, int, int]:
        """The shape of a map."""
        ...

    def gather(self, planes: Tensor, out: Tensor) -> Tensor:
        """Copies planes `(P, rows, columns)` to a map."""
        ...

    def scatter(self, values: Tensor, out: Tensor) -> Tensor:
        """Copies a map to planes."""
        ...

    def per_plane(self, values: Tensor) -> Tensor:
        """Views `(P,)` so that it broadcasts against maps."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """The sum over each plane of a map, `(P,)`."""
        ...

    def mean(self, maps: Tensor) -> Tensor:
        """The mean of each map under the window, in new memory."""
        ...

    def adjoint(self, maps: Tensor) -> Tensor:
        """The adjoint of `mean`, in new memory."""
        ...


class _Axis(NamedTuple):
    forward: Banded
    adjoint: Banded


class BandedWindow(NamedTuple):
    """Maps `(H, P, W)`: planes between rows and columns, both are filtered without a transposition."""

    vertical: _Axis
    horizontal: _Axis

    @property
    def size(self) -> tuple[int, int]:
        return self.vertical.forward[-1].rows.stop, self.horizontal.forward[-1].rows.stop

    def map_shape(self, planes: int, rows: int, columns: int) -> tuple[int, int, int]:
        return rows, planes, columns

    def gather(self, planes: Tensor, out: Tensor) -> Tensor:
        return out.copy_(planes.transpose(0, 1))

    def scatter(self, values: Tensor, out: Tensor) -> Tensor:
        return out.copy_(values.transpose(0, 1))

    def per_plane(self, values: Tensor) -> Tensor:
        return values.unsqueeze(1)

    def total(self, values: Tensor) -> Tensor:
        return values.sum((0, 2))

    def mean(self, maps: Tensor) -> Tensor:
        return _filter(maps, self.vertical.forward, self.horizontal.forward)

    def adjoint(self, maps: Tensor) -> Tensor:
        return _filter(maps, self.vertical.adjoint, self.horizontal.adjoint)


def _filter(maps: Tensor, vertical: Banded, horizontal: Banded) -> Tensor:
    count, _, planes, columns = maps.shape
    rows = vertical[-1].rows.stop
    half_way = maps.new_empty(rows, planes, columns)
    out = maps.new_empty(count, rows, planes, horizontal[-1].rows.stop)
    for source, target in zip(maps, out, strict=True):
        filter_trailing(filter_leading(source, vertical, half_way), horizontal, target)
    return out


class DepthwiseWindow(NamedTuple):
    """Maps `(H, W, P)`: planes are the channels of a depthwise convolution, channels last.

    Attributes:
        height: rows of the planes.
        width: columns of the planes.
        rows: the window down the rows for every channel, `(>= P, 1, taps, 1)`.
        columns: the window along the columns, `(>= P, 1, 1, taps)`.
    """

    height: int
    width: int
    rows: Tensor
    columns: Tensor

    @property
    def size(self) -> tuple[int, int]:
        cut = self.rows.shape[2] - 1
        return self.height - cut, self.width - cut

    def map_shape(self, planes: int, rows: int, columns: int) -> tuple[int, int, int]:
        return rows, columns, planes

    # As matrices: those torch transposes in blocks, three times faster.

    def gather(self, planes: Tensor, out: Tensor) -> Tensor:
        out.view(-1, out.shape[2]).copy_(planes.flatten(1).T)
        return out

    def scatter(self, values: Tensor, out: Tensor) -> Tensor:
        out.view(len(out), -1).copy_(values.view(-1, values.shape[2]).T)
        return out

    def per_plane(self, values: Tensor) -> Tensor:
        return values

    def total(self, values: Tensor) -> Tensor:
        return values.sum((0, 1))

    def mean(self, maps: Tensor) -> Tensor:
        images, count = maps.permute(0, 3, 1, 2), maps.shape[3]
        # Columns before rows, and the other way round below: the slower pass has less to do.
        images = F.conv2d(images, self.columns[:count], groups=count)
        images = F.conv2d(images, self.rows[:count], groups=count)
        return images.permute(0, 2, 3, 1)

    def adjoint(self, maps: Tensor) -> Tensor:
        images, count = maps.permute(0, 3, 1, 2), maps.shape[3]
        reach = self.rows.shape[2] - 1
        rows, columns = self.rows[:count], self.columns[:count]
        images = F.conv2d(images, rows.flip(2), padding=(reach, 0), groups=count)
        images = F.conv2d(images, columns.flip(3), padding=(0, reach), groups=count)
        return images.permute(0, 2, 3, 1)


def _as_channels(planes: int, size: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the depthwise form is the faster one."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and planes >= _LANES
        and size * _LANES // 2 <= _LARGEST
    )


def window_of(
    planes: int,
    height: int,
    width: int,
    taps: tuple[float, ...],
    padding: SSIMPadding,
    dtype: torch.dtype,
    device: torch.device,
) -> Window:
    """The faster form of the window for this many planes of one size."""
    if padding == "valid" and _as_channels(planes, height * width, dtype, device):
        kernel = _kernel(taps, min(planes, _step(height * width)))
        rows, columns = kernel.unsqueeze(3), kernel.unsqueeze(2)
        return DepthwiseWindow(height, width, rows, columns)
    return BandedWindow(
        _axis(height, taps, padding, dtype, device), _axis(width, taps, padding, dtype, device)
    )


def chunks(window: Window, planes: int, size: int, device: torch.device) -> list[slice]:
    """Ranges of planes of `size` elements to work on together."""
    if isinstance(window, BandedWindow):
        return plane_chunks(planes, size, device)
    step = _step(size)
    return [slice(start, start + step) for start in range(0, planes, step)]


def _step(size: int) -> int:
    """How many planes the depthwise form takes at a time: as many vectors as a chunk holds."""
    lanes = _LANES if size * _LANES <= _LARGEST else _LANES // 2
    return max(1, _CHUNK * torch.get_num_threads() // (size * lanes)) * lanes


@lru_cache(maxsize=32)
def _kernel(taps: tuple[float, ...], channels: int) -> Tensor:
    """The taps for every channel, `(channels, 1, taps)`."""
    return torch.tensor(taps).repeat(channels, 1, 1)


@lru_cache(maxsize=32)
def _axis(
    size: int,
    taps: tuple[float, ...],
    padding: SSIMPadding,
    dtype: torch.dtype,
    device: torch.device,
) -> _Axis:
    """The window along an axis of length `size`."""
    reach = len(taps) // 2
    start = reach if padding == "valid" else 0
    rows = torch.arange(size - 2 * start)
    matrix = torch.zeros(len(rows), size, dtype=torch.float64)
    for k, tap in enumerate(taps):
        column = (rows + start + k - reach).abs()
        column = torch.minimum(column, 2 * (size - 1) - column)
        matrix[rows, column] += tap
    return _Axis(banded(matrix, dtype, device), banded(matrix.T, dtype, device))
