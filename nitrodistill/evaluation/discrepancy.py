"""Maximum mean discrepancy between two sets of features: KID and CMMD.

    MMD^2 = 1 / (n (n - 1)) sum_{i != j} k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)

(Gretton et al. 2012, Lemma 6 and eq. 4: the U-statistic of pairs). It is unbiased, and stays so where x_i and y_i
depend on each other, as those of teacher and student at equal noise do; the more common form, which keeps the
cross terms i = j, does not. Equal sets have exactly 0. A small distance can come out negative.

    cubic     k(x, y) = (x.y / F + 1)^3: KID (Binkowski et al. 2018)
    gaussian  k(x, y) = exp(-|x - y|^2 / (2 10^2)) on unit vectors: CMMD (Jayasumana et al. 2024)

Both are given times 1000, as papers print them.

Sums are kept for single samples alone, so that memory does not grow with n^2; a jackknife needs no more. Its
interval is too wide close to 0, where the statistic degenerates.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from nitrodistill.checks import check_choice
from nitrodistill.evaluation.frechet import finite
from nitrodistill.evaluation.intervals import Interval, jackknife_deviation, t_interval

Kernel = Literal["cubic", "gaussian"]
BLOCK = 512  # samples whose pairs are in memory at a time, with as many others
CMMD_SIGMA, SCALE = 10.0, 1000.0


class KernelDistance:
    """1000 times the MMD^2 of two sets `(n, F)`, n >= 2, of one size.

    Args:
        first: features x.
        second: features y; where x_i and y_i belong together, they have the same i.
        kernel: "cubic" (KID) or "gaussian" (CMMD).

    Raises:
        ValueError: if the sets have different shapes, fewer than two samples, NaN or infinity, or there is no such
            kernel.

    Example:
        >>> features = torch.randn(40, 8)
        >>> distance = nd.evaluation.KernelDistance(features, features + 1)
    """

    def __init__(self, first: Tensor, second: Tensor, kernel: Kernel = "cubic") -> None:
        check_choice("kernel", kernel, get_args(Kernel))
        if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
            raise ValueError(
                f"features have shapes {tuple(first.shape)} and {tuple(second.shape)}; a kernel distance "
                "needs two sets (n, F) of equal shape with n >= 2, of the same feature extractor."
            )
        x, y = (_prepared(features, kernel) for features in (first, second))
        sums = torch.zeros(len(x), dtype=torch.float64)
        blocks = torch.arange(len(x)).split(BLOCK)
        for g, a in enumerate(blocks):
            for b in blocks[: g + 1]:
                terms = _terms(x, y, a, b, kernel)
                sums[a] += terms.sum(1)
                if b is not blocks[g]:
                    sums[b] += terms.sum(0)
        self._sums = sums

    def value(self) -> float:
        """The estimate."""
        n = len(self._sums)
        return float(self._sums.sum()) / (n * (n - 1))

    def interval(self) -> Interval | None:
        """Its interval, from a jackknife; None for fewer than three samples."""
        n, sums = len(self._sums), self._sums
        if n < 3:
            return None
        without = (sums.sum() - 2 * sums) / ((n - 1) * (n - 2))
        return t_interval(self.value(), jackknife_deviation(without), n - 1)


def _prepared(features: Tensor, kernel: Kernel) -> Tensor:
    wide = finite(features).detach().to("cpu", torch.float64)
    return torch.nn.functional.normalize(wide, dim=1) if kernel == "gaussian" else wide


def _terms(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, kernel: Kernel) -> Tensor:
    """The sum's terms i in `rows`, j in `columns`; 0 where i = j."""
    a, b, c, d = x[rows], y[rows], x[columns], y[columns]
    terms = (
        _kernel(a, c, kernel)
        + _kernel(b, d, kernel)
        - _kernel(a, d, kernel)
        - _kernel(b, c, kernel)
    )
    terms = terms.masked_fill(rows[:, None] == columns, 0)
    return SCALE * terms


def _kernel(a: Tensor, b: Tensor, kernel: Kernel) -> Tensor:
    product = a @ b.T
    if kernel == "cubic":
        return (product / a.shape[1] + 1) ** 3
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * product
    return torch.exp(-squares / (2 * CMMD_SIGMA**2))
