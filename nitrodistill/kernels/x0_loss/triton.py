"""Triton kernels of `x0_loss`; `reference` has the formulas.

Forward: every program walks a chunk of one sample and leaves one partial sum; `finish` adds them.
Backward: one pass, recomputing x0 (cheaper than storing the gradient, which is 2 bytes or more per
element). With `gradient` the forward pass writes the gradient as well, for a loss whose upstream
gradient is known to be one; the backward kernel then only looks at that number, and recomputes where it
is another one.
"""

# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportOptionalOperand=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nitrodistill.kernels.finish import finish
from nitrodistill.kernels.launch import Options
from nitrodistill.kernels.layout import empty_aligned

PREDICTIONS = {"sample": 0, "epsilon": 1, "v_prediction": 2, "flow_prediction": 3}
LOSSES = {"l1": 0, "l2": 1, "smooth_l1": 2, "huber": 3, "pseudo_huber": 4, "charbonnier": 5}


@triton.jit
def _coefficients(alpha, sigma, PREDICTION: tl.constexpr):
    """a, b of x0 = a x_t + b output; the scales are float64 scalars."""
    if PREDICTION == 1:
        a = 1 / alpha
        b = -sigma / alpha
    elif PREDICTION == 2:
        a = alpha / (alpha * alpha + sigma * sigma)
        b = -sigma / (alpha * alpha + sigma * sigma)
    elif PREDICTION == 3:
        a = 1 / (alpha + sigma)
        b = -sigma / (alpha + sigma)
    else:
        a = alpha * 0
        b = alpha * 0 + 1
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def _rho(r, k, LOSS: tl.constexpr):
    """The elementwise loss of `reference.elementwise_loss`."""
    if LOSS == 0:
        return tl.abs(r)
    elif LOSS == 1:
        return r * r
    elif LOSS == 2:
        near = tl.minimum(tl.abs(r), k)
        return near * (tl.abs(r) - 0.5 * near) / k
    elif LOSS == 3:
        near = tl.minimum(tl.abs(r), k)
        return near * (tl.abs(r) - 0.5 * near)
    elif LOSS == 4:
        return r * r / (tl.sqrt(r * r + k * k) + k)
    else:
        return tl.sqrt(r * r + k * k)


@triton.jit
def _slope(r, k, LOSS: tl.constexpr):
    """d rho / d r; zero at r = 0 for l1, as torch has it."""
    if LOSS == 0:
        return tl.where(r > 0, 1.0, tl.where(r < 0, -1.0, 0.0))
    elif LOSS == 1:
        return 2 * r
    elif LOSS == 2:
        return tl.minimum(tl.maximum(r, -k), k) / k
    elif LOSS == 3:
        return tl.minimum(tl.maximum(r, -k), k)
    else:
        return r / tl.sqrt(r * r + k * k)


@triton.jit
def _residual(output, x_t, target, offsets, inside, a, b, PREDICTION: tl.constexpr):
    """x0 - target at `offsets` of one sample."""
    x0 = tl.load(output + offsets, mask=inside, other=0.0).to(tl.float32)
    if PREDICTION != 0:
        x0 = a * tl.load(x_t + offsets, mask=inside, other=0.0).to(tl.float32) + b * x0
    return x0 - tl.load(target + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _forward_kernel(
    output,
    x_t,
    target,
    alpha,  # (B,), or one number with scale_stride 0
    sigma,
    mask,  # (B or 1, period) or None
    weight,  # (B,) or None; applied here only where `gradient` is written, else by `finish`
    partial,  # (B, parts) float32
    count,  # (B, parts) float32 or None
    gradient,  # like output, or None
    size,  # elements of a sample
    output_stride,  # elements between samples
    x_t_stride,
    target_stride,
    gradient_stride,
    scale_stride,
    mask_stride,
    mask_divisor,
    mask_period,
    parts,  # programs per sample
    chunk,  # elements per program, a multiple of BLOCK
    k,
    gradient_scale,
    PREDICTION: tl.constexpr,
    LOSS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    part = tl.program_id(0) % parts
    sample = (tl.program_id(0) // parts).to(tl.int64)
    output += sample * output_stride
    x_t += sample * x_t_stride
    target += sample * target_stride
    a, b = _coefficients(
        tl.load(alpha + sample * scale_stride).to(tl.float64),
        tl.load(sigma + sample * scale_stride).to(tl.float64),
        PREDICTION,
    )
    total = tl.zeros([BLOCK], tl.float32)
    share = tl.zeros([BLOCK], tl.float32)
    if gradient is not None:
        gradient += sample * gradient_stride
        importance = gradient_scale
        if weight is not None:
            importance *= tl.load(weight + sample).to(tl.float32)
    for start in tl.range(0, chunk, BLOCK, num_stages=1):
        offsets = part * chunk + start + tl.arange(0, BLOCK)
        inside = offsets < size
        r = _residual(output, x_t, target, offsets, inside, a, b, PREDICTION)
        value = tl.where(inside, _rho(r, k, LOSS), 0.0)
        if mask is not None:
            where = sample * mask_stride + (offsets // mask_divisor) % mask_period
            m = tl.load(mask + where, mask=inside, other=0)  # not bulk: the channels share it
            m = m.to(tl.float32)
            value *= m
            share += m
        total += value
        if gradient is not None:
            g = importance * b * _slope(r, k, LOSS)
            tl.store(gradient + offsets, g.to(gradient.dtype.element_ty), mask=inside)
    result = tl.sum(total, 0)
    if gradient is not None:
        result *= importance
    tl.store(partial + sample * parts + part, result)
    if mask is not None:
        tl.store(count + sample * parts + part, tl.sum(share, 0))


@triton.jit
def _backward_kernel(
    upstream,  # (B,) float32, or one number with upstream_stride 0
    output,
    x_t,
    target,
    alpha,
    sigma,
    mask,
    weight,  # (B,) or None
    inverse,  # (B,) float32 where there is a mask, else None
    to_output,  # gradients, or None
    to_x_t,
    to_target,
    size,
    output_stride,
    x_t_stride,
    target_stride,
    gradient_stride,  # samples of all gradients lie next to each other
    upstream_stride,
    scale_stride,
    mask_stride,
    mask_divisor,
    mask_period,
    parts,
    k,
    scale,
    PREDICTION: tl.constexpr,
    LOSS: tl.constexpr,
    UNIT_IS_DONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = (tl.program_id(0) % parts) * BLOCK + tl.arange(0, BLOCK)
    sample = (tl.program_id(0) // parts).to(tl.int64)
    factor = tl.load(upstream + sample * upstream_stride)
    if UNIT_IS_DONE:  # noqa: SIM102 - the compiler decides this one, the data the next
        if factor == 1.0:
            return
    factor *= scale
    if weight is not None:
        factor *= tl.load(weight + sample).to(tl.float32)
    a, b = _coefficients(
        tl.load(alpha + sample * scale_stride).to(tl.float64),
        tl.load(sigma + sample * scale_stride).to(tl.float64),
        PREDICTION,
    )
    inside = offsets < size
    r = _residual(
        output + sample * output_stride,
        x_t + sample * x_t_stride,
        target + sample * target_stride,
        offsets,
        inside,
        a,
        b,
        PREDICTION,
    )
    g = factor * _slope(r, k, LOSS)
    if mask is not None:
        where = sample * mask_stride + (offsets // mask_divisor) % mask_period
        m = tl.load(mask + where, mask=inside, other=0)  # not bulk: the channels share it
        m = m.to(tl.float32)
        g *= m * tl.load(inverse + sample)
    first = sample * gradient_stride
    if to_output is not None:
        tl.store(to_output + first + offsets, (b * g).to(to_output.dtype.element_ty), mask=inside)
    if to_x_t is not None:
        tl.store(to_x_t + first + offsets, (a * g).to(to_x_t.dtype.element_ty), mask=inside)
    if to_target is not None:
        tl.store(to_target + first + offsets, (-g).to(to_target.dtype.element_ty), mask=inside)


class Call(NamedTuple):
    """What all passes are given: samples with equal dense strides, the mask as in `layout`."""

    output: Tensor
    x_t: Tensor
    target: Tensor
    alpha: Tensor
    sigma: Tensor
    mask: Tensor | None
    mask_divisor: int
    weight: Tensor | None
    prediction_type: str
    loss: str
    parameter: float

    @property
    def sample_size(self) -> int:
        """Elements of one sample."""
        return self.output.numel() // self.output.shape[0]

    def pointers(self, weight: Tensor | None) -> tuple[Tensor | None, ...]:
        """output, x_t, target, alpha, sigma, mask, weight."""
        return (*self[:6], weight)

    def mask_layout(self) -> tuple[int, int, int]:
        """Stride between samples, divisor and period."""
        if self.mask is None:
            return 0, 1, 1
        rows, period = self.mask.shape
        return 0 if rows == 1 else period, self.mask_divisor, period

    def constants(self) -> dict[str, int]:
        """The compile-time choices."""
        linear = self.loss == "smooth_l1" and self.parameter == 0
        loss = LOSSES["l1" if linear else self.loss]
        return {"PREDICTION": PREDICTIONS[self.prediction_type], "LOSS": loss}


def forward(call: Call, options: Options) -> tuple[Tensor, Tensor]:
    """The (B,) loss and the (B,) inverse of the mask's sum (empty without a mask)."""
    partial, count = _launch_forward(call, options, None)
    return finish(partial, 1 / call.sample_size, count=count, weight=call.weight)


def forward_mean(call: Call, options: Options) -> tuple[Tensor, Tensor]:
    """The mean over the batch, a scalar, and its gradient with respect to `output`; no mask."""
    gradient = empty_aligned(call.output)
    partial, _ = _launch_forward(call, options, gradient)
    loss, _ = finish(partial.view(1, -1))
    return loss[0], gradient


def _launch_forward(
    call: Call, options: Options, gradient: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    output, x_t, target = call[:3]
    batch, size, block = output.shape[0], call.sample_size, options["block"]
    # Small batches are cut finer, so that they fill the GPU.
    share = triton.cdiv(output.numel(), options["programs"])
    chunk = triton.cdiv(max(1, min(share, options["chunk"])), block) * block
    parts = triton.cdiv(size, chunk)
    partial = torch.empty(batch, parts, dtype=torch.float32, device=output.device)
    count = None if call.mask is None else torch.empty_like(partial)
    _forward_kernel[(batch * parts,)](
        *call.pointers(call.weight if gradient is not None else None),
        partial,
        count,
        gradient,
        size,
        output.stride(0),
        x_t.stride(0),
        target.stride(0),
        0 if gradient is None else gradient.stride(0),
        0 if call.alpha.dim() == 0 else 1,
        *call.mask_layout(),
        parts,
        chunk,
        call.parameter,
        1 / output.numel(),
        **call.constants(),
        BLOCK=block,
        num_warps=options["warps"],
    )
    return partial, count


def backward(
    upstream: Tensor, call: Call, inverse: Tensor, wanted: Sequence[bool], options: Options
) -> tuple[Tensor | None, ...]:
    """Gradients of (output, x_t, target), None where not `wanted`; `upstream` is (B,)."""
    gradients = [
        empty_aligned(tensor) if want else None
        for tensor, want in zip(call[:3], wanted, strict=True)
    ]
    _launch_backward(upstream, call, inverse, gradients, options, scale=None)
    return tuple(gradients)


def backward_mean(upstream: Tensor, call: Call, gradient: Tensor, options: Options) -> None:
    """Overwrite `gradient` of `forward_mean` where the scalar `upstream` is not one."""
    _launch_backward(
        upstream,
        call,
        gradient.new_empty(0),
        [gradient, None, None],
        options,
        scale=1 / call.output.numel(),
    )


def _launch_backward(
    upstream: Tensor,
    call: Call,
    inverse: Tensor,
    gradients: list[Tensor | None],
    options: Options,
    scale: float | None,
) -> None:
    output, x_t, target = call[:3]
    size, block = call.sample_size, options["backward_block"]
    parts = triton.cdiv(size, block)
    mean = 1.0 if call.mask is not None else 1 / size
    _backward_kernel[(output.shape[0] * parts,)](
        upstream,
        *call.pointers(call.weight),
        inverse if call.mask is not None else None,
        *gradients,
        size,
        output.stride(0),
        x_t.stride(0),
        target.stride(0),
        size,
        0 if upstream.dim() == 0 else upstream.stride(0),
        0 if call.alpha.dim() == 0 else 1,
        *call.mask_layout(),
        parts,
        call.parameter,
        mean if scale is None else scale,
        **call.constants(),
        UNIT_IS_DONE=scale is not None,
        BLOCK=block,
        num_warps=options["warps"],
    )
