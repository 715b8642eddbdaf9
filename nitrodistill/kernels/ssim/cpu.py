"""SSIM and its gradient in one pass, made for a CPU; any device without the fused kernel may use it.

The gradient is written out and taken in the forward pass, some planes at a time, so that everything stays
in the cache and one map is kept. `reference` is the definition, and the names are its own. With
a = (1 - l) / 2 and b = (1 - cs) / 2 the map is 2 e, e = a + b - 2 a b. A compiled graph and a second
derivative go through the definition.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nitrodistill.kernels.arithmetic import math_dtype, without_autocast
from nitrodistill.kernels.banded import plane_chunks
from nitrodistill.kernels.library import with_graph
from nitrodistill.kernels.ssim import reference
from nitrodistill.kernels.ssim.reference import SSIMMode, SSIMPadding
from nitrodistill.kernels.ssim.window import Window, window_of

_ROOM = 12
"""Maps of working memory that are asked for, besides what the window allocates; half of them are used.

The C library keeps freed memory up to twice the largest block it has seen. The unused half costs no
memory, and keeps the window's from going back to the system, page by page, at every call.
"""


class Options(NamedTuple):
    """The arguments of `ssim_loss` after x and y."""

    taps: tuple[float, ...]
    c1: float | Tensor
    c2: float | Tensor
    offset: float | Tensor
    mode: SSIMMode
    padding: SSIMPadding
    weight_map: Tensor | None


class _Planes(NamedTuple):
    """Some planes `(P, H, W)` and what belongs to them, as it broadcasts against maps.

    Attributes:
        c1: 2 C1.
        c2: 2 C2.
        one: 1.
    """

    x: Tensor
    y: Tensor
    c1: Tensor
    c2: Tensor
    offset: Tensor
    one: Tensor
    weight: Tensor | None


def ssim_loss(x: Tensor, y: Tensor, options: Options) -> Tensor:
    """What `reference.ssim_loss` is, `(B,)`."""
    if torch.compiler.is_compiling():
        return reference.ssim_loss(x, y, **options._asdict())
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        return _SSIM.apply(x, y, options)
    return _loss_and_gradients(x, y, options, False, False)[0]


class _SSIM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, options: Options) -> Tensor:
        need_x, need_y, _ = ctx.needs_input_grad
        loss, ctx.factor, grad_x, grad_y = _loss_and_gradients(x, y, options, need_x, need_y)
        ctx.options = options
        ctx.save_for_backward(x, y, grad_x, grad_y)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, y, grad_x, grad_y = ctx.saved_tensors
        (grad,) = grad_outputs
        if torch.is_grad_enabled():
            loss = reference.ssim_loss(x, y, **ctx.options._asdict())
            return *with_graph(loss, (x, y), ctx.needs_input_grad[:2], grad), None
        scale = grad.view(-1, 1, 1, 1) * ctx.factor
        return (
            None if grad_x is None else (grad_x * scale).to(x.dtype),
            None if grad_y is None else (grad_y * scale).to(y.dtype),
            None,
        )


def _loss_and_gradients(
    x: Tensor, y: Tensor, options: Options, need_x: bool, need_y: bool
) -> tuple[Tensor, float, Tensor | None, Tensor | None]:
    """The `(B,)` loss, and factor times each of two maps is its gradient: (loss, factor, x's, y's)."""
    batch, channels, height, width = x.shape
    dtype, device, planes = math_dtype(x, y), x.device, batch * channels
    window = window_of(height, width, options.taps, options.padding, dtype, device)
    x, y = (image.detach().reshape(planes, height, width) for image in (x, y))
    c1, c2, offset = (
        _per_plane(value, factor, batch, dtype, device)
        for value, factor in ((options.c1, 2), (options.c2, 2), (options.offset, 1))
    )
    weight, scale = options.weight_map, 1.0
    if weight is None:
        scale = 1 / (channels * window.size[0] * window.size[1])
    else:
        weight = weight.detach().to(dtype).expand(batch, channels, -1, -1).flatten(0, 1)
    grad_x, grad_y = (
        torch.empty(planes, height, width, dtype=dtype, device=device) if need else None
        for need in (need_x, need_y)
    )
    parts = plane_chunks(planes, height * width, device)
    room = x.new_empty(_ROOM * min(parts[0].stop, planes) * height * width, dtype=dtype)
    sums: list[Tensor] = []
    with torch.no_grad(), without_autocast(device):
        for part in parts:
            given = _Planes(
                x=x[part].to(dtype),
                y=y[part].to(dtype),
                c1=_of_part(c1, part),
                c2=_of_part(c2, part),
                offset=_of_part(offset, part),
                one=_constant(1.0, dtype, device),
                weight=None if weight is None else weight[part].transpose(0, 1).contiguous(),
            )
            to_x, to_y = (None if g is None else g[part] for g in (grad_x, grad_y))
            sums.append(_some_planes(given, window, options.mode, to_x, to_y, room))
        loss = torch.cat(sums).view(batch, channels).sum(1) * (2 * scale)
    shape = (batch, channels, height, width)
    grad_x, grad_y = (None if g is None else g.view(shape) for g in (grad_x, grad_y))
    return loss, 4 * scale, grad_x, grad_y


def _some_planes(
    planes: _Planes,
    window: Window,
    mode: SSIMMode,
    grad_x: Tensor | None,
    grad_y: Tensor | None,
    room: Tensor,
) -> Tensor:
    """The sum of e over each plane `(P,)`; writes the maps of the gradients that are wanted.

    A name is taken over when the map before it is done with: memory is what bounds the speed.
    """
    count, height, width = planes.x.shape
    shape = height, count, width
    outer = _maps(room, 4, shape)
    s, d, square_s, square_d = outer
    shift = planes.y.mean((1, 2)).unsqueeze(1)
    x, y = square_s.copy_(planes.x.transpose(0, 1)), square_d.copy_(planes.y.transpose(0, 1))
    torch.sub(x, y, out=d)
    torch.add(d, y.sub_(shift), alpha=2, out=s)
    torch.addcmul(planes.c2, s, s, out=square_s)  # a constant passes through the window
    torch.mul(d, d, out=square_d)
    filtered = window.mean(outer)
    mean_s, mean_d, var_s, var_d = filtered
    a, bright, u, rest = _maps(room[2 * s.numel() :], 4, mean_s.shape)
    torch.mul(mean_d, mean_d, out=a)
    var_d.sub_(a)
    var_s.addcmul_(mean_s, mean_s, value=-1).add_(var_d)
    b = torch.div(var_d, var_s, out=var_d)
    if mode == "full":
        torch.add(mean_s, 2 * (shift + planes.offset), out=bright)
        torch.addcmul(planes.c1, bright, bright, out=u).add_(a)
        a.div_(u)
        torch.sub(planes.one, a, alpha=2, out=rest)
        r = torch.div(rest, var_s, out=var_s)
        e = torch.addcmul(a, b, rest, out=rest)
    else:
        r, e = var_s.reciprocal_(), b
    total = (e if planes.weight is None else e * planes.weight).sum((0, 2))
    if grad_x is None and grad_y is None:
        return total

    # By s^2 and d^2 the derivatives are -q and p, by s and d, halved, to_s and to_d: all under the
    # window, in the memory of the filtered maps.
    if mode == "full":
        torch.div(torch.sub(planes.one, b, alpha=2, out=e), u, out=u)
    if planes.weight is not None:
        r.mul_(planes.weight)
        u.mul_(planes.weight)
    q = b.mul_(r)
    p = r.sub_(q)
    if mode == "full":
        a.mul_(u)
        to_d = mean_d.mul_(u.sub_(a).sub_(p))
    else:
        to_d = mean_d.mul_(p).neg_()
    both = grad_x is not None and grad_y is not None
    if grad_x is None:
        to_d.neg_()
    to_s = mean_s.mul_(q) if both else to_d.addcmul_(mean_s, q)
    if mode == "full":
        to_s.addcmul_(a, bright, value=-1)
    found = window.adjoint(filtered if both else filtered[1:])
    along, by_dd, by_ss = found[0], found[-2], found[-1]
    along.addcmul_(s, by_ss, value=-1)
    if grad_x is not None and grad_y is not None:
        along_d = found[1].addcmul_(d, by_dd)
        grad_x.copy_(torch.add(along, along_d, out=by_ss).transpose(0, 1))
        grad_y.copy_(torch.sub(along, along_d, out=by_ss).transpose(0, 1))
    elif grad_x is not None:
        grad_x.copy_(along.addcmul_(d, by_dd).transpose(0, 1))
    elif grad_y is not None:
        grad_y.copy_(along.addcmul_(d, by_dd, value=-1).transpose(0, 1))
    return total


def _maps(room: Tensor, count: int, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The first maps of the room, as a stack."""
    return room[: count * math.prod(shape)].view(count, *shape)


def _per_plane(
    value: float | Tensor, factor: int, batch: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A multiple of a constant: one for all planes `()`, or one for each `(P,)`."""
    if not isinstance(value, Tensor):
        return _constant(factor * value, dtype, device)
    value = factor * value.to(dtype)
    return value.repeat(batch) if value.ndim else value


def _of_part(value: Tensor, part: slice) -> Tensor:
    return value[part].unsqueeze(1) if value.ndim else value


@lru_cache(maxsize=32)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)
