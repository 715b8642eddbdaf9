"""95% intervals: where a number would lie in 95 of 100 evaluations with other samples of the same kind.

    mean       m - s g(-+t) / sqrt(n), with Student's t on n - 1 degrees of freedom and Hall's transformation g,
               which takes the skewness of the data out (Hall 1992, https://doi.org/10.1111/j.2517-6161.1992.tb01873.x)
    share      Agresti & Coull 1998, which knows that 24 of 24 is not 100%
    jackknife  v -+ t s, s^2 = (n - 1) / n sum (d_i - mean d)^2, where d_i is what leaving out sample i changes
               (Efron & Stein 1981: on average not too small); of a ratio of means, its logarithm's
    bootstrap  n of the n samples with replacement (Efron 1979), the same ones in every model, as sample i has the
               same prompt and the same noise in all of them: what teacher and student have in common cancels

A Fréchet distance gets v -+ t deviations of its bootstrap's replicates, not their percentiles: a replicate holds
samples twice, which adds what halving n would add, so that its percentiles can miss the number they belong to.
What depends on the number of samples, as a Fréchet distance does, has an interval for what it is at that number.
How often they hold what they promise is measured by `benchmarks/interval_coverage.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Interval = tuple[float, float]
TAIL = 0.025
NORMAL = 1.959963984540054  # quantile of the normal distribution for that tail
MOST_DECADES = 20  # in an interval of a ratio: a wider one says nothing


@dataclass(frozen=True)
class Resampler:
    """Draws replicates.

    Attributes:
        replicates: how many, at least 2.
        seed: equal seeds and sizes give equal replicates.
    """

    replicates: int = 200
    seed: int = 0

    def rows(self, size: int, replicates: int | None = None) -> Iterator[Tensor]:
        """Which of `size` samples are in a replicate: `(size,)` int64, for each replicate."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(replicates or self.replicates):
            yield torch.randint(size, (size,), generator=generator)

    def counts(self, size: int, replicates: int | None = None) -> Iterator[Tensor]:
        """How often each of them is in it: `(size,)` float64, for each replicate."""
        for rows in self.rows(size, replicates):
            yield torch.bincount(rows, minlength=size).double()


def t_quantile(freedom: float) -> float:
    """The 97.5th percentile of Student's t; within 1% for 2 degrees of freedom, 0.02% for 5.

    The expansion of Abramowitz & Stegun 26.7.5.
    """
    z = NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (k + 1) for k, term in enumerate(terms))


def t_interval(value: float, deviation: float, freedom: float) -> Interval:
    """`value` -+ t standard deviations."""
    half = t_quantile(freedom) * deviation
    return value - half, value + half


def mean_interval(values: Tensor) -> Interval | None:
    """The interval of the mean of `(n,)` values; None for fewer than two."""
    n, wide = len(values), values.double()
    if n < 2:
        return None
    mean = float(wide.mean())
    error = float(wide.std()) / math.sqrt(n)
    if error == 0:
        return mean, mean
    centred = wide - mean
    skewness = float(centred.pow(3).mean() / centred.square().mean() ** 1.5) / math.sqrt(n)
    t = t_quantile(n - 1)
    return mean - error * _unskewed(t, skewness), mean - error * _unskewed(-t, skewness)


def _unskewed(t: float, skewness: float) -> float:
    """The inverse of Hall's T + a T^2 / 3 + a^2 T^3 / 27 + a / 6, where a is skewness / sqrt(n)."""
    if abs(skewness) < 1e-6:
        return t
    inside = 1 + skewness * (t - skewness / 6)
    return 3 / skewness * (math.copysign(abs(inside) ** (1 / 3), inside) - 1)


def ratio_interval(a: Tensor, b: Tensor) -> Interval | None:
    """The interval of mean(a) / mean(b), not negative and mean(b) > 0, from a jackknife of its logarithm.

    None for fewer than two samples, or where a single one carries it all.

    Args:
        a: `(n,)`.
        b: `(n,)`, where a_i and b_i belong together; or of another length, and independent.
    """
    fewest = min(len(a), len(b))
    if fewest < 2:
        return None
    first, second = (x.double().sum() - x for x in (a, b))  # without sample i
    sets = [first / second] if len(a) == len(b) else [first, second]
    half = t_quantile(fewest - 1) * math.hypot(*(jackknife_deviation(x.log()) for x in sets))
    ratio = float(a.double().mean() / b.double().mean())
    if ratio == 0:
        return 0.0, 0.0
    if not half < MOST_DECADES * math.log(10):
        return None
    return ratio * math.exp(-half), ratio * math.exp(half)


def share_interval(share: float, count: int) -> Interval:
    """The interval of a share of `count` samples."""
    n = count + NORMAL**2
    middle = (share * count + NORMAL**2 / 2) / n
    half = NORMAL * math.sqrt(middle * (1 - middle) / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def jackknife_deviation(changes: Tensor) -> float:
    """The standard deviation of a number of which leaving out sample i changes `(n,)` changes."""
    return math.sqrt((len(changes) - 1) * float(changes.double().var(correction=0)))


def percentile_interval(replicates: Tensor) -> Interval:
    """The 2.5th and the 97.5th percentile of `(B,)` replicates."""
    tails = torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)
    low, high = replicates.double().quantile(tails).tolist()
    return low, high
