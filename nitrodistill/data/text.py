"""Texts and their token masks: files of lines, hashes of prompt lists, how long a prompt is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nitrodistill.files import blake2
from nitrodistill.types import Condition


def read_lines(path: str | Path) -> list[str]:
    """Reads a UTF-8 file; lines are stripped, and empty ones stay, so that a line keeps its number.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("prompts.txt").write_text("a cat")
        >>> nd.data.read_lines("prompts.txt")
        ['a cat']
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"no prompt file at {str(path)!r}; give a text file, a prompt a line."
        )
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the prompt file {str(path)!r} is not UTF-8 (byte {error.start}); save it as UTF-8."
        ) from error
    return [line.strip() for line in lines]


def hash_texts(texts: Sequence[str]) -> str:
    """Hex digest of a list of texts, in order."""
    encoded = (text.encode() for text in texts)
    return blake2(len(data).to_bytes(8, "little") + data for data in encoded).hex()


def token_lengths(condition: Condition) -> dict[str, list[int]]:
    """How many tokens of each sample its mask keeps, for the tensors that run along a mask."""
    masks = [v for n, v in condition.tensors.items() if n.endswith("mask") and v.ndim == 2]
    lengths: dict[str, list[int]] = {}
    for name, value in condition.tensors.items():
        along = [mask for mask in masks if value.ndim > 1 and mask.shape[1] == value.shape[1]]
        if along and (name.endswith("mask") or value.ndim > 2):
            kept = torch.stack([mask != 0 for mask in along]).any(0)
            position = torch.arange(1, value.shape[1] + 1)
            lengths[name] = (kept * position).amax(1).clamp(min=1).tolist()
    return lengths
