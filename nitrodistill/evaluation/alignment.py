"""Alignment: how often a picture shows what its prompt says, read by an oracle.

An oracle is any callable `(images (B, 3, H, W) in [-1, 1], B prompts) -> attribute -> (B,) bool`: right or wrong
for each attribute that it reads. A picture is aligned when all its attributes are right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Alignment = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]
"""`(images, prompts) -> attribute name -> (B,) bool`."""


def check_verdicts(verdicts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An oracle's verdicts as columns: "alignment" for all attributes together, "alignment@NAME" for each.

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
    by_name = {f"alignment@{name}": row for name, row in zip(verdicts, together, strict=True)}
    return {"alignment": together.all(0), **by_name}
