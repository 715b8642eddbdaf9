"""The smallest kernel, to learn whether Triton compiles and runs here."""

# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportOptionalOperand=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _increment(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 1)


def run(device: torch.device) -> None:
    """Increment 16 numbers on `device`.

    Raises:
        RuntimeError: if they come back wrong.
    """
    numbers = torch.zeros(16, device=device)
    with torch.cuda.device(device):
        _increment[(1,)](numbers, BLOCK=16)
    if not bool((numbers == 1).all()):
        raise RuntimeError("a Triton kernel ran and returned wrong numbers")
