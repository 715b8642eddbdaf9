"""The precision rule and the masked mean that all references share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def math_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where an input is float64, else float32."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """What is computed in it keeps its dtypes; the meta device, which only counts, knows no autocast."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Per-sample mean (B,) of `values` (B, *), weighted by a mask that broadcasts to them.

    A sample whose mask is zero everywhere gives 0 with zero gradient.
    """
    dims = tuple(range(1, values.dim()))
    if mask is None:
        return values.mean(dims) if dims else values
    mask = mask.to(values.dtype).expand(values.shape)
    count = mask.sum(dims) if dims else mask
    total = (values * mask).sum(dims) if dims else values * mask
    return total / (count + (count == 0))
