"""Structural dissimilarity 1 - SSIM (Wang et al. 2004), one value per sample: the definition.

With a normalised separable window w and the moments of x and y under it,

    l    = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 + C1)
    cs   = (2 s_xy + C2) / (s_xx + s_yy + C2)
    loss = mean over positions and channels of 1 - l cs        ("structure": of 1 - cs)

Three departures in how, none in what. With s = x + y and d = x - y four filtered maps suffice instead
of five, and the two factors become

    1 - l  = 2 mu_d^2 / (mu_s^2 + mu_d^2 + 2 C1)          1 - cs = 2 v_d / (v_s + v_d + 2 C2)

(v the variance under the window), which does not cancel where x is near y. The mean of y, per plane, is
subtracted before anything is squared, and added back to mu_s: variances are invariant to it, and
`w*x^2 - mu^2` no longer cancels on bright flat images. And the gradient is written out below and taken in
the forward pass, a few planes at a time, so that everything stays in the cache and one map is kept.
A second derivative, and a compiled graph, go through the plain definition.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.kernels.arithmetic import math_dtype
from nitrodistill.kernels.banded import (
    Banded,
    banded,
    filter_leading,
    filter_trailing,
    plane_chunks,
    rows_first,
)

__all__ = ["SSIMMode", "SSIMPadding", "ssim_loss", "window_mean"]

SSIMMode = Literal["full", "structure"]
SSIMPadding = Literal["valid", "reflect"]


_MAPS = 12
"""Maps that `_fused_planes` holds at a time."""


class _Options(NamedTuple):
    taps: tuple[float, ...]
    c1: float | Tensor
    c2: float | Tensor
    offset: float | Tensor
    mode: SSIMMode
    padding: SSIMPadding
    weight_map: Tensor | None


def ssim_loss(
    x: Tensor,
    y: Tensor,
    *,
    taps: tuple[float, ...],
    c1: float | Tensor,
    c2: float | Tensor,
    offset: float | Tensor = 0.0,
    mode: SSIMMode = "full",
    padding: SSIMPadding = "valid",
    weight_map: Tensor | None = None,
) -> Tensor:
    """1 - SSIM of every sample.

    Args:
        x: `(B, C, H, W)`, any floating-point dtype.
        y: `(B, C, H, W)`.
        taps: the normalised one-dimensional window, an odd number n of taps.
        c1: (K1 L)^2 > 0, a float or one value per channel `(C,)`.
        c2: (K2 L)^2 > 0, likewise.
        offset: what is added to both means before `l` is formed (a shift of signed data into
            [0, L]; second moments do not see it), a float or `(C,)`.
        mode: "full" = 1 - l cs, "structure" = 1 - cs.
        padding: "valid" keeps the H - n + 1 by W - n + 1 whole windows, and needs sides >= n;
            "reflect" mirrors the border, keeps H by W positions, and needs sides > n // 2.
        weight_map: `(B, 1, H', W')` or `(B, C, H', W')` weights of the result's positions; the loss
            is their weighted *sum* over positions and channels (the caller normalises). None is
            the plain mean. No gradient flows into it.

    Returns:
        `(B,)`, float64 if either input is, else float32.
    """
    options = _Options(taps, c1, c2, offset, mode, padding, weight_map)
    if torch.compiler.is_compiling():
        return _plain(x, y, options)
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        return _SSIM.apply(x, y, options)
    return _fused(x, y, options, False, False)[0]


class _SSIM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, options: _Options) -> Tensor:
        need_x, need_y, _ = ctx.needs_input_grad
        loss, grad_x, grad_y = _fused(x, y, options, need_x, need_y)
        ctx.options = options
        ctx.save_for_backward(x, y, grad_x, grad_y)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, y, grad_x, grad_y = ctx.saved_tensors
        (grad,) = grad_outputs
        if torch.is_grad_enabled():
            return *_differentiable_gradients(x, y, ctx, grad), None
        scale = grad.view(-1, 1, 1, 1)
        return (
            None if grad_x is None else (grad_x * scale).to(x.dtype),
            None if grad_y is None else (grad_y * scale).to(y.dtype),
            None,
        )


def _differentiable_gradients(
    x: Tensor, y: Tensor, ctx: Any, grad: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients with a graph of their own, for a second derivative."""
    need_x, need_y, _ = ctx.needs_input_grad
    wanted = [tensor for tensor, need in ((x, need_x), (y, need_y)) if need]
    found = torch.autograd.grad(_plain(x, y, ctx.options), wanted, grad, create_graph=True)
    return found[0] if need_x else None, found[-1] if need_y else None


def _plain(x: Tensor, y: Tensor, options: _Options) -> Tensor:
    """The definition in differentiable operations."""
    dtype = math_dtype(x, y)
    x, y = x.to(dtype), y.to(dtype)
    c1, c2, offset = (_per_channel(value, x) for value in options[1:4])
    shift = y.detach().mean((-2, -1), keepdim=True)
    x, y = x - shift, y - shift
    s, d = x + y, x - y
    maps = window_mean(torch.cat([s, d, s * s, d * d]), options.taps, options.padding)
    mean_s, mean_d, square_s, square_d = maps.chunk(4)
    var_s, var_d = square_s - mean_s * mean_s, square_d - mean_d * mean_d
    loss = 2 * var_d / (var_s + var_d + 2 * c2)
    if options.mode == "full":
        square = mean_d * mean_d
        bright = 2 * square / ((mean_s + 2 * (shift + offset)) ** 2 + square + 2 * c1)
        loss = bright + loss - bright * loss
    if options.weight_map is None:
        return loss.flatten(1).mean(1)
    return (loss * options.weight_map).flatten(1).sum(1)


def _per_channel(value: float | Tensor, like: Tensor) -> float | Tensor:
    if isinstance(value, Tensor) and value.ndim == 1:
        return value.to(like).view(-1, 1, 1)
    return value


def window_mean(x: Tensor, taps: tuple[float, ...], padding: SSIMPadding) -> Tensor:
    """The mean under the window of `(B, C, H, W)`, a differentiable product with a matrix per axis."""
    reach = len(taps) // 2
    if padding == "reflect":
        x = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    with torch.autocast(x.device.type, enabled=False):
        rows, columns = (_valid_windows(x.shape[dim], taps, x) for dim in (-2, -1))
        return rows @ x @ columns.T


def _valid_windows(size: int, taps: tuple[float, ...], like: Tensor) -> Tensor:
    """The dense `(size - n + 1, size)` matrix of n taps, made of operations that compile."""
    column = torch.arange(size, device=like.device)
    tap = column - torch.arange(size - len(taps) + 1, device=like.device).unsqueeze(1)
    values = torch.tensor(taps, dtype=like.dtype, device=like.device)
    inside = (tap >= 0) & (tap < len(taps))
    return torch.where(inside, values[tap.clamp(0, len(taps) - 1)], 0.0)


class _Filter(NamedTuple):
    """One axis: the window, and its adjoint for the gradient."""

    forward: Banded
    adjoint: Banded

    @property
    def size(self) -> int:
        """How many positions the window has along the axis."""
        return self.forward[-1].rows.stop


class _Planes(NamedTuple):
    """Some planes of the input, `(H, P, W)`, and what belongs to them.

    Planes stand between rows and columns, so that both axes are filtered without a transposition.
    """

    x: Tensor
    y: Tensor
    c1: float | Tensor
    c2: float | Tensor
    offset: float | Tensor
    weight: Tensor | None


def _fused(
    x: Tensor, y: Tensor, options: _Options, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss, and its gradient per unit of every sample's loss, without autograd."""
    batch, channels, height, width = x.shape
    dtype, device = math_dtype(x, y), x.device
    vertical = _filter_of(height, options.taps, options.padding, dtype, device)
    horizontal = _filter_of(width, options.taps, options.padding, dtype, device)
    x, y = rows_first(x.detach()), rows_first(y.detach())
    c1, c2, offset = (_per_plane(value, batch, dtype) for value in options[1:4])
    weight, scale = options.weight_map, 1.0
    if weight is None:
        scale = 1 / (channels * vertical.size * horizontal.size)
    else:
        weight = rows_first(weight.detach().to(dtype).expand(batch, channels, -1, -1))
    grad_x, grad_y = (
        torch.empty(batch * channels, height, width, dtype=dtype, device=device) if need else None
        for need in (need_x, need_y)
    )
    sums: list[Tensor] = []
    chunks = plane_chunks(batch * channels, height * width, device)
    # One allocation for all maps of a chunk: many would go back to the system, page by page, each time.
    room = torch.empty(
        _MAPS, min(chunks[0].stop, len(x[0])) * height * width, dtype=dtype, device=device
    )
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for part in chunks:
            planes = _Planes(
                x[:, part].to(dtype),
                y[:, part].to(dtype),
                c1[part] if isinstance(c1, Tensor) else c1,
                c2[part] if isinstance(c2, Tensor) else c2,
                offset[part] if isinstance(offset, Tensor) else offset,
                None if weight is None else weight[:, part],
            )
            of_x = None if grad_x is None else grad_x[part].transpose(0, 1)
            of_y = None if grad_y is None else grad_y[part].transpose(0, 1)
            sums.append(
                _fused_planes(
                    planes, vertical, horizontal, options.mode, 2 * scale, of_x, of_y, room
                )
            )
        loss = torch.cat(sums).view(batch, channels).sum(1) * (2 * scale)
    shape = (batch, channels, height, width)
    return (
        loss,
        None if grad_x is None else grad_x.view(shape),
        None if grad_y is None else grad_y.view(shape),
    )


def _fused_planes(
    planes: _Planes,
    vertical: _Filter,
    horizontal: _Filter,
    mode: SSIMMode,
    scale: float,
    grad_x: Tensor | None,
    grad_y: Tensor | None,
    room: Tensor,
) -> Tensor:
    """The sum of e over each plane `(P,)`; writes the gradients of `scale` e that are wanted.

    With a = (1 - l) / 2 and b = (1 - cs) / 2 the map is 2 e, e = a + b - 2 a b. `outer` and `inner` are the
    same pieces of `room`, as maps of the data and of the windows: a name is taken over when the map
    before it is done with.
    """
    count = planes.x.shape[1]
    outer = _maps(room, (planes.x.shape[0], count, planes.x.shape[2]))
    inner = _maps(room, (vertical.size, count, horizontal.size))
    shift = _sum_and_difference(planes.x, planes.y, outer)
    half_way = _maps(room, (vertical.size, count, planes.x.shape[2]))[4]
    for source, target in zip(outer[:4], inner[5:9], strict=True):
        filter_leading(source, vertical.forward, half_way)
        filter_trailing(half_way, horizontal.forward, target)
    mean_s, mean_d, var_s, var_d = inner[5:9]
    var_s.addcmul_(mean_s, mean_s, value=-1)
    var_d.addcmul_(mean_d, mean_d, value=-1)
    inverse = var_s.add_(planes.c2, alpha=2).add_(var_d).reciprocal_()
    b = var_d.mul_(inverse)
    bright, bright_inverse, a = inner[9:12]
    e = b
    if mode == "full":
        torch.add(mean_s, 2 * (shift + planes.offset), out=bright)
        torch.mul(mean_d, mean_d, out=a)
        torch.addcmul(a, bright, bright, out=bright_inverse)
        bright_inverse.add_(planes.c1, alpha=2).reciprocal_()
        a.mul_(bright_inverse)
        e = torch.add(a, b, out=inner[2]).addcmul_(a, b, value=-2)
    total = (e if planes.weight is None else e * planes.weight).sum((0, 2))
    if grad_x is None and grad_y is None:
        return total

    # The adjoints of var_s and var_d are -q and p; of mean_s and mean_d, halved, g_s and g_d mean_d.
    r = inverse if mode == "structure" else inverse.addcmul_(inverse, a, value=-2)
    if planes.weight is not None:
        r.mul_(planes.weight)
    q = torch.mul(r, b, out=inner[3])
    p = r.sub_(q)
    g_s = torch.mul(mean_s, q, out=inner[2])
    if mode == "structure":
        g_d = torch.neg(p, out=bright_inverse)
    else:
        u = bright_inverse.addcmul_(bright_inverse, b, value=-2)
        if planes.weight is not None:
            u.mul_(planes.weight)
        g_s.addcmul_(a.mul_(u), bright, value=-1)
        g_d = u.sub_(a).sub_(p)
    both = grad_x is not None and grad_y is not None
    if not both:
        g_s.addcmul_(g_d, mean_d, value=1 if grad_y is None else -1)
    half_way = _maps(room, (planes.x.shape[0], count, horizontal.size))[4]

    def adjoint(values: Tensor, target: Tensor) -> Tensor:
        filter_leading(values, vertical.adjoint, half_way)
        return filter_trailing(half_way, horizontal.adjoint, target)

    along_s = adjoint(g_s, outer[9]).addcmul_(outer[0], adjoint(q, outer[11]), value=-1)
    along_d = adjoint(p, outer[8]).mul_(outer[1])
    if both:
        along_d.add_(adjoint(g_d.mul_(mean_d), outer[5]))
    if grad_x is not None:
        torch.add(along_s, along_d, out=grad_x).mul_(2 * scale)
    if grad_y is not None:
        torch.sub(along_s, along_d, out=grad_y).mul_(2 * scale)
    return total


def _maps(room: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """The pieces of the room as maps of one shape."""
    return room[:, : shape[0] * shape[1] * shape[2]].unflatten(1, shape).unbind(0)


def _sum_and_difference(x: Tensor, y: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
    """Writes (s, d, s^2, d^2) of the centred planes to the first four maps; the centre `(P, 1)`."""
    s, d, ss, dd = maps[:4]
    shift = y.mean((0, 2)).unsqueeze(1)
    torch.sub(x, shift, out=ss)
    torch.sub(y, shift, out=dd)
    torch.add(ss, dd, out=s)
    torch.sub(ss, dd, out=d)
    torch.mul(s, s, out=ss)
    torch.mul(d, d, out=dd)
    return shift


def _per_plane(value: float | Tensor, batch: int, dtype: torch.dtype) -> float | Tensor:
    if isinstance(value, Tensor) and value.ndim == 1:
        return value.to(dtype).repeat(batch).unsqueeze(1)
    return value


@lru_cache(maxsize=32)
def _filter_of(
    size: int,
    taps: tuple[float, ...],
    padding: SSIMPadding,
    dtype: torch.dtype,
    device: torch.device,
) -> _Filter:
    """The window along an axis of length `size`."""
    reach = len(taps) // 2
    start = reach if padding == "valid" else 0
    rows = torch.arange(size - 2 * start)
    matrix = torch.zeros(len(rows), size, dtype=torch.float64)
    for k, tap in enumerate(taps):
        column = (rows + start + k - reach).abs()
        column = torch.minimum(column, 2 * (size - 1) - column)
        matrix[rows, column] += tap
    return _Filter(banded(matrix, dtype, device), banded(matrix.T, dtype, device))
