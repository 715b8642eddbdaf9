"""The Laplacian-pyramid loss, one value per sample.

    G_0 = x - y,  G_{j+1} = down(G_j),  L_j = G_j - up(G_{j+1}),  L_last = G_last
    loss = sum_j weights[j] * mean |L_j|

The decomposition is linear, so one pyramid of the difference serves. Two conventions:

* "burt_adelson" (Burt & Adelson 1983): down = the 5-tap binomial [1 4 6 4 1]/16 along each axis with mirrored
  borders, then every second sample (a side n becomes ceil(n/2)); up = zeros between the samples, the same
  filter times 2 along each axis, cropped to the finer size.
* "kornia": the bands of `kornia.geometry.transform.build_laplacian_pyramid`: binomial, then the mean of
  2 by 2 blocks; up = bilinear, then binomial. Where no side is a power of two, or one does not divide by
  2^(levels - 1), the difference is first mirrored at the right and at the bottom up to the next power of two.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["PyramidConvention", "laplacian_loss", "pyramid_shapes"]

PyramidConvention = Literal["burt_adelson", "kornia"]


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
        weights: one factor per band, the finest first; the last one is the low-pass (0 leaves a band out).
        convention: "burt_adelson" or "kornia".
        weight_maps: per band a `(B, 1, h, w)` or `(B, C, h, w)` float map of the sizes that
            `pyramid_shapes` names; a band's term is then the weighted *sum* of |L_j| over positions and
            channels (the caller normalises). None is the plain mean. No gradient flows into them.

    Returns:
        `(B,)`, float64 if either input is, else float32.
    """
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    level = x.to(dtype) - y.to(dtype)
    shapes = pyramid_shapes(level.shape[-2], level.shape[-1], len(weights), convention)
    loss = level.new_zeros(level.shape[0])
    with torch.autocast(level.device.type, enabled=False):
        level = _apply(level, shapes[0], _mirror)
        for j, weight in enumerate(weights):
            band = level
            if j + 1 < len(weights):
                level = _apply(band, shapes[j + 1], _DOWN[convention])
                band = band - _apply(level, shapes[j], _UP[convention])
            maps = None if weight_maps is None else weight_maps[j]
            term = band.abs() if maps is None else band.abs() * maps
            loss = loss + weight * (
                term.flatten(1).mean(1) if maps is None else term.flatten(1).sum(1)
            )
    return loss


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


_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def _apply(x: Tensor, shape: tuple[int, int], axis_matrix) -> Tensor:
    """Applies a linear map along both axes: `M_h x M_w^T`."""
    height, width = (axis_matrix(n, m).to(x) for n, m in zip(x.shape[-2:], shape, strict=True))
    return height @ x @ width.T


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
    up = torch.nn.functional.interpolate(eye, size=size, mode="linear", align_corners=False)[0].T
    return _blur(size) @ up


_DOWN = {"burt_adelson": _decimate, "kornia": _average}
_UP = {"burt_adelson": _insert, "kornia": _bilinear}
