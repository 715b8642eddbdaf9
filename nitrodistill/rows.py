"""Some samples of a batch of pairs: those that get fresh noise, the others, and real latents with wrong prompts.

Which samples get fresh noise is a function of their global numbers, so that it does not depend on how a batch is
cut into micro-batches and processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nitrodistill.method import Draws
from nitrodistill.types import Batch, Condition


def is_chosen(index: Tensor, share: float) -> Tensor:
    """Which samples are among a share of all, `(B,)` bool, a function of their numbers `index` `(B,)` alone.

    Sample n is where floor((n + 1) share) > floor(n share): evenly spread, whatever the batches.
    """
    n = index.double()
    return torch.floor((n + 1) * share + 1e-9) > torch.floor(n * share + 1e-9)


def too_few(count: int, share: float) -> bool:
    """Whether a share of so many samples is less than two on average; 0 are all of them."""
    return count * (share or 1) < 2 - 1e-6


@dataclass(frozen=True)
class Rows:
    """Some samples of a batch of pairs, cut out once.

    Where there are none, the first one stands in and counts nothing, because every process must call the same
    networks.

    Attributes:
        rows: their places in the batch, where the latents are.
        places: the same on the CPU, where the draws and the student's steps are.
        x0: the teacher's latents.
        condition: their prompts.
        draws: their draws.
        expected: how many there are in a batch on average.
        there: whether there are any.
    """

    rows: Tensor
    places: Tensor
    x0: Tensor
    condition: Condition
    draws: Draws
    expected: float
    there: bool

    @classmethod
    def cut(cls, batch: Batch, draws: Draws, chosen: Tensor, share: float) -> Rows:
        """The samples where `chosen` `(B,)`, on average this share of all."""
        assert batch.pairs is not None
        x0, condition, expected = batch.pairs.x0, batch.pairs.condition, len(batch) * share
        there = bool(chosen.any())
        rows = chosen.nonzero().flatten() if there else torch.tensor([0])
        place = rows.to(x0.device)
        if len(rows) == len(batch) and there:
            return cls(place, rows, x0, condition, draws, expected, True)
        mine = draws.take(rows)
        return cls(place, rows, x0[place], condition.index(place), mine, expected, there)

    def mean(self, per_sample: Tensor) -> Tensor:
        """Their part of the mean over many batches."""
        return float(self.there) * per_sample.sum() / self.expected

    def shown(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is logged of them."""
        return {name: part.detach() for name, part in parts.items()} if self.there else {}


class Misaligned:
    """For each chosen sample the real latent of another one, and where that one's prompt differs from its own.

    It is the one before it among those chosen in the whole micro-batch, whichever process has it; the first one's
    is the last. All processes must call it alike. The first call warns where all prompts are one: it alone looks
    at a tensor's values. Prompts without ids are told apart by what the network gets of them.
    """

    def __init__(self) -> None:
        self._looked: bool = False

    def __call__(
        self, batch: Batch, chosen: Rows, fraction: float, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Latents `(b, C, H, W)`, and `(b,)` bool.

        Args:
            batch: the pairs.
            chosen: some of their samples.
            fraction: the share that `is_chosen` chose them by; 0 if they are all.
            draws: of the batch; gathers what other processes hold.

        Raises:
            ValueError: if there are fewer than two samples to choose from on average, or no prompts.
        """
        assert batch.pairs is not None
        if not batch.pairs.condition.tensors:
            raise ValueError(
                "misaligned_negatives shows a real latent with another sample's prompt, and this teacher takes no "
                "prompts; set misaligned_negatives: false."
            )
        index, x0 = draws.gather(batch.index), draws.gather(batch.pairs.x0)
        if too_few(len(index), fraction):
            raise ValueError(
                f"misaligned_negatives shows a real latent with another sample's prompt, and a micro-batch over "
                f"all processes has {len(index)} (fresh_fraction {fraction}); make it large enough for two, or "
                "set misaligned_negatives: false."
            )
        found = is_chosen(index, fraction) if fraction else torch.ones(len(index), dtype=torch.bool)
        rows = found.nonzero().flatten().tolist() or [0]
        before = dict(zip(index[rows].tolist(), [rows[-1], *rows[:-1]], strict=True))
        place = torch.tensor(
            [before.get(n, 0) for n in chosen.draws.index.tolist()], device=x0.device
        )
        marks = _marks(batch.pairs.condition)
        everyones = draws.gather(marks)
        self._look(everyones)
        return x0[place], (marks[chosen.rows] != everyones[place]).reshape(len(place), -1).any(1)

    def _look(self, ids: Tensor) -> None:
        if self._looked or ids.is_meta:
            return
        self._looked = True
        if bool((ids == ids[0]).all()):
            warnings.warn(
                f"misaligned_negatives: all {len(ids)} prompts of the first micro-batch are one, so that no "
                "real latent has a wrong prompt; if the store has no others, set misaligned_negatives: false.",
                RuntimeWarning,
                stacklevel=2,
            )


def _marks(condition: Condition) -> Tensor:
    """`(B, *)`, equal for equal prompts: their ids, or else the sums of their tensors, whatever the padding."""
    if condition.prompt_ids is not None:
        return condition.prompt_ids
    sums = [tensor.float().reshape(len(tensor), -1).sum(1) for tensor in condition.tensors.values()]
    return torch.stack(sums, 1)
