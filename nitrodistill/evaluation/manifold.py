"""Precision, recall, density and coverage: does the student leave the reference's manifold, does it fill it?

A set's manifold is the union of balls around its samples; a ball's radius is the distance to the k-th nearest
sample of the same set (k = 5).

    precision  share of pictures in some ball of the reference    (Kynkaanniemi et al. 2019)
    recall     share of the reference in some ball of the pictures
    density    mean number of the reference's balls that a picture is in, over k    (Naeem et al. 2020)
    coverage   share of the reference's balls with a picture in them

Precision and density fall when pictures are wrong, recall and coverage when kinds of pictures are missing. All
four depend on the number of samples: for two sets of one distribution coverage is near 1 - 2^-k, density near 1,
and precision and recall are below 1. Distances are computed a block of rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NUM_NEIGHBOURS", "ManifoldScores", "manifold_scores"]

NUM_NEIGHBOURS = 5
BLOCK = 512


@dataclass(frozen=True)
class ManifoldScores:
    """What each sample contributes; the mean of each is the score.

    Attributes:
        precision: `(n,)` whether a picture is in a ball of the reference, float64.
        recall: `(m,)` whether a sample of the reference is in a ball of the pictures.
        density: `(n,)` the reference's balls around a picture, over k.
        coverage: `(m,)` whether a sample of the reference has a picture in its ball.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def manifold_scores(
    pictures: Tensor, reference: Tensor, neighbours: int = NUM_NEIGHBOURS
) -> ManifoldScores:
    """The scores of features `(n, F)` against a reference `(m, F)`, both more than `neighbours` samples.

    Raises:
        ValueError: if there are too few samples, or they have different dimensions.
    """
    if pictures.ndim != 2 or pictures.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"features have shapes {tuple(pictures.shape)} and {tuple(reference.shape)}; they must be "
            "(n, F) and (m, F) of the same feature extractor."
        )
    fewest = min(len(pictures), len(reference))
    if fewest <= neighbours:
        raise ValueError(
            f"there are {fewest} samples; {neighbours} neighbours need at least {neighbours + 1}."
        )
    x, y = (features.detach().to("cpu", torch.float32) for features in (pictures, reference))
    mine, theirs = _radii(x, neighbours), _radii(y, neighbours)
    inside = torch.zeros(len(x), dtype=torch.float64)
    recall = torch.zeros(len(y), dtype=torch.bool)
    covered = torch.zeros(len(y), dtype=torch.bool)
    for rows in torch.arange(len(x)).split(BLOCK):
        distances = _distances(x[rows], y)
        hits = distances <= theirs
        inside[rows] = hits.sum(1).double()
        covered |= hits.any(0)
        recall |= (distances <= mine[rows, None]).any(0)
    return ManifoldScores(
        (inside > 0).double(), recall.double(), inside / neighbours, covered.double()
    )


def _radii(features: Tensor, neighbours: int) -> Tensor:
    parts = [
        _distances(features[rows], features).kthvalue(neighbours + 1, dim=1).values
        for rows in torch.arange(len(features)).split(BLOCK)
    ]
    return torch.cat(parts)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
