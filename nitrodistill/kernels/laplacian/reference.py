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

Every step is a banded matrix per axis. As for SSIM, the gradient is written out and taken in the forward
pass, some planes at a time; a second derivative (zero almost everywhere) and a compiled graph go through
the plain definition.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.kernels.arithmetic import math_dtype, without_autocast
from nitrodistill.kernels.banded import (
    Banded,
    banded,
    filter_leading,
    filter_trailing,
    plane_chunks,
    rows_first,
)

__all__ = ["PyramidConvention", "laplacian_loss", "pyramid_shapes"]

PyramidConvention = Literal["burt_adelson", "kornia"]

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


class _Options(NamedTuple):
    weights: tuple[float, ...]
    convention: PyramidConvention
    weight_maps: tuple[Tensor, ...] | None


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
    options = _Options(weights, convention, weight_maps)
    if torch.compiler.is_compiling():
        return _plain(x, y, options)
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        return _Laplacian.apply(x, y, options)
    return _fused(x, y, options, False)[0]


class _Laplacian(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, options: _Options) -> Tensor:
        loss, grad = _fused(x, y, options, True)
        ctx.options = options
        ctx.save_for_backward(x, y, grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, y, of_difference = ctx.saved_tensors
        need_x, need_y, _ = ctx.needs_input_grad
        (grad,) = grad_outputs
        if torch.is_grad_enabled():
            wanted = [tensor for tensor, need in ((x, need_x), (y, need_y)) if need]
            loss = _plain(x, y, ctx.options)
            found = torch.autograd.grad(loss, wanted, grad, create_graph=True)
            return found[0] if need_x else None, found[-1] if need_y else None, None
        of_difference = of_difference * grad.view(-1, 1, 1, 1)
        grad_x = of_difference.to(x.dtype) if need_x else None
        grad_y = of_difference.neg().to(y.dtype) if need_y else None
        return grad_x, grad_y, None


def _plain(x: Tensor, y: Tensor, options: _Options) -> Tensor:
    """The definition in differentiable operations."""
    weights, convention, weight_maps = options
    dtype = math_dtype(x, y)
    band = x.to(dtype) - y.to(dtype)
    shapes = pyramid_shapes(band.shape[-2], band.shape[-1], len(weights), convention)
    loss = band.new_zeros(band.shape[0])
    with without_autocast(band.device):
        if shapes[0] != tuple(band.shape[-2:]):
            band = _both_axes(band, shapes[0], _mirror)
        for j, weight in enumerate(weights):
            coarser = None
            if j + 1 < len(weights):
                coarser = _both_axes(band, shapes[j + 1], _DOWN[convention])
                band = band - _both_axes(coarser, shapes[j], _UP[convention])
            size = band.abs()
            if weight_maps is None:
                term = size.flatten(1).mean(1)
            else:
                term = (size * weight_maps[j]).flatten(1).sum(1)
            loss = loss + weight * term
            if coarser is not None:
                band = coarser
    return loss


def _both_axes(x: Tensor, shape: tuple[int, int], matrix: Callable[[int, int], Tensor]) -> Tensor:
    height = matrix(x.shape[-2], shape[0]).to(x)
    width = matrix(x.shape[-1], shape[1]).to(x)
    return height @ x @ width.T


class _Axis(NamedTuple):
    """A linear map along one axis, and its adjoint."""

    forward: Banded
    adjoint: Banded


class _Map(NamedTuple):
    """A linear map of planes `(H, P, W)`."""

    vertical: _Axis
    horizontal: _Axis

    def forward(self, x: Tensor) -> Tensor:
        return filter_trailing(filter_leading(x, self.vertical.forward), self.horizontal.forward)

    def adjoint(self, x: Tensor) -> Tensor:
        return filter_trailing(filter_leading(x, self.vertical.adjoint), self.horizontal.adjoint)


class _Pyramid(NamedTuple):
    """The maps of a pyramid: the mirroring at its entry, if any, then down and up per level."""

    entry: _Map | None
    down: tuple[_Map, ...]
    up: tuple[_Map, ...]
    shapes: tuple[tuple[int, int], ...]


def _fused(
    x: Tensor, y: Tensor, options: _Options, need_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss, and its gradient in x - y per unit of every sample's loss, without autograd."""
    weights, convention, weight_maps = options
    batch, channels, height, width = x.shape
    dtype, device = math_dtype(x, y), x.device
    pyramid = _pyramid(height, width, len(weights), convention, dtype, device)
    factors = list(weights)
    maps: list[Tensor] | None = None
    if weight_maps is None:
        factors = [
            w / (channels * h * v) for w, (h, v) in zip(weights, pyramid.shapes, strict=True)
        ]
    else:
        maps = [
            rows_first(m.detach().to(dtype).expand(batch, channels, -1, -1)) for m in weight_maps
        ]
    x, y = rows_first(x.detach()), rows_first(y.detach())
    planes = batch * channels
    grad = torch.empty(planes, height, width, dtype=dtype, device=device) if need_grad else None
    sums: list[Tensor] = []
    with torch.no_grad(), without_autocast(device):
        for part in plane_chunks(planes, height * width, device):
            difference = torch.empty(x[:, part].shape, dtype=dtype, device=device)
            torch.sub(x[:, part].to(dtype), y[:, part].to(dtype), out=difference)
            part_maps = None if maps is None else [m[:, part] for m in maps]
            into = None if grad is None else grad[part].transpose(0, 1)
            sums.append(_fused_planes(difference, pyramid, factors, part_maps, into))
        loss = torch.cat(sums).view(batch, channels).sum(1)
    return loss, None if grad is None else grad.view(batch, channels, height, width)


def _fused_planes(
    difference: Tensor,
    pyramid: _Pyramid,
    factors: list[float],
    maps: list[Tensor] | None,
    grad: Tensor | None,
) -> Tensor:
    """The weighted sum of |bands| over each plane `(P,)`; writes the gradient if it is wanted."""
    band = difference if pyramid.entry is None else pyramid.entry.forward(difference)
    total = band.new_zeros(band.shape[1])
    signs: list[Tensor] = []
    for j, factor in enumerate(factors):
        coarser = None
        if j < len(pyramid.down):
            coarser = pyramid.down[j].forward(band)
            band = band - pyramid.up[j].forward(coarser)
        size = band.abs() if maps is None else band.abs().mul_(maps[j])
        total.add_(size.sum((0, 2)), alpha=factor)
        if grad is not None:
            sign = torch.sign(band, out=size)
            signs.append(sign.mul_(factor if maps is None else maps[j] * factor))
        if coarser is not None:
            band = coarser
    if grad is not None:
        back = signs.pop()
        for down, up in zip(reversed(pyramid.down), reversed(pyramid.up), strict=True):
            of_band = signs.pop()
            back.sub_(up.adjoint(of_band))
            back = down.adjoint(back).add_(of_band)
        grad.copy_(back if pyramid.entry is None else pyramid.entry.adjoint(back))
    return total


@lru_cache(maxsize=32)
def _pyramid(
    height: int,
    width: int,
    levels: int,
    convention: PyramidConvention,
    dtype: torch.dtype,
    device: torch.device,
) -> _Pyramid:
    shapes = pyramid_shapes(height, width, levels, convention)

    def axis(matrix: Tensor) -> _Axis:
        return _Axis(banded(matrix, dtype, device), banded(matrix.T, dtype, device))

    def between(
        source: tuple[int, int], target: tuple[int, int], matrix: Callable[[int, int], Tensor]
    ) -> _Map:
        return _Map(axis(matrix(source[0], target[0])), axis(matrix(source[1], target[1])))

    size = (height, width)
    steps = list(pairwise(shapes))
    return _Pyramid(
        None if shapes[0] == size else between(size, shapes[0], _mirror),
        tuple(between(fine, coarse, _DOWN[convention]) for fine, coarse in steps),
        tuple(between(coarse, fine, _UP[convention]) for fine, coarse in steps),
        shapes,
    )


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
