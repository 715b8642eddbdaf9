"""The fused `x0_loss` as torch operations, and autograd around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nitrodistill.kernels.launch import options
from nitrodistill.kernels.layout import empty_aligned, empty_gradients, flatten_mask
from nitrodistill.kernels.library import define, none_as_empty, with_graph
from nitrodistill.kernels.x0_loss import reference

_CALL = (
    "Tensor output, Tensor x_t, Tensor target, Tensor alpha, Tensor sigma, Tensor? mask, "
    "int mask_divisor, Tensor? weight, str prediction_type, str loss, float parameter"
)


class X0Loss(torch.autograd.Function):
    """One value per sample; the backward pass recomputes x0."""

    @staticmethod
    def forward(ctx: Any, *call: Any) -> Tensor:
        """`call`: output, x_t, target, alpha, sigma, mask, weight, prediction type, loss, its parameter."""
        output, x_t, target, alpha, sigma, mask, weight, *ctx.choices = call
        values, ctx.divisor = (None, 1) if mask is None else flatten_mask(mask, output)
        per_sample, inverse = _forward(
            output, x_t, target, alpha, sigma, values, ctx.divisor, weight, *ctx.choices
        )
        ctx.save_for_backward(output, x_t, target, alpha, sigma, weight, mask, values, inverse)
        return per_sample

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        *call, weight, mask, values, inverse = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            gradients = _twice_differentiable(call, mask, weight, ctx.choices, wanted, upstream)
        else:
            call = (*call, values, ctx.divisor, weight, *ctx.choices)
            gradients = _backward(upstream, *call, inverse, wanted)
        return *[g if w else None for g, w in zip(gradients, wanted, strict=True)], *[None] * 7


class X0LossMean(torch.autograd.Function):
    """The mean over the batch; the forward pass writes the gradient of `output`."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        """`given`: as for `X0Loss`, without the mask."""
        output, x_t, target, alpha, sigma, weight, *ctx.choices = given
        call = (output, x_t, target, alpha, sigma, None, 1, weight, *ctx.choices)
        total, ctx.gradient = _forward_mean(*call)
        ctx.save_for_backward(output, x_t, target, alpha, sigma, weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        *call, weight = ctx.saved_tensors
        wanted = (True, False, False)
        # The stored gradient is given away once; a second backward pass computes it again.
        gradient, ctx.gradient = ctx.gradient, None
        batch = call[0].shape[0]
        each = (upstream / batch).expand(batch)
        if torch.is_grad_enabled():
            gradient = _twice_differentiable(call, None, weight, ctx.choices, wanted, each)[0]
        elif gradient is None:
            call = (*call, None, 1, weight, *ctx.choices)
            gradient = _backward(each, *call, upstream.new_empty(0), wanted)[0]
        else:
            _backward_mean(upstream, *call, None, 1, weight, *ctx.choices, gradient)
        return gradient, *[None] * 8


def _twice_differentiable(
    call: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    choices: Sequence[Any],
    wanted: Sequence[bool],
    upstream: Tensor,
) -> list[Tensor | None]:
    """Gradients of (output, x_t, target) through the reference."""
    output, x_t, target, alpha, sigma = call
    prediction_type, loss, parameter = choices
    per_sample = reference.x0_loss(
        output, x_t, target, alpha, sigma, mask=mask, weight=weight,
        prediction_type=prediction_type, loss=loss, parameter=parameter,
    )  # fmt: skip
    return with_graph(per_sample, call[:3], wanted, upstream)


def _launch_forward(*call: Any) -> tuple[Tensor, Tensor]:
    from nitrodistill.kernels.x0_loss import triton

    return triton.forward(triton.Call(*call), options("x0_loss", call[0].device))


def _launch_forward_mean(*call: Any) -> tuple[Tensor, Tensor]:
    from nitrodistill.kernels.x0_loss import triton

    return triton.forward_mean(triton.Call(*call), options("x0_loss", call[0].device))


def _launch_backward(upstream: Tensor, *call: Any) -> list[Tensor]:
    from nitrodistill.kernels.x0_loss import triton

    *given, inverse, wanted = call
    gradients = triton.backward(
        upstream, triton.Call(*given), inverse, wanted, options("x0_loss", upstream.device)
    )
    return none_as_empty(gradients, upstream)


def _launch_backward_mean(upstream: Tensor, *call: Any) -> None:
    from nitrodistill.kernels.x0_loss import triton

    *given, gradient = call
    triton.backward_mean(
        upstream, triton.Call(*given), gradient, options("x0_loss", upstream.device)
    )


def _fake_forward(*call: Any) -> tuple[Tensor, Tensor]:
    loss = torch.empty(call[0].shape[0], dtype=torch.float32, device=call[0].device)
    return loss, torch.empty_like(loss) if call[5] is not None else loss.new_empty(0)


def _fake_forward_mean(*call: Any) -> tuple[Tensor, Tensor]:
    total = torch.empty((), dtype=torch.float32, device=call[0].device)
    return total, empty_aligned(call[0])


def _fake_backward(upstream: Tensor, *call: Any) -> list[Tensor]:
    return empty_gradients(call[:3], call[-1], upstream)


def _fake_backward_mean(upstream: Tensor, *call: Any) -> None:
    return None


_forward = define(f"x0_loss_forward({_CALL}) -> (Tensor, Tensor)", _launch_forward, _fake_forward)
_forward_mean = define(
    f"x0_loss_mean_forward({_CALL}) -> (Tensor, Tensor)", _launch_forward_mean, _fake_forward_mean
)
_backward = define(
    f"x0_loss_backward(Tensor upstream, {_CALL}, Tensor inverse, bool[] wanted) -> Tensor[]",
    _launch_backward,
    _fake_backward,
)
_backward_mean = define(
    f"x0_loss_mean_backward(Tensor upstream, {_CALL}, Tensor(a!) gradient) -> ()",
    _launch_backward_mean,
    _fake_backward_mean,
)
