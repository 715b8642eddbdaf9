"""The Laplacian-pyramid loss, one value per sample: the definition.

    G_0 = x - y,  G_{j+1} = down(G_j),  L_j = G_j - up(G_{j+1}),  L_last = G_last
    loss = sum_j weights[j] * mean |L_j|

The decomposition is linear, so one pyramid of the difference serves. Two conventions:

* "burt_adelson" (Burt & Adelson 1983): down = the 5-tap binomial [1 4 6 4 1] / 16 along each axis with
  mirrored borders, then every second sample (a side n becomes ceil(n / 2)); up = zeros between the
  samples, the same filter times 2 along each axis, cropped to the finer size.
* "kornia": the bands of `kornia.geometry.transform.build_laplacian_pyramid`: binomial, then the mean
  of 2 by 2 blocks; up = bilinear, then binomial. Where no side is a power of two, or one does not
  divide by 2^(levels - 1), the difference is first mirrored at the right and at the bottom up to the
  next power of two.

Every step is a banded matrix per axis, and its derivative the adjoint of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.kernels.arithmetic import math_dtype, without_autocast
from nitrodistill.kernels.banded import Axis, filter_leading, filter_trailing, rows_first

PyramidConvention = Literal["burt_adelson", "kornia"]

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def laplacian_loss(
    x: Tensor,
    y: Tensor,
    *,
    weights: tuple[float, ...],
    convention: PyramidConvention = "burt_adelson",
    weight_maps: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """The weighted mean absolute difference of two Laplacian pyramids, for every sample.

    Args:
        x: `(B, C, H, W)`, any floating-point dtype.
        y: `(B, C, H, W)`.
        weights: one factor per band, the finest first; the last one is the low-pass (0 leaves a band
            out).
        convention: "burt_adelson" or "kornia".
        weight_maps: per band a `(B, 1, h, w)` or `(B, C, h, w)` map of the sizes that
            `pyramid_shapes` names; a band's term is then the weighted *sum* of |L_j| over positions
            and channels (the caller normalises). None is the plain mean. No gradient flows into
            them.

    Returns:
        `(B,)`, float64 if either input is, else float32.
    """
    dtype = math_dtype(x, y)
    batch, channels, height, width = x.shape
    shapes = pyramid_shapes(height, width, len(weights), convention)
    loss = x.new_zeros(batch, dtype=dtype)
    with without_autocast(x.device):
        band = rows_first(x.to(dtype) - y.to(dtype))
        if shapes[0] != (height, width):
            band = _both_axes(band, shapes[0], _mirror)
        for j, weight in enumerate(weights):
            coarser = band
            if j + 1 < len(weights):
                coarser = _both_axes(band, shapes[j + 1], _DOWN[convention])
                band = band - _both_axes(coarser, shapes[j], _UP[convention])
            size = band.abs()
            if weight_maps is None:
                term = size.sum((0, 2)) / (channels * math.prod(shapes[j]))
            else:
                weight_map = weight_maps[j].detach().to(dtype).expand(batch, channels, -1, -1)
                term = (size * rows_first(weight_map)).sum((0, 2))
            loss = loss + weight * term.view(batch, channels).sum(1)
            band = coarser
    return loss


def _both_axes(x: Tensor, shape: tuple[int, int], matrix: Callable[[int, int], Tensor]) -> Tensor:
    """A linear map along the first and the last axis of `(H, P, W)`."""
    sizes = (x.shape[0], shape[0]), (x.shape[2], shape[1])
    if torch.compiler.is_compiling():
        vertical, horizontal = (matrix(*size).to(x) for size in sizes)
        return (vertical @ x.flatten(1)).view(-1, *x.shape[1:]) @ horizontal.T
    return _Filter.apply(x, *(_axis(matrix, *size, x.dtype, x.device) for size in sizes))


@lru_cache(maxsize=128)
def _axis(
    matrix: Callable[[int, int], Tensor],
    source: int,
    target: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Axis:
    return Axis.of(matrix(source, target), dtype, device)


class _Filter(torch.autograd.Function):
    """Two maps, one along each axis; its derivative is the same of their adjoints."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, vertical: Axis, horizontal: Axis) -> Tensor:
        ctx.maps = vertical, horizontal
        rows = filter_leading(x.contiguous(), vertical.forward)
        return filter_trailing(rows, horizontal.forward)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        adjoints = (Axis(axis.adjoint, axis.forward) for axis in ctx.maps)
        return _Filter.apply(grad_outputs[0], *adjoints), None, None


def pyramid_shapes(
    height: int, width: int, levels: int, convention: PyramidConvention
) -> tuple[tuple[int, int], ...]:
    """The (height, width) of every band, the finest first; band 0 exceeds a mirrored input."""
    if convention == "kornia":
        stride = 1 << (levels - 1)
        power = [n & (n - 1) == 0 for n in (height, width)]
        if not any(power) or height % stride or width % stride:
            height, width = (1 << (n - 1).bit_length() for n in (height, width))
        return tuple((height >> j, width >> j) for j in range(levels))
    return tuple((-(-height // 2**j), -(-width // 2**j)) for j in range(levels))


def _reflected(index: Tensor, size: int) -> Tensor:
    """Mirrors indices at both ends, without repeating the border, as often as needed."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * (size - 1))
    return torch.minimum(index, 2 * (size - 1) - index)


def _mirror(size: int, padded: int) -> Tensor:
    matrix = torch.zeros(padded, size, dtype=torch.float64)
    matrix[torch.arange(padded), _reflected(torch.arange(padded), size)] = 1
    return matrix


def _blur(size: int) -> Tensor:
    matrix = torch.zeros(size, size, dtype=torch.float64)
    rows = torch.arange(size)
    for k, tap in enumerate(_BINOMIAL):
        matrix.index_put_(
            (rows, _reflected(rows + k - 2, size)),
            torch.full((size,), tap, dtype=torch.float64),
            accumulate=True,
        )
    return matrix


def _decimate(size: int, half: int) -> Tensor:
    return _blur(size)[::2]


def _insert(half: int, size: int) -> Tensor:
    return 2 * _blur(size)[:, ::2]


def _average(size: int, half: int) -> Tensor:
    blur = _blur(size)
    return (blur[0::2] + blur[1::2]) / 2


def _bilinear(half: int, size: int) -> Tensor:
    eye = torch.eye(half, dtype=torch.float64)[None]
    up = F.interpolate(eye, size=size, mode="linear", align_corners=False)[0].T
    return _blur(size) @ up


_DOWN = {"burt_adelson": _decimate, "kornia": _average}
_UP = {"burt_adelson": _insert, "kornia": _bilinear}
