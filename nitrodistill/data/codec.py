"""Tensors to bytes and back: raw, as int8 with a scale a block, or drawn anew from a seed.

    int8:  s = max |x| over a block,  q = round(127 x / s),  x' = s q / 127

Block-wise absmax quantisation, as in Dettmers et al. 2022 (8-bit Optimizers via Block-wise Quantization,
https://arxiv.org/abs/2110.02861), linear and not dynamic. Its error is measured on every row and kept with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nitrodistill.data.columns import BLOCK, PROBE, REPAIR, Column
from nitrodistill.method import Draws


def to_bytes(tensor: Tensor | bytes, column: Column, name: str) -> bytes:
    """The bytes of one row's tensor; bytes were encoded before and are passed through.

    Raises:
        ValueError: if its dtype or shape is not the column's.
    """
    if isinstance(tensor, bytes):
        return tensor
    shape = (None, *tensor.shape[1:]) if column.is_free and tensor.ndim else tuple(tensor.shape)
    if tensor.dtype != column.torch_dtype or shape != column.shape:
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}; the store holds {column.dtype} "
            f"{column.shape} (None: any length)."
        )
    tensor = tensor.detach().cpu()
    if column.encoding == "int8":
        return _quantised(tensor)
    if column.encoding == "draws":
        tensor = tensor.reshape(-1)[:PROBE]
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def from_buffers(
    buffers: Sequence[Any], column: Column, name: str, dtype: torch.dtype | None = None
) -> Tensor:
    """Rows `(B, *shape)`; shorter rows are padded with zeros to the longest.

    Of a column that is drawn these are the probes, `(B, n)`.

    Args:
        buffers: a row's bytes each.
        column: how they are stored.
        name: of the column, for messages.
        dtype: that floating-point columns are converted to; None leaves them as they are stored.

    Raises:
        ValueError: if a row's size is not the column's.
    """
    stride, header = column.stride_bytes, column.header_bytes
    sizes = [len(buffer) - header for buffer in buffers]
    if any(size < 0 or (size % stride if column.is_free else size != stride) for size in sizes):
        raise ValueError(f"a row of {name} has {sizes} bytes, which is no {column}; {REPAIR}")
    longest = max(sizes) // stride
    stored = column.torch_dtype
    wanted = dtype if dtype is not None and stored.is_floating_point else stored
    shape = [longest if n is None else n for n in column.shape]
    if column.encoding == "draws":
        shape = [stride // stored.itemsize]
    if column.encoding != "int8" and min(sizes) == max(sizes) and longest:
        whole = torch.frombuffer(bytearray().join(buffers), dtype=stored)
        return whole.to(wanted).view(len(buffers), *shape)
    out = torch.empty(len(buffers), *shape, dtype=wanted)
    flat = out.view(len(buffers), -1)
    for row, buffer in zip(flat, buffers, strict=True):  # one pass: read, convert, pad
        if column.encoding == "int8":
            values = _from_int8(memoryview(buffer)[header:], column)
        else:
            values = torch.frombuffer(buffer, dtype=stored) if len(buffer) else row[:0]
        row[: len(values)] = values
        if len(values) < len(row):
            row[len(values) :] = 0
    return out


def drawn(
    probes: Sequence[Any], column: Column, seeds: Sequence[int], indices: Sequence[int]
) -> Tensor:
    """The noise `(B, *shape)` of samples, drawn from their seeds and rounded to the column's dtype.

    Args:
        probes: what is stored of each row.
        column: of the noise.
        seeds: of each sample's source.
        indices: each sample's number there.

    Raises:
        ValueError: if it is not what the teacher saw, within a rounding of the last bit.
    """
    rows = [
        Draws(seed, 0, torch.tensor([i]), purpose="pairs").normal("noise", column.sizes)
        for seed, i in zip(seeds, indices, strict=True)
    ]
    noise = torch.cat(rows).to(column.torch_dtype)
    error = probe_error(noise, from_buffers(probes, column, "noise"))
    tolerance = max(2 * torch.finfo(column.torch_dtype).eps, 1e-5)
    if not error <= tolerance:
        raise ValueError(
            f"noise that is drawn from its seed differs by {error:.2g} from what the teacher saw (at most "
            f"{tolerance:.2g} is a rounding): the store is damaged, or this numpy draws differently; use "
            "the numpy that made the store, or store the noise (noise=stored)."
        )
    return noise


def probe_error(noise: Tensor, probes: Tensor) -> float:
    """Largest difference of drawn noise `(B, *)` to its probes `(B, n)`, relative to max(1, |probe|)."""
    known = probes.double()
    found = noise.reshape(len(noise), -1)[:, : known.shape[1]].double()
    return float(((found - known).abs() / known.abs().clamp(min=1)).max())


def relative_error(buffer: Any, column: Column) -> float:
    """||x' - x|| / ||x|| of a row, as it was measured when it was written; 0 where nothing is lost."""
    return float(np.frombuffer(buffer, "<f4", 1)[0]) if column.encoding == "int8" else 0.0


def _quantised(tensor: Tensor) -> bytes:
    x = tensor.float()
    width = x.shape[-1]
    blocks = torch.nn.functional.pad(x, (0, -width % BLOCK)).reshape(-1, BLOCK)
    scale = blocks.abs().amax(1) / 127
    q = (blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
    q = q.clamp(-127, 127).to(torch.int8)
    back = _dequantised(q.reshape(-1, BLOCK), scale, width).to(tensor.dtype).float()
    norm = float(x.norm())
    error = float((back - x.reshape(back.shape)).norm()) / norm if norm else 0.0
    codes = q.reshape(-1, -(-width // BLOCK) * BLOCK)[:, :width]
    return b"".join(
        [
            np.float32(error).astype("<f4").tobytes(),
            scale.numpy().astype("<f4").tobytes(),
            codes.contiguous().numpy().tobytes(),
        ]
    )


def _dequantised(q: Tensor, scale: Tensor, width: int) -> Tensor:
    """Rows `(N, width)` from blocks `(N * b, BLOCK)` and their scales."""
    return q.float().mul_(scale[:, None]).reshape(-1, -(-width // BLOCK) * BLOCK)[:, :width]


def _from_int8(buffer: memoryview, column: Column) -> Tensor:
    """The elements of a row in the column's dtype, flat."""
    width = column.sizes[-1]
    tokens = len(buffer) // column.stride_bytes
    scales = np.frombuffer(buffer, "<f4", tokens * column.blocks).astype(np.float32)
    if not tokens:
        return torch.empty(0, dtype=column.torch_dtype)
    q = torch.frombuffer(buffer, dtype=torch.int8, offset=scales.nbytes).reshape(-1, width)
    if width % BLOCK:
        q = torch.nn.functional.pad(q, (0, -width % BLOCK))
    x = _dequantised(q.reshape(-1, BLOCK), torch.from_numpy(scales), width)
    return x.reshape(-1).to(column.torch_dtype)


with warnings.catch_warnings():  # torch says once that memory which is only read cannot be written
    warnings.simplefilter("ignore")
    torch.frombuffer(b"0", dtype=torch.uint8)
