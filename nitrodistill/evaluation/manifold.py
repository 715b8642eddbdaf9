"""Precision, recall, density and coverage: does the student leave the reference's manifold, does it fill it?

A set's manifold is the union of balls around its samples; a ball's radius is the distance to the k-th nearest
sample of the same set (k = 5).

    precision  share of pictures in some ball of the reference    (Kynkaanniemi et al. 2019)
    recall     share of the reference in some ball of the pictures
    density    mean number of the reference's balls that a picture is in, over k    (Naeem et al. 2020)
    coverage   share of the reference's balls with a picture in them

Precision and density fall when pictures are wrong, recall and coverage when kinds of pictures are missing. All
four depend on the number of samples: for two sets of one distribution coverage is near 1 - 2^-k, density near 1,
and precision and recall are below 1.

Intervals come from a jackknife over both sets. Without picture j of the set that the balls are of, ball j is gone
and the balls that had j among their k nearest reach to the next one; all else stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nitrodistill.evaluation.frechet import finite
from nitrodistill.evaluation.intervals import (
    Interval,
    jackknife_deviation,
    share_interval,
    t_interval,
)

NUM_NEIGHBOURS = 5
MIN_SAMPLES = NUM_NEIGHBOURS + 2
BLOCK = 512


@dataclass(frozen=True)
class ManifoldScore:
    """A score, and what leaving out a sample changes of it.

    Attributes:
        value: the score.
        pictures: the change without each picture, `(n,)` float64.
        reference: the change without each sample of the reference, `(m,)` float64.
        is_share: whether it is a share of samples, in [0, 1].
    """

    value: float
    pictures: Tensor
    reference: Tensor
    is_share: bool = True

    def interval(self) -> Interval:
        """The jackknife's interval; of a share no narrower than that of independent samples.

        From sets of one size samples are left out in pairs: teacher and student share noise and prompt.
        """
        fewest = min(len(self.pictures), len(self.reference))
        if len(self.pictures) == len(self.reference):
            deviation = jackknife_deviation(self.pictures + self.reference)
        else:
            changes = self.pictures, self.reference
            deviation = math.hypot(*(jackknife_deviation(x) for x in changes))
        low, high = t_interval(self.value, deviation, fewest - 1)
        if not self.is_share:
            return max(low, 0.0), high
        least, most = share_interval(self.value, fewest)
        return max(min(low, least), 0.0), min(max(high, most), 1.0)


def manifold_scores(
    pictures: Tensor, reference: Tensor, neighbours: int = NUM_NEIGHBOURS
) -> dict[str, ManifoldScore]:
    """ "precision", "recall", "density" and "coverage" of features `(n, F)` against a reference `(m, F)`.

    Args:
        pictures: at least `neighbours` + 2 of them.
        reference: as many, or another number.
        neighbours: k.

    Raises:
        ValueError: if there are too few samples, they have different dimensions, or hold NaN or infinity.

    Example:
        >>> pictures = torch.randn(40, 4)
        >>> sorted(nd.evaluation.manifold_scores(pictures, pictures))
        ['coverage', 'density', 'precision', 'recall']
    """
    if pictures.ndim != 2 or pictures.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"features have shapes {tuple(pictures.shape)} and {tuple(reference.shape)}; they must be "
            "(n, F) and (m, F) of the same feature extractor."
        )
    fewest = min(len(pictures), len(reference))
    if neighbours < 1 or fewest < neighbours + 2:
        raise ValueError(
            f"there are {fewest} samples and {neighbours} neighbours; 1 or more neighbours need 2 samples more."
        )
    x, y = (
        finite(features).detach().to("cpu", torch.float32) for features in (pictures, reference)
    )
    distances = _distances(x, y)
    found = _scores(distances, y, neighbours)
    recall = _scores(distances.T, x, neighbours)["precision"]
    found["recall"] = ManifoldScore(recall.value, recall.reference, recall.pictures)
    return {name: found[name] for name in ("precision", "recall", "density", "coverage")}


def _scores(distances: Tensor, centres: Tensor, k: int) -> dict[str, ManifoldScore]:
    """The scores of points `(n, m)` away from the centres of balls."""
    (n, m), (radii, wider, nearest) = distances.shape, _radii(centres, k)
    hits = distances <= radii
    gains = (distances <= wider) & ~hits
    around, within = hits.sum(1).double(), hits.sum(0)
    inside, covered = (around > 0).double(), (within > 0).double()
    precision, density, coverage = (float(x.mean()) for x in (inside, around / k, covered))

    still_inside, still_around = torch.zeros(2, m, dtype=torch.float64)
    for rows in torch.arange(n).split(BLOCK):
        without = around[rows, None] - hits[rows].double()  # balls around a point, without centre j
        for neighbour in nearest.T:
            without.index_add_(1, neighbour, gains[rows].double())
        still_inside += (without > 0).sum(0)
        still_around += without.sum(0)
    won = torch.zeros(m, dtype=torch.float64)  # balls that hold a point when they have grown
    for neighbour in nearest.T:
        won.index_add_(0, neighbour, gains.any(0).double() * (1 - covered))
    alone = (hits & (within == 1)).sum(1).double()  # balls whose one point this is
    return {
        "precision": ManifoldScore(
            precision, (precision - inside) / (n - 1), still_inside / n - precision
        ),
        "density": ManifoldScore(
            density, (density - around / k) / (n - 1), still_around / (n * k) - density, False
        ),
        "coverage": ManifoldScore(
            coverage, -alone / m, (covered.sum() - covered + won) / (m - 1) - coverage
        ),
    }


def _radii(features: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The distances to the k-th and to the next sample, each `(m,)`, and the k nearest samples `(m, k)`."""
    parts = [
        _distances(features[rows], features).topk(k + 2, dim=1, largest=False)
        for rows in torch.arange(len(features)).split(BLOCK)
    ]
    values = torch.cat([part.values for part in parts])
    indices = torch.cat([part.indices for part in parts])
    return values[:, k], values[:, k + 1], indices[:, 1 : k + 1]


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
