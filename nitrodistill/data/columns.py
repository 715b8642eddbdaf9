"""How the tensor of a row is stored: its element type, shape and encoding; and checks that records share."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch

REPAIR = "run what made the store again, with the same settings, to repair it."
"""The way out of damage."""

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
"""The element types a column may have, by torch's names."""

ENCODINGS = ("raw", "int8", "draws")
"""How a column may be written; see `Column`."""

BLOCK = 64
"""Elements of the last dimension that share a scale in the encoding "int8"."""

PROBE = 8
"""Elements of a row that the encoding "draws" keeps, to recognise a generator that draws differently."""


@dataclass(frozen=True)
class Column:
    """How one tensor of a row is stored.

    Attributes:
        dtype: element type that a reader gets, a key of `DTYPES`.
        shape: of one row; the first entry may be None, a token length that differs from row to row.
        encoding: "raw": the elements' little-endian bytes in C order. "int8": a float32 with the row's
            relative error, a float32 scale for each block of `BLOCK` elements, and an int8 for each
            element. "draws": the first `PROBE` elements only; the tensor is drawn anew from the
            seed of the row's source.

    Example:
        >>> store.manifest.columns["x0"]
        Column(dtype='float16', shape=(4, 8, 8), encoding='raw')
    """

    dtype: str
    shape: tuple[int | None, ...]
    encoding: str = "raw"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(
                f"a column's dtype is {self.dtype!r:.40}; it must be one of {', '.join(DTYPES)}."
            )
        if self.encoding not in ENCODINGS:
            raise ValueError(
                f"a column's encoding is {self.encoding!r:.40}; this version reads "
                f"{', '.join(ENCODINGS)} only: update nitrodistill."
            )
        free = bool(self.shape) and self.shape[0] is None
        for size in self.shape[1:] if free else self.shape:
            check_integer(size, "a size in a column's shape", 1)
        if self.encoding != "raw" and not self.torch_dtype.is_floating_point:
            raise ValueError(f"a column of {self.dtype} cannot be encoded as {self.encoding!r}.")
        if self.encoding == "int8" and (not self.shape or self.shape[-1] is None):
            raise ValueError(f"a column of shape {self.shape} cannot be encoded as 'int8'.")
        if self.encoding == "draws" and free:
            raise ValueError("a column whose length is free cannot be encoded as 'draws'.")
        if math.prod(self.sizes) * self.torch_dtype.itemsize >= 2**31:
            raise ValueError(
                f"a column has shape {self.shape!s:.60}; its rows must be below 2 GiB."
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return DTYPES[self.dtype]

    @property
    def is_free(self) -> bool:
        """Whether the first dimension differs from row to row."""
        return self.shape[:1] == (None,)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a row; of one token where the length is free."""
        return tuple(n for n in self.shape if n is not None)

    @property
    def blocks(self) -> int:
        """Scales that the encoding "int8" keeps for a row, or for a token where the length is free."""
        return math.prod(self.sizes[:-1]) * -(-self.sizes[-1] // BLOCK)

    @property
    def header_bytes(self) -> int:
        """Bytes that a row has before its elements: 4 in the encoding "int8"."""
        return 4 if self.encoding == "int8" else 0

    @property
    def stride_bytes(self) -> int:
        """Bytes of a row of fixed shape without its header, or of one token where the length is free."""
        numel = math.prod(self.sizes)
        if self.encoding == "int8":
            return 4 * self.blocks + numel
        if self.encoding == "draws":
            numel = min(numel, PROBE)
        return self.torch_dtype.itemsize * numel


def check_integer(value: object, name: str, minimum: int) -> None:
    """Raises ValueError unless `value` is an integer in minimum ... 2**63 - 1."""
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value < 2**63:
        raise ValueError(f"{name} is {value!r:.40}; it must be an integer of at least {minimum}.")


def check_number(value: object, name: str) -> None:
    """Raises ValueError unless `value` is a finite number."""
    # NaN is no number below the largest one
    finite = isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
    if isinstance(value, bool) or not finite:
        raise ValueError(f"{name} is {value!r:.40}; it must be a finite number.")
