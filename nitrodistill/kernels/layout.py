"""Memory layouts that the kernels read without a copy.

Pointwise kernels walk a sample's memory in order, so several tensors can be walked together when their
samples have the same dense strides; only the stride between samples may differ (a slice of the
channels is fine).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def is_sample_dense(tensor: Tensor) -> bool:
    """Whether every sample fills one piece of memory without holes or overlap, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride()[1:], tensor.shape[1:], strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def aligned(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors with equal, dense sample strides; copies only those that differ from the first."""
    first = tensors[0] if is_sample_dense(tensors[0]) else tensors[0].contiguous()
    return first, *(_like(first, tensor) for tensor in tensors[1:])


def _like(first: Tensor, tensor: Tensor) -> Tensor:
    strides = first.stride()[1:]
    same = all(
        a == b or size == 1
        for a, b, size in zip(strides, tensor.stride()[1:], first.shape[1:], strict=True)
    )
    if same:
        return tensor
    order = _storage_order(first)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(inverse)


def empty_aligned(tensor: Tensor) -> Tensor:
    """Uninitialised, with the sample strides of `tensor` and samples next to each other."""
    size = tensor[0].numel() if tensor.shape[0] else 0
    strides = (max(size, 1), *tensor.stride()[1:])
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)


def empty_gradients(inputs: Sequence[Tensor], wanted: Sequence[bool], like: Tensor) -> list[Tensor]:
    """What a backward kernel returns, uninitialised; empty for an input that wants no gradient."""
    return [
        empty_aligned(tensor) if want else like.new_empty(0)
        for tensor, want in zip(inputs, wanted, strict=True)
    ]


class FlatMask(NamedTuple):
    """A mask in the data's storage order: element i of a sample has `values[., i // divisor % period]`.

    Attributes:
        values: `(B, period)` or `(1, period)`, contiguous.
        divisor: how many neighbours in memory share one value.
    """

    values: Tensor
    divisor: int


def flatten_mask(mask: Tensor, data: Tensor) -> FlatMask:
    """Bring a mask that broadcasts to `data` into the storage order of its samples."""
    mask = mask.view(*(1,) * (data.dim() - mask.dim()), *mask.shape)
    if mask.dtype == torch.bool:
        mask = mask.to(torch.uint8)
    order = _storage_order(data)
    mask = mask.permute(order)
    sizes = [data.shape[d] for d in order][1:]
    varies = [m == s and s > 1 for m, s in zip(mask.shape[1:], sizes, strict=True)]
    if True not in varies:
        return FlatMask(mask.reshape(mask.shape[0], 1), max(1, math.prod(sizes)))
    first, last = varies.index(True), len(varies) - varies[::-1].index(True)
    mask = mask.expand(
        mask.shape[0], *mask.shape[1 : first + 1], *sizes[first:last], *mask.shape[last + 1 :]
    )
    return FlatMask(mask.reshape(mask.shape[0], -1).contiguous(), math.prod(sizes[last:]))


def _storage_order(tensor: Tensor) -> list[int]:
    strides = tensor.stride()
    return [0, *sorted(range(1, tensor.dim()), key=lambda d: (-strides[d], d))]
