"""What the losses of a step were: their means for the log, and the names of what is not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nitrodistill.types import Batch, Condition, Pairs, Terms


@dataclass(frozen=True)
class Record:
    """What one role's loss was in one micro-batch."""

    role: str
    terms: Terms
    batch: Batch = field(repr=False)
    shares: Mapping[str, Tensor] = field(default_factory=dict)

    def parts(self) -> dict[str, Tensor]:
        shares = {f"gradient_share.{name}": share for name, share in self.shares.items()}
        return {"total": self.terms.total, **self.terms.parts, **shares}


def gradient_shares(terms: Terms, weights: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Each weighted term's |gradient| of the weights over the sum of all terms', in this process.

    A backward pass each, which must come before that of the total.
    """
    norms = {}
    for name, term in terms.weighted.items():
        gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        known = [g.float().norm() for g in gradients if g is not None]
        norms[name] = torch.stack(known).norm() if known else term.new_zeros(())
    together = sum(norms.values(), terms.total.new_zeros(()))
    return {name: norm / together for name, norm in norms.items()}


def mean_parts(records: list[Record]) -> dict[str, Tensor]:
    """ "role/term" -> mean over the samples, or over the micro-batches where a term is one number for all."""
    values: dict[str, list[Tensor]] = {}
    for record in records:
        for name, value in record.parts().items():
            values.setdefault(f"{record.role}/{name}", []).append(value.float().flatten())
    return {name: torch.cat(found).mean() for name, found in values.items()}


def non_finite(records: list[Record], norms: Mapping[str, Tensor]) -> Tensor:
    """Whether a loss or a gradient's norm is not finite; a scalar on the device."""
    numbers = [record.terms.total for record in records] + list(norms.values())
    if not numbers:
        return torch.tensor(False)
    return ~torch.stack([n.float() for n in numbers]).isfinite().all()


def causes(records: list[Record], norms: Mapping[str, Tensor]) -> list[str]:
    """Names the terms and samples that are not finite, or the gradients if all terms are.

    Where a term has a value for some of the samples only, those of the micro-batch are named; data that is not
    finite itself is named too.
    """
    found = [
        cause for record in records for cause in (*_bad_terms(record), *_bad_data(record.batch))
    ]
    found = found or [f"{n}'s gradient" for n, norm in norms.items() if not norm.isfinite()]
    return list(dict.fromkeys(found))


def _bad_terms(record: Record) -> Iterator[str]:
    index = record.batch.index
    for name, value in record.parts().items():
        bad = (~value.isfinite()).cpu()
        if bad.any():
            where = ""
            if bad.ndim == 1:
                of_all = len(bad) == len(index)
                where = f" ({'' if of_all else 'among '}samples {index[bad if of_all else ...].tolist()})"
            yield f"{record.role}/{name}{where}"


def _bad_data(batch: Batch) -> Iterator[str]:
    for name, value in _data(batch):
        if value.is_floating_point():
            bad = (~value.isfinite()).flatten(1).any(1).cpu()
            if bad.any():
                yield f"the data's {name} (samples {batch.index[bad].tolist()})"


def _data(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    for part, held in batch.parts().items():
        if isinstance(held, Condition):
            yield from held.tensors.items()
            continue
        yield f"{part}.x0", held.x0
        if isinstance(held, Pairs):
            yield f"{part}.noise", held.noise
        yield from held.condition.tensors.items()
