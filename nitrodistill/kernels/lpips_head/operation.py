"""The fused `lpips_head` as torch operations, and autograd around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nitrodistill.kernels.launch import options
from nitrodistill.kernels.layout import empty_gradients
from nitrodistill.kernels.library import define, none_as_empty, with_graph
from nitrodistill.kernels.lpips_head import reference

_CALL = "Tensor fx, Tensor fy, Tensor weight, Tensor? mask, float eps"


class LPIPSHead(torch.autograd.Function):
    """One distance per sample; four numbers per position are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, fx: Tensor, fy: Tensor, weight: Tensor, mask: Tensor | None, eps: float
    ) -> Tensor:
        save = any(ctx.needs_input_grad[:2])
        flat = None if mask is None else _flat_mask(mask, fx)
        distance, inverse, saved = _forward(fx, fy, weight, flat, eps, save)
        ctx.eps = eps
        ctx.save_for_backward(fx, fy, weight, mask, flat, inverse, saved)
        return distance

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        fx, fy, weight, mask, flat, inverse, saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            distance = reference.lpips_head(fx, fy, weight, eps=ctx.eps, mask=mask)
            gradients = with_graph(distance, (fx, fy), wanted, upstream)
        else:
            call = (fx, fy, weight, flat, ctx.eps)
            gradients = _backward(upstream, *call, inverse, saved, wanted)
        return *[g if w else None for g, w in zip(gradients, wanted, strict=True)], *[None] * 3


def _flat_mask(mask: Tensor, features: Tensor) -> Tensor:
    """(B or 1, P), contiguous."""
    mask = mask.view(*(1,) * (features.dim() - mask.dim()), *mask.shape)
    mask = mask.expand(mask.shape[0], 1, *features.shape[2:])
    flat = mask.reshape(mask.shape[0], -1).contiguous()
    return flat.to(torch.uint8) if flat.dtype == torch.bool else flat


def _launch_forward(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
    from nitrodistill.kernels.lpips_head import triton

    *given, save = call
    distance, inverse, saved = triton.forward(
        triton.Call(*given), save, options("lpips_head", call[0].device)
    )
    return distance, inverse, distance.new_empty(0) if saved is None else saved


def _fake_forward(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
    fx, mask, save = call[0], call[3], call[5]
    batch, channels = fx.shape[:2]
    distance = torch.empty(batch, dtype=torch.float32, device=fx.device)
    inverse = torch.empty_like(distance) if mask is not None else distance.new_empty(0)
    positions = fx.numel() // (batch * channels)
    saved = distance.new_empty((batch, 4, positions)) if save else distance.new_empty(0)
    return distance, inverse, saved


def _launch_backward(upstream: Tensor, *call: Any) -> list[Tensor]:
    from nitrodistill.kernels.lpips_head import triton

    *given, inverse, saved, wanted = call
    gradients = triton.backward(
        upstream,
        triton.Call(*given),
        inverse,
        saved,
        wanted,
        options("lpips_head", upstream.device),
    )
    return none_as_empty(gradients, upstream)


def _fake_backward(upstream: Tensor, *call: Any) -> list[Tensor]:
    return empty_gradients(call[:2], call[-1], upstream)


_forward = define(
    f"lpips_head_forward({_CALL}, bool save) -> (Tensor, Tensor, Tensor)",
    _launch_forward,
    _fake_forward,
)
_backward = define(
    f"lpips_head_backward(Tensor upstream, {_CALL}, Tensor inverse, Tensor saved, bool[] wanted)"
    " -> Tensor[]",
    _launch_backward,
    _fake_backward,
)
