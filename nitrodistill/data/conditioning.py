"""The prompt table's rows: texts through a pipeline's text encoder, trimmed and rounded to what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from nitrodistill.data.arrow import Rows
from nitrodistill.data.columns import DTYPES, Column
from nitrodistill.data.text import token_lengths
from nitrodistill.models.pipeline import Pipeline
from nitrodistill.types import Condition

FloatType = Literal["float16", "bfloat16", "float32"]
"""The element types that a store's floating-point tensors may have."""

Embeddings = Literal["exact", "int8"]
"""How text conditioning is stored: every bit, or eight bits an element with a scale a block."""

_SHORTEST_INT8 = 16
"""A last dimension that is shorter gains nothing from eight bits."""


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed that a store cannot name."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}; it must be at least 0 and below 2**63.")


def batches(rows: range, size: int) -> Iterator[range]:
    """`rows` in parts of at most `size`."""
    for first in range(rows.start, rows.stop, size):
        yield range(first, min(first + size, rows.stop))


def encode_texts(pipeline: Pipeline, texts: Sequence[str], dtype: FloatType) -> Condition:
    """The conditioning of texts on the CPU, rounded to `dtype`."""
    return pipeline.encode_prompt(texts).to("cpu", DTYPES[dtype])


def prompt_columns(
    pipeline: Pipeline, text: str, dtype: FloatType, embeddings: Embeddings
) -> dict[str, Column]:
    """The layout of the conditioning that a pipeline gives to any text."""
    return tensor_columns(encode_texts(pipeline, [text], dtype), embeddings)


def tensor_columns(condition: Condition, embeddings: Embeddings) -> dict[str, Column]:
    """The layout of a conditioning; what runs along a mask has a free length."""
    free = token_lengths(condition)
    columns = {}
    for name, value in condition.tensors.items():
        shape = (None, *value.shape[2:]) if name in free else tuple(value.shape[1:])
        wide = len(value.shape) > 1 + (name in free) and value.shape[-1] >= _SHORTEST_INT8
        lossy = embeddings == "int8" and value.is_floating_point() and wide
        dtype = str(value.dtype).removeprefix("torch.")
        columns[name] = Column(dtype, shape, "int8" if lossy else "raw")
    return columns


def encoded_prompts(
    pipeline: Pipeline, texts: Sequence[str], rows: range, batch_size: int, dtype: FloatType
) -> Iterator[Rows]:
    """Rows `rows` of the prompt table, a batch at a time.

    Raises:
        ValueError: if the conditioning of a prompt is not finite in `dtype`.
    """
    with pipeline.encoding():
        for ids in batches(rows, batch_size):
            some = [texts[i] for i in ids]
            condition = encode_texts(pipeline, some, dtype)
            check_finite(condition.tensors, ids, "prompts", dtype)
            yield {"prompt_id": list(ids), "text": some, **trimmed(condition)}


def trimmed(condition: Condition) -> dict[str, list[Tensor]]:
    """The tensors of each sample under their columns' names, cut after the last token that the mask keeps."""
    lengths = token_lengths(condition)
    return {
        f"condition.{name}": [
            row[: lengths[name][i]] if name in lengths else row for i, row in enumerate(value)
        ]
        for name, value in condition.tensors.items()
    }


def check_finite(tensors: Mapping[str, Tensor], ids: Sequence[int], what: str, dtype: str) -> None:
    """Raises ValueError if a tensor is not finite; the message names the samples."""
    for name, value in tensors.items():
        finite = torch.isfinite(value).reshape(len(ids), -1).all(1)
        if not finite.all():
            bad = [i for i, fine in zip(ids, finite.tolist(), strict=True) if not fine]
            raise ValueError(
                f"{name} of the {what} {bad[:8]} is not finite in {dtype}; try dtype=bfloat16 or float32, "
                "and check that what made it works well with these settings."
            )
