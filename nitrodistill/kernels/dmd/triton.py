"""Triton kernels of `dmd`; `reference` has the formulas.

Forward: one pass over the three tensors leaves, per program, sum |x0 - real| and sum (fake - real)^2;
the second stage turns them into the loss and the factor of the gradient. Backward: one pass over
`real` and `fake`, with `x0` no longer needed.
"""

# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportOptionalOperand=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nitrodistill.kernels.launch import Options
from nitrodistill.kernels.layout import empty_aligned


@triton.jit
def _partial_kernel(
    x0,
    real,
    fake,
    partial,  # (2, B, parts) float32
    size,
    x0_stride,  # elements between samples
    real_stride,
    fake_stride,
    programs,  # B * parts
    parts,
    chunk,  # elements per program, a multiple of BLOCK
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    part = pid % parts
    sample = (pid // parts).to(tl.int64)
    x0 += sample * x0_stride
    real += sample * real_stride
    fake += sample * fake_stride
    scale = tl.zeros([BLOCK], tl.float32)
    square = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, chunk, BLOCK, num_stages=1):
        offsets = part * chunk + start + tl.arange(0, BLOCK)
        inside = offsets < size
        r = tl.load(real + offsets, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x0 + offsets, mask=inside, other=0.0).to(tl.float32)
        f = tl.load(fake + offsets, mask=inside, other=0.0).to(tl.float32)
        scale += tl.abs(x - r)
        square += (f - r) * (f - r)
    tl.store(partial + pid, tl.sum(scale, 0))
    tl.store(partial + programs + pid, tl.sum(square, 0))


@triton.jit
def _finish_kernel(
    partial,
    weight,  # (B,) or None
    loss,  # (B,) float32
    factor,  # (B,) float32: weight / (size * scale), what (fake - real) is multiplied by
    size,
    programs,
    parts,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    scale = tl.zeros([BLOCK], tl.float32)
    square = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, parts, BLOCK, num_stages=1):
        inside = start + offsets < parts
        where = sample * parts + start + offsets
        scale += tl.load(partial + where, mask=inside, other=0.0)  # not bulk: sums of programs
        where += programs
        square += tl.load(partial + where, mask=inside, other=0.0)  # not bulk: sums of programs
    mean = tl.sum(scale, 0) / size
    inverse = tl.where(mean == 0, 0.0, 1 / tl.where(mean == 0, 1.0, mean))
    importance = 1.0
    if weight is not None:
        importance = tl.load(weight + sample).to(tl.float32)
    # inverse twice, not squared: its square would overflow for data below 1e-19.
    value = tl.sum(square, 0) / size * inverse * inverse
    tl.store(loss + sample, 0.5 * importance * value)
    tl.store(factor + sample, importance * inverse / size)


@triton.jit
def _backward_kernel(
    upstream,  # (B,) float32
    real,
    fake,
    factor,
    gradient,
    size,
    real_stride,
    fake_stride,
    upstream_stride,
    parts,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0) % parts * BLOCK + tl.arange(0, BLOCK)
    sample = (tl.program_id(0) // parts).to(tl.int64)
    inside = offsets < size
    r = tl.load(real + sample * real_stride + offsets, mask=inside, other=0.0).to(tl.float32)
    f = tl.load(fake + sample * fake_stride + offsets, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(upstream + sample * upstream_stride) * tl.load(factor + sample)
    g = (f - r) * scale
    tl.store(gradient + sample * size + offsets, g.to(gradient.dtype.element_ty), mask=inside)


def forward(
    x0: Tensor, real: Tensor, fake: Tensor, weight: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """The (B,) loss and the (B,) factor of fake - real in its gradient."""
    batch, size, block = x0.shape[0], x0.numel() // x0.shape[0], options["block"]
    # Small batches are cut finer, so that they fill the GPU.
    share = triton.cdiv(x0.numel(), options["programs"])
    chunk = triton.cdiv(max(1, min(share, options["chunk"])), block) * block
    parts = triton.cdiv(size, chunk)
    partial = torch.empty(2, batch, parts, dtype=torch.float32, device=x0.device)
    _partial_kernel[(batch * parts,)](
        x0,
        real,
        fake,
        partial,
        size,
        x0.stride(0),
        real.stride(0),
        fake.stride(0),
        batch * parts,
        parts,
        chunk,
        BLOCK=block,
        num_warps=options["warps"],
    )
    loss = torch.empty(batch, dtype=torch.float32, device=x0.device)
    factor = torch.empty_like(loss)
    _finish_kernel[(batch,)](
        partial, weight, loss, factor, size, batch * parts, parts, BLOCK=128, num_warps=1
    )
    return loss, factor


def backward(
    upstream: Tensor, x0: Tensor, real: Tensor, fake: Tensor, factor: Tensor, options: Options
) -> Tensor:
    """The gradient of x0; of x0 itself only the layout and the dtype are used."""
    size, block = x0.numel() // x0.shape[0], options["backward_block"]
    parts = triton.cdiv(size, block)
    gradient = empty_aligned(x0)
    _backward_kernel[(x0.shape[0] * parts,)](
        upstream,
        real,
        fake,
        factor,
        gradient,
        size,
        real.stride(0),
        fake.stride(0),
        upstream.stride(0),
        parts,
        BLOCK=block,
        num_warps=options["warps"],
    )
    return gradient
