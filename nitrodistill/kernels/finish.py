"""The second stage of every reduction: a fixed-order sum of per-program partial sums.

No atomics, so that the same inputs give the same bits.
"""

# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportOptionalOperand=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _finish_kernel(
    partial,  # (rows, parts) float32
    count,  # (rows, parts) float32 or None: partial sums of the mask
    weight,  # (rows,) any float or None
    loss,  # (rows,) float32
    inverse,  # (rows,) float32 or None: 1 / sum of the mask, 0 where that is 0
    parts,
    scale,  # factor of the sum where there is no mask
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, parts, BLOCK, num_stages=1):
        inside = start + offsets < parts
        total += tl.load(partial + row * parts + start + offsets, mask=inside, other=0.0)
    result = tl.sum(total, 0)
    if count is None:
        result *= scale
    else:
        total = tl.zeros([BLOCK], tl.float32)
        for start in tl.range(0, parts, BLOCK, num_stages=1):
            inside = start + offsets < parts
            total += tl.load(count + row * parts + start + offsets, mask=inside, other=0.0)
        share = tl.sum(total, 0)
        share = tl.where(share == 0, 0.0, 1.0 / tl.where(share == 0, 1.0, share))
        tl.store(inverse + row, share)
        result *= share
    if weight is not None:
        result *= tl.load(weight + row).to(tl.float32)
    tl.store(loss + row, result)


def finish(
    partial: Tensor,
    scale: float = 1.0,
    *,
    count: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum the partial sums of every row.

    Args:
        partial: (rows, parts), float32.
        scale: factor of the sum, where no `count` is given.
        count: (rows, parts) partial sums of a mask, by whose total the sum is divided.
        weight: (rows,) factor.

    Returns:
        The (rows,) result and the (rows,) inverse of the mask's sum (empty without `count`).
    """
    rows, parts = partial.shape
    loss = torch.empty(rows, dtype=torch.float32, device=partial.device)
    inverse = torch.empty(rows if count is not None else 0, dtype=torch.float32, device=loss.device)
    block = min(1024, max(64, triton.next_power_of_2(parts)))
    _finish_kernel[(rows,)](
        partial,
        count,
        weight,
        loss,
        inverse if count is not None else None,
        parts,
        scale,
        BLOCK=block,
        num_warps=4 if block > 64 else 1,
    )
    return loss, inverse
