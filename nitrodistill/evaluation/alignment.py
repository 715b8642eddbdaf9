"""Alignment: how often a picture shows what its prompt says, read by an oracle.

An oracle is any callable `(images (B, 3, H, W) in [-1, 1], B prompts) -> attribute -> (B,) bool`: right or wrong
for each attribute that it reads. A picture is aligned (`joint`) when all its attributes are right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Alignment", "AlignmentCounts"]

Alignment = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]
"""`(images, prompts) -> attribute name -> (B,) bool`."""


class AlignmentCounts:
    """Streams an oracle's verdicts and gives accuracies."""

    def __init__(self) -> None:
        self._right: dict[str, int] = {}
        self._joint = 0
        self._count = 0

    def update(self, verdicts: Mapping[str, Tensor]) -> None:
        """Adds verdicts, each `(B,)` bool.

        Raises:
            ValueError: if there are none, or they are not equally long and bool.
        """
        shapes = {name: (tuple(right.shape), right.dtype) for name, right in verdicts.items()}
        if not verdicts or len(set(shapes.values())) > 1:
            raise ValueError(
                f"an alignment callable returned {shapes}; it must return the same (B,) for every attribute."
            )
        together = torch.stack([right.cpu() for right in verdicts.values()])
        if together.dtype != torch.bool or together.ndim != 2:
            raise ValueError(
                f"an alignment callable returned {shapes}; it must return (B,) bool tensors."
            )
        for name, right in zip(verdicts, together, strict=True):
            self._right[name] = self._right.get(name, 0) + int(right.sum())
        self._joint += int(together.all(0).sum())
        self._count += together.shape[1]

    def joint(self) -> float | None:
        """The share of pictures with all attributes right, in [0, 1]; None if there are no pictures."""
        return self._joint / self._count if self._count else None

    def by_attribute(self) -> dict[str, float]:
        """The share of pictures with that attribute right, in [0, 1]."""
        return {name: right / self._count for name, right in self._right.items()}
