"""The fused `ssim_loss` as torch operations, and autograd around them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nitrodistill.kernels.launch import options
from nitrodistill.kernels.layout import empty_gradients
from nitrodistill.kernels.library import define, none_as_empty, with_graph
from nitrodistill.kernels.ssim import reference

_CALL = (
    "Tensor x, Tensor y, float[] taps, Tensor? constants, Tensor? weight, float c1, float c2, "
    "float offset, bool structure, bool reflect"
)


class SSIM(torch.autograd.Function):
    """One value per sample; three or four maps are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, *settings: Any) -> Tensor:
        """`settings`: what `_CALL` lists behind x and y."""
        taps, constants, weight, *ctx.choices = settings
        loss, slopes, centre = _forward(x, y, *settings, *ctx.needs_input_grad[:2])
        ctx.taps = taps
        ctx.save_for_backward(x, y, constants, weight, slopes, centre)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        x, y, constants, weight, slopes, centre = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            loss = _reference(x, y, ctx.taps, constants, weight, *ctx.choices)
            gradients = with_graph(loss, (x, y), wanted, upstream)
        else:
            call = (x, y, ctx.taps, constants, weight, *ctx.choices)
            gradients = _backward(upstream, *call, slopes, centre, *wanted)
        return *[g if w else None for g, w in zip(gradients, wanted, strict=True)], *[None] * 8


def _reference(
    x: Tensor, y: Tensor, taps: tuple[float, ...], constants: Tensor | None, *settings: Any
) -> Tensor:
    weight, *numbers, structure, reflect = settings
    c1, c2, offset = numbers if constants is None else constants.unbind(0)
    return reference.ssim_loss(
        x, y, taps=taps, c1=c1, c2=c2, offset=offset, weight_map=weight,
        mode="structure" if structure else "full", padding="reflect" if reflect else "valid",
    )  # fmt: skip


@lru_cache(maxsize=32)
def _window(taps: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(taps, dtype=torch.float32, device=device)


def _call(x: Tensor, y: Tensor, taps: list[float], *rest: Any) -> Any:
    from nitrodistill.kernels.ssim import triton

    return triton.Call(x, y, _window(tuple(taps), x.device), *rest)


def _launch_forward(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
    from nitrodistill.kernels.ssim import triton

    *given, want_x, want_y = call
    loss, slopes, centre = triton.forward(
        _call(*given), want_x, want_y, options("ssim", call[0].device)
    )
    return loss, loss.new_empty(0) if slopes is None else slopes, centre


def _fake_forward(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, taps, reflect, want_x, want_y = call[0], call[2], *call[-3:]
    batch, channels, height, width = x.shape
    cut = 0 if reflect else len(taps) - 1
    loss = x.new_empty(batch, dtype=torch.float32)
    maps = 3 + (want_x and want_y) if want_x or want_y else 0
    pitch = (width - cut + 15) // 16 * 16
    shape = (maps, batch * channels, height - cut, pitch) if maps else (0,)
    return loss, loss.new_empty(shape), loss.new_empty(batch * channels)


def _launch_backward(upstream: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    from nitrodistill.kernels.ssim import triton

    *given, slopes, centre, want_x, want_y = call
    gradients = triton.backward(
        upstream, _call(*given), slopes, centre, want_x, want_y, options("ssim", upstream.device)
    )
    to_x, to_y = none_as_empty(gradients, upstream)
    return to_x, to_y


def _fake_backward(upstream: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    to_x, to_y = empty_gradients(call[:2], call[-2:], upstream)
    return to_x, to_y


_forward = define(
    f"ssim_forward({_CALL}, bool want_x, bool want_y) -> (Tensor, Tensor, Tensor)",
    _launch_forward,
    _fake_forward,
)
_backward = define(
    f"ssim_backward(Tensor upstream, {_CALL}, Tensor slopes, Tensor centre, bool want_x, "
    "bool want_y) -> (Tensor, Tensor)",
    _launch_backward,
    _fake_backward,
)
