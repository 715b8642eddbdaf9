"""Triton helpers of the kernels that walk over image planes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(pid, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Plane, rows (ROWS, 1), columns (1, COLUMNS) of a program, and which of them exist."""
    across = tl.cdiv(columns, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) * across
    i = pid % tiles // across * ROWS + tl.arange(0, ROWS)[:, None]
    j = pid % tiles % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return (pid // tiles).to(tl.int64), i, j, (i < rows) & (j < columns)
