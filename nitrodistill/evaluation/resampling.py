"""Bootstrap intervals: what a number would be with other samples of the same kind (Efron 1979).

Each replicate draws n of the n samples with replacement, the same ones in every arm, as sample i has the same
prompt and the same noise in all of them: what teacher and student have in common cancels.

Means, and what follows from means, get the 2.5th and 97.5th percentile of the replicates. Distances between
distributions do not: a replicate holds samples twice, which adds to a Fréchet distance what halving n would add,
so that its percentiles can miss the very number they belong to. They get value -+ 1.96 standard deviations of the
replicates. What is not negative is cut off at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Interval", "Resampler", "normal_interval", "percentile_interval"]

Interval = tuple[float, float]
TAIL = 0.025
DEVIATIONS = 1.96  # of a normal distribution, for the same tail


@dataclass(frozen=True)
class Resampler:
    """Draws replicates.

    Attributes:
        replicates: how many, at least 2.
        seed: equal seeds and sizes give equal replicates.
    """

    replicates: int = 200
    seed: int = 0

    def counts(self, size: int, replicates: int | None = None) -> Iterator[Tensor]:
        """How often each of `size` samples is in a replicate: `(size,)` float64, for each replicate."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(replicates or self.replicates):
            drawn = torch.randint(size, (size,), generator=generator)
            yield torch.bincount(drawn, minlength=size).double()

    def means(self, values: Tensor) -> Tensor:
        """The means of columns `(N, K)` in each replicate, `(replicates, K)` float64."""
        wide = values.double()
        return torch.stack([counts @ wide for counts in self.counts(len(wide))]) / len(wide)

    def statistic(self, size: int, of: Callable[[Tensor], float]) -> Tensor:
        """`of(counts)` in each replicate, `(replicates,)` float64; `counts` is `(size,)` float64."""
        return torch.tensor([of(counts) for counts in self.counts(size)], dtype=torch.float64)


def percentile_interval(replicates: Tensor) -> Interval:
    """The 2.5th and the 97.5th percentile of `(B,)` replicates."""
    tails = torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)
    low, high = replicates.double().quantile(tails).tolist()
    return low, high


def normal_interval(
    value: float, replicates: Tensor, shrink: float = 1.0, least: float = -float("inf")
) -> Interval:
    """`value` -+ 1.96 standard deviations of `(B,)` replicates.

    Args:
        value: the number.
        replicates: of that number, or of the same on fewer samples.
        shrink: factor on the deviation: sqrt(n' / n) if the replicates are of n' < n samples.
        least: the lower end is not below it.
    """
    deviation = DEVIATIONS * shrink * float(replicates.double().std())
    return max(least, value - deviation), value + deviation
