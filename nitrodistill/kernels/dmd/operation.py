"""The fused `dmd` as torch operations, and autograd around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nitrodistill.kernels.dmd import reference
from nitrodistill.kernels.launch import options
from nitrodistill.kernels.layout import empty_aligned
from nitrodistill.kernels.library import define


class DMD(torch.autograd.Function):
    """One value per sample; the gradient reaches x0 alone."""

    @staticmethod
    def forward(ctx: Any, x0: Tensor, real: Tensor, fake: Tensor, weight: Tensor | None) -> Tensor:
        loss, factor = _forward(x0, real, fake, weight)
        ctx.save_for_backward(x0, real, fake, weight, factor)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        x0, real, fake, weight, factor = ctx.saved_tensors
        if torch.is_grad_enabled():
            loss = reference.dmd(x0, real, fake, weight=weight)
            (gradient,) = torch.autograd.grad(loss, x0, upstream, create_graph=True)
        else:
            gradient = _backward(upstream, x0, real, fake, factor)
        return gradient, None, None, None


def _launch_forward(*call: Any) -> tuple[Tensor, Tensor]:
    from nitrodistill.kernels.dmd import triton

    return triton.forward(*call, options=options("dmd", call[0].device))


def _fake_forward(x0: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    loss = torch.empty(x0.shape[0], dtype=torch.float32, device=x0.device)
    return loss, torch.empty_like(loss)


def _launch_backward(*call: Any) -> Tensor:
    from nitrodistill.kernels.dmd import triton

    return triton.backward(*call, options=options("dmd", call[0].device))


def _fake_backward(upstream: Tensor, x0: Tensor, *call: Any) -> Tensor:
    return empty_aligned(x0)


_forward = define(
    "dmd_forward(Tensor x0, Tensor real, Tensor fake, Tensor? weight) -> (Tensor, Tensor)",
    _launch_forward,
    _fake_forward,
)
_backward = define(
    "dmd_backward(Tensor upstream, Tensor x0, Tensor real, Tensor fake, Tensor factor) -> Tensor",
    _launch_backward,
    _fake_backward,
)
