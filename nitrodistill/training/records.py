"""What the losses of a step were: their means for the log, and the names of what is not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nitrodistill.types import Terms

__all__ = ["Record", "all_finite", "mean_parts", "non_finite"]


@dataclass(frozen=True)
class Record:
    """What one role's loss was in one micro-batch."""

    role: str
    terms: Terms
    index: Tensor = field(repr=False)

    def parts(self) -> dict[str, Tensor]:
        return {"total": self.terms.total, **self.terms.parts}


def mean_parts(records: list[Record]) -> dict[str, Tensor]:
    sums: dict[str, list[Tensor]] = {}
    for record in records:
        for name, value in record.parts().items():
            sums.setdefault(f"{record.role}/{name}", []).append(value.float().mean())
    return {name: sum(values[1:], values[0]) / len(values) for name, values in sums.items()}


def non_finite(step: int, records: list[Record], norms: Mapping[str, Tensor]) -> str:
    """Names what is not finite, or returns an empty string; waits for the device once."""
    numbers = [record.terms.total for record in records] + list(norms.values())
    if not numbers or bool(torch.stack([n.float() for n in numbers]).isfinite().all()):
        return ""
    causes = [cause for record in records for cause in _causes(record)]
    causes = causes or [f"{n}'s gradient" for n, norm in norms.items() if not norm.isfinite()]
    return f"step {step + 1}: not finite: {'; '.join(dict.fromkeys(causes))}"


def _causes(record: Record) -> Iterator[str]:
    for name, value in record.parts().items():
        bad = (~value.isfinite()).cpu()
        if bad.any():
            known = bad.ndim == 1 and len(bad) == len(record.index)
            where = f" (samples {record.index[bad].tolist()})" if known else ""
            yield f"{record.role}/{name}{where}"


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no element is NaN or infinite; waits for the device once."""
    return bool(torch.stack([value.isfinite().all() for value in tensors.values()]).all())
