"""The fused `laplacian_loss` as torch operations, and autograd around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nitrodistill.kernels.laplacian import reference
from nitrodistill.kernels.launch import options
from nitrodistill.kernels.layout import empty_gradients
from nitrodistill.kernels.library import define, none_as_empty, with_graph

_CALL = "Tensor x, Tensor y, float[] weights, Tensor[] weight_maps"


class Laplacian(torch.autograd.Function):
    """One value per sample; the signs of the bands are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, weights: tuple[float, ...], weight_maps: tuple[Tensor, ...]
    ) -> Tensor:
        save = any(ctx.needs_input_grad[:2])
        loss, signs = _forward(x, y, weights, weight_maps, save)
        ctx.weights = weights
        ctx.save_for_backward(x, y, signs, *weight_maps)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        x, y, signs, *weight_maps = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            loss = reference.laplacian_loss(
                x, y, weights=ctx.weights, weight_maps=tuple(weight_maps) or None
            )
            gradients = with_graph(loss, (x, y), wanted, upstream)
        else:
            gradients = _backward(upstream, x, y, ctx.weights, weight_maps, signs, *wanted)
        return *[g if w else None for g, w in zip(gradients, wanted, strict=True)], None, None


def _launch_forward(*call: Any) -> tuple[Tensor, Tensor]:
    from nitrodistill.kernels.laplacian import triton

    *given, save = call
    return triton.forward(triton.Call(*given), save, options("laplacian", call[0].device))


def _fake_forward(
    x: Tensor, y: Tensor, weights: list[float], weight_maps: list[Tensor], save: bool
) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = x.shape
    pixels = sum(-(-height // 2**j) * -(-width // 2**j) for j in range(len(weights)))
    loss = x.new_empty(batch, dtype=torch.float32)
    return loss, x.new_empty(batch * channels * pixels if save else 0, dtype=torch.int8)


def _launch_backward(upstream: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    from nitrodistill.kernels.laplacian import triton

    *given, signs, want_x, want_y = call
    gradients = triton.backward(
        upstream, triton.Call(*given), signs, want_x, want_y, options("laplacian", upstream.device)
    )
    to_x, to_y = none_as_empty(gradients, upstream)
    return to_x, to_y


def _fake_backward(upstream: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    to_x, to_y = empty_gradients(call[:2], call[-2:], upstream)
    return to_x, to_y


_forward = define(
    f"laplacian_forward({_CALL}, bool save) -> (Tensor, Tensor)", _launch_forward, _fake_forward
)
_backward = define(
    f"laplacian_backward(Tensor upstream, {_CALL}, Tensor signs, bool want_x, bool want_y)"
    " -> (Tensor, Tensor)",
    _launch_backward,
    _fake_backward,
)
