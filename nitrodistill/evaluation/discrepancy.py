"""Maximum mean discrepancy between two sets of features: KID and CMMD.

    MMD^2 = 1 / (n (n - 1)) sum_{i != j} k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)

(Gretton et al. 2012, Lemma 6 and eq. 4: the U-statistic of pairs). It is unbiased, and stays so where x_i and y_i
depend on each other, as those of teacher and student at equal noise do; the more common form, which keeps the
cross terms i = j, does not. Equal sets have exactly 0. A small distance can come out negative.

    cubic     k(x, y) = (x.y / F + 1)^3: KID (Binkowski et al. 2018)
    gaussian  k(x, y) = exp(-|x - y|^2 / (2 10^2)) on unit vectors, and the result times 1000: CMMD
              (Jayasumana et al. 2024)

Sums are kept for blocks of samples alone, so that memory does not grow with n^2, and a bootstrap over blocks costs
nothing. Its interval is too wide close to 0, where the statistic degenerates.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from nitrodistill.evaluation.resampling import Interval, Resampler, normal_interval

__all__ = ["Kernel", "KernelDistance"]

Kernel = Literal["cubic", "gaussian"]
MAX_BLOCKS, MIN_BLOCKS = 50, 3
BLOCK = 8  # samples in a block of a small set
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


class KernelDistance:
    """The MMD^2 of two sets `(n, F)`, n >= 2, of one size.

    Args:
        first: features x.
        second: features y; where x_i and y_i belong together, they have the same i.
        kernel: "cubic" (KID) or "gaussian" (CMMD).

    Raises:
        ValueError: if the sets have different shapes, fewer than two samples, or there is no such kernel.
    """

    def __init__(self, first: Tensor, second: Tensor, kernel: Kernel = "cubic") -> None:
        if kernel not in get_args(Kernel):
            raise ValueError(
                f"kernel is {kernel!r}; it must be one of {', '.join(get_args(Kernel))}."
            )
        if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
            raise ValueError(
                f"features have shapes {tuple(first.shape)} and {tuple(second.shape)}; a kernel distance "
                "needs two sets (n, F) of equal shape with n >= 2, of the same feature extractor."
            )
        x, y = (_prepared(features, kernel) for features in (first, second))
        rows = torch.arange(len(x)).tensor_split(
            min(MAX_BLOCKS, max(MIN_BLOCKS, len(x) // BLOCK), len(x))
        )
        sums = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for g, a in enumerate(rows):
            for h in range(g + 1):
                sums[g, h] = sums[h, g] = _block(x, y, a, rows[h], kernel)
        sizes = torch.tensor([len(block) for block in rows], dtype=torch.float64)
        self._sums = sums
        self._pairs = torch.outer(sizes, sizes) - torch.diag(sizes)

    def value(self) -> float:
        """The estimate."""
        return float(self._sums.sum() / self._pairs.sum())

    def interval(self, resampler: Resampler) -> Interval | None:
        """Its interval, from a bootstrap over blocks that never pairs a sample with itself.

        None for fewer than three samples.
        """
        if len(self._sums) < MIN_BLOCKS:
            return None
        found = resampler.statistic(len(self._sums), self._replicate)
        return normal_interval(self.value(), found[found.isfinite()])

    def _replicate(self, counts: Tensor) -> float:
        pairs = counts @ self._pairs @ counts
        return float(counts @ self._sums @ counts / pairs)


def _prepared(features: Tensor, kernel: Kernel) -> Tensor:
    wide = features.detach().to("cpu", torch.float64)
    return torch.nn.functional.normalize(wide, dim=1) if kernel == "gaussian" else wide


def _block(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, kernel: Kernel) -> float:
    a, b, c, d = x[rows], y[rows], x[columns], y[columns]
    terms = (
        _kernel(a, c, kernel)
        + _kernel(b, d, kernel)
        - _kernel(a, d, kernel)
        - _kernel(b, c, kernel)
    )
    total = terms.sum()
    if int(rows[0]) == int(columns[0]):
        total = total - terms.diagonal().sum()
    return float(total) * (CMMD_SCALE if kernel == "gaussian" else 1.0)


def _kernel(a: Tensor, b: Tensor, kernel: Kernel) -> Tensor:
    product = a @ b.T
    if kernel == "cubic":
        return (product / a.shape[1] + 1) ** 3
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * product
    return torch.exp(-squares / (2 * CMMD_SIGMA**2))
