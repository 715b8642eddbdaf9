"""Fréchet distance between Gaussians fitted to features.

    FD = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2))

(Dowson & Landau 1982; Heusel et al. 2017 on Inception features). Everything is float64. Both roots are taken of
symmetric matrices by `eigh`, so that there is no complex part to drop and no `eps` to add; eigenvalues that
rounding made negative count as 0.

The estimate is biased: for two sets of one distribution its mean is close to `c (1/n_a + 1/n_b)` instead of 0
(Chong & Forsyth 2020). Compare only numbers of equal `n`, and compare them with a floor; `extrapolated_floor`
gives one from two halves of a set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nitrodistill.checks import check_floating


@dataclass(frozen=True)
class GaussianStatistics:
    """Count, mean and scatter of features; statistics of parts add up to those of the whole.

    Attributes:
        count: number of samples.
        mean: `(F,)` float64 on the CPU.
        scatter: `(F, F)` float64, the sum of outer products of deviations from the mean.

    Example:
        >>> a, b = torch.randn(5, 3), torch.randn(7, 3)
        >>> both = GaussianStatistics.of(a) + GaussianStatistics.of(b)
        >>> torch.allclose(both.covariance, torch.cat([a, b]).double().T.cov())
        True
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> GaussianStatistics:
        """The statistics of features `(N, F)`, N >= 1.

        Raises:
            ValueError: if they have another shape, or hold NaN or infinity.
        """
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"features have shape {tuple(features.shape)}; they must be (N, F).")
        wide = finite(features).detach().to("cpu", torch.float64)
        mean = wide.mean(0)
        centred = wide - mean
        return cls(len(wide), mean, centred.T @ centred)

    def __add__(self, other: GaussianStatistics) -> GaussianStatistics:
        """The statistics of both sets together (Chan, Golub & LeVeque 1983)."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"features of {len(self.mean)} and {len(other.mean)} dimensions cannot be pooled; use the "
                "same feature extractor."
            )
        count = self.count + other.count
        step = other.mean - self.mean
        between = torch.outer(step, step) * (self.count * other.count / count)
        mean = self.mean + step * (other.count / count)
        return GaussianStatistics(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """`(F, F)` unbiased covariance.

        Raises:
            ValueError: with fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}.")
        return self.scatter / (self.count - 1)


def finite(values: Tensor, what: str = "features") -> Tensor:
    """The values as they are: a comparison, a sorted list or a byte would hide what is not a number in them.

    Args:
        values: of any shape.
        what: they are, for the message; a plural.

    Raises:
        TypeError: if they are no tensor of floating-point numbers.
        ValueError: if they hold NaN or infinity.
    """
    check_floating(f"the {what}", values)
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"the {what} hold NaN or infinity: what they were computed from has diverged."
        )
    return values


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """The Fréchet distance between Gaussians fitted to two sets of features; 0 for equal sets.

    Raises:
        ValueError: if the features have different dimensions, or a set has fewer than two samples.

    Example:
        >>> known = nd.evaluation.GaussianStatistics.of(torch.randn(50, 4))
        >>> abs(nd.evaluation.frechet_distance(known, known)) < 1e-6
        True
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared; use the same "
            "feature extractor."
        )
    return gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)


def gaussian_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The Fréchet distance of two Gaussians, means `(F,)` and covariances `(F, F)`, in float64.

    Raises:
        ValueError: if they hold NaN or infinity.

    Example:
        >>> mean, covariance = torch.zeros(2).double(), torch.eye(2).double()
        >>> round(nd.evaluation.gaussian_distance(mean, covariance, mean + 1, covariance), 6)
        2.0
    """
    mean_a, cov_a, mean_b, cov_b = (finite(x).double() for x in (mean_a, cov_a, mean_b, cov_b))
    shapes = [tuple(x.shape) for x in (mean_a, cov_a, mean_b, cov_b)]
    if shapes != 2 * [(len(mean_a),), (len(mean_a), len(mean_a))]:
        raise ValueError(f"means, covariances have shapes {shapes}; make them (F,), (F, F).")
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors @ (values.clamp_min(0).sqrt()[:, None] * vectors.T)
    between = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * between
    return float(distance.clamp_min(0))  # rounding; unlike max(), it keeps NaN


def extrapolated_floor(first: GaussianStatistics, second: GaussianStatistics) -> float:
    """What two independent sets, each of `first.count + second.count` samples, would differ by.

    `first` and `second` are halves of one set, of one distribution. Their distance is c (1/n_1 + 1/n_2) in the
    mean, that of two whole sets c (2/n): half of it, for equal halves.

    Example:
        >>> first, second = (nd.evaluation.GaussianStatistics.of(torch.randn(50, 4)) for _ in range(2))
        >>> floor = nd.evaluation.extrapolated_floor(first, second)
    """
    whole = first.count + second.count
    shrink = (2 / whole) / (1 / first.count + 1 / second.count)
    return shrink * frechet_distance(first, second)
