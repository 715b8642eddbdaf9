"""Wide 3x3 convolutions on a CPU, by Winograd's minimal filtering F(2x2, 3x3) (Lavin & Gray 2016, sec. 4.1).

    y = A^T [(G g G^T) * (B^T d B)] A

for every 4x4 tile d of the image, two pixels apart, and its 2x2 outputs y: 16 products for every pair of
channels instead of 36. The products are matrix products over the channels, the transforms additions, so that
the float32 result is at least as accurate as a direct convolution's. G g G^T depends on the weight alone, and
is kept. Flipping g exchanges the first and the last row of G g G^T: the gradient in the image is the same
convolution with these rows exchanged and the channels transposed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FrozenConv3x3"]

_FILTER = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
"""G."""

_TILES = 256
"""Tiles that are worked on at a time, per thread: 16 matrices of them stay in the cache."""


class FrozenConv3x3(nn.Conv2d):
    """`nn.Conv2d(in_channels, out_channels, 3, padding=1)` for a weight that does not train.

    On a CPU in float32 it keeps the transformed weight beside the weight, 16/9 of its size; the transforms
    pay from some 100 channels on. Elsewhere, and in a compiled graph, it is `nn.Conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self._kept: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """`(B, in_channels, H, W)` to `(B, out_channels, H, W)`."""
        suits = (
            not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
            and not self.weight.requires_grad
            and self.weight.device.type == input.device.type == "cpu"
            and self.weight.dtype == input.dtype == torch.float32
        )
        if not suits:
            return super().forward(input)
        return _Convolution.apply(input, self._kernel(), self.bias, False)

    def _kernel(self) -> Tensor:
        """G g G^T, `(16, in_channels, out_channels)`, of the weight as it is now."""
        now = (self.weight.data_ptr(), self.weight._version)
        if self._kept is None or self._kept[0] != now:
            g = self.weight.new_tensor(_FILTER)
            with torch.no_grad():
                kernel = torch.einsum("ai,bj,ocij->abco", g, g, self.weight)
            self._kept = now, kernel.flatten(0, 1).contiguous()
        return self._kept[1]


class _Convolution(torch.autograd.Function):
    """The convolution, or its transpose; linear in the image, so that it is its own second derivative."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, kernel: Tensor, bias: Tensor | None, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.transposed = transposed
        return _convolved(image, kernel, bias, transposed)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (kernel,) = ctx.saved_tensors
        grad = _Convolution.apply(grad_outputs[0], kernel, None, not ctx.transposed)
        return grad, None, None, None


def _convolved(image: Tensor, kernel: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    kernel = kernel.transpose(1, 2) if transposed else kernel
    batch, channels, height, width = image.shape
    rows, columns, outputs = -(-height // 2), -(-width // 2), kernel.shape[2]
    padded = image.new_zeros(batch, 2 * rows + 2, 2 * columns + 2, channels)
    padded[:, 1 : height + 1, 1 : width + 1] = image.permute(0, 2, 3, 1)
    shape = (batch, outputs, 2 * rows, 2 * columns)
    out = torch.empty(shape, dtype=image.dtype, memory_format=torch.channels_last)
    result = out.permute(0, 2, 3, 1).view(batch, rows, 2, columns, 2, outputs)
    at_once = _TILES * torch.get_num_threads()
    row_step = min(rows, max(1, at_once // columns))
    sample_step = min(batch, max(1, at_once // (row_step * columns)))
    lines = sample_step * row_step
    space = image.new_empty((4 * 2 * (columns + 1) + 16 * columns) * lines * channels)
    products = image.new_empty((16 + 8) * columns * lines * outputs)
    for sample in range(0, batch, sample_step):
        samples = slice(sample, sample + sample_step)
        for row in range(0, rows, row_step):
            part = result[samples, row : row + row_step]
            count = part.shape[1]
            tiles = _into_tiles(padded[samples, 2 * row : 2 * (row + count + 1)], space, transposed)
            found = torch.bmm(tiles, kernel, out=_part(products, 0, *tiles.shape[:2], outputs))
            _out_of_tiles(found, products[found.numel() :], part, transposed)
            if bias is not None:
                part.add_(bias)
    if height % 2 == width % 2 == 0:
        return out
    return out[..., :height, :width].clone(memory_format=torch.channels_last)


def _into_tiles(image: Tensor, space: Tensor, flipped: bool) -> Tensor:
    """B^T d B of all tiles of `(b, 2 n + 2, 2 m + 2, C)`, as `(16, b * n * m, C)` in `space`."""
    batch, height, width, channels = image.shape
    rows, columns = height // 2 - 1, width // 2 - 1
    half = _part(space, 0, 4, batch, rows, width, channels)
    tiles = _part(space, half.numel(), 4, 4, batch, rows, columns, channels)
    _differences([image[:, i : i + 2 * rows : 2] for i in range(4)], half.unbind(0), flipped)
    shifted = [half[..., j : j + 2 * columns : 2, :] for j in range(4)]
    _differences(shifted, tiles.unbind(1), flipped)
    return tiles.view(16, -1, channels)


def _differences(d: list[Tensor], out: tuple[Tensor, ...], flipped: bool) -> None:
    """B^T d along one axis; `flipped` for a kernel that is."""
    first, last = (out[3], out[0]) if flipped else (out[0], out[3])
    torch.sub(d[0], d[2], out=first)
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=last)


def _out_of_tiles(found: Tensor, space: Tensor, result: Tensor, flipped: bool) -> None:
    """A^T m A of `(16, b * n * m, C)` into `result` `(b, n, 2, m, 2, C)`."""
    batch, rows, _, columns, _, channels = result.shape
    half = _part(space, 0, 2, 4, batch, rows, columns, channels)
    _sums(found.view(4, 4, batch, rows, columns, channels).unbind(0), half.unbind(0), flipped)
    _sums(half.unbind(1), result.permute(4, 2, 0, 1, 3, 5).unbind(0), flipped)


def _sums(m: tuple[Tensor, ...], out: tuple[Tensor, ...], flipped: bool) -> None:
    """A^T m along one axis."""
    first, last = (m[3], m[0]) if flipped else (m[0], m[3])
    torch.add(m[1], m[2], out=out[0]).add_(first)
    torch.sub(m[1], m[2], out=out[1]).sub_(last)


def _part(space: Tensor, start: int, *shape: int) -> Tensor:
    return space[start : start + math.prod(shape)].view(shape)
