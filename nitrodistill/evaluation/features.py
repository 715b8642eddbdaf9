"""Features of pictures: what extracts them, and what is kept of them.

Of each half of a set the Gaussian statistics are streamed, which is all that a Fréchet distance needs; the first
`MAX_KEPT` features themselves are kept for intervals, kernel distances and manifolds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import get_args

import torch
from torch import Tensor

from nitrodistill.checks import check_choice
from nitrodistill.evaluation.discrepancy import Kernel
from nitrodistill.evaluation.frechet import (
    GaussianStatistics,
    extrapolated_floor,
    finite,
    frechet_distance,
    gaussian_distance,
)

Features = Callable[[Tensor], Tensor]
"""Images `(B, 3, H, W)` in [-1, 1] -> `(B, F)`."""

MAX_KEPT = 5000
MAX_RESAMPLED = 2000  # of the kept ones, for a Fréchet distance's interval


@dataclass(frozen=True)
class Extractor:
    """A feature extractor with a name.

    Attributes:
        name: what results call it; no "@".
        features: images `(B, 3, H, W)` in [-1, 1] -> `(B, F)`.
        kernel: of the kernel distance on it: "cubic" for KID, "gaussian" for CMMD; None leaves it out. KID's cube
            has no scale of its own: it says little of features that are not of order 1, as Inception's are.
        fingerprint: of its weights, for caches; None keeps nothing that depends on it.

    Example:
        >>> nd.evaluation.Extractor("pixels", lambda images: images.flatten(1)).name
        'pixels'
    """

    name: str
    features: Features
    kernel: Kernel | None = "cubic"
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.kernel is not None:
            check_choice("kernel", self.kernel, get_args(Kernel))
        if not self.name or "@" in self.name or not self.name.isprintable():
            raise ValueError(
                f"name is {self.name!r}; an extractor's name is not empty, printable and has no '@'."
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Features `(B, F)`.

        Raises:
            ValueError: if it returns anything else, or the images hold NaN or infinity.
        """
        found = self.features(finite(images, "pictures"))
        if found.ndim != 2 or len(found) != len(images):
            raise ValueError(
                f"the feature extractor {self.name!r} made {tuple(found.shape)} of {len(images)} pictures; it "
                f"must return ({len(images)}, F): flatten or average over positions first."
            )
        return found


def named_extractors(given: Features | Extractor | Sequence[Extractor]) -> tuple[Extractor, ...]:
    """Extractors with distinct names, at least one; a bare callable is called "features"."""
    if isinstance(given, Extractor):
        return (given,)
    if callable(given):
        return (Extractor("features", given),)
    names = [extractor.name for extractor in given]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"the feature extractors are {names}; give at least one, each with another name."
        )
    return tuple(given)


class FeatureSet:
    """The features of one set of pictures, in two halves.

    Args:
        name: of the extractor, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._halves: list[list[GaussianStatistics]] = [[], []]
        # one piece of memory from the start: a tensor a batch would pin what lies between batches
        self._room = torch.empty(0, 0)
        self._places = torch.empty(MAX_KEPT, dtype=torch.int64)
        self._num_kept = 0

    def update(self, features: Tensor, places: Tensor) -> None:
        """Adds features `(B, F)` at `places` `(B,)`, see `SamplePlan`.

        Raises:
            ValueError: if F is not that of earlier ones, or the features hold NaN or infinity.
        """
        known = next((half[0] for half in self._halves if half), None)
        if known is not None and features.shape[1:] != known.mean.shape:
            raise ValueError(
                f"the feature extractor {self._name!r} made {tuple(features.shape[1:])} numbers of a picture "
                f"after {tuple(known.mean.shape)} of earlier ones; F must not change."
            )
        for number, half in enumerate(self._halves):
            rows = places % 2 == number
            if bool(rows.any()):
                part = GaussianStatistics.of(features[rows.to(features.device)])
                half[:] = [half[0] + part] if half else [part]
        wanted = MAX_KEPT - self._num_kept
        if wanted > 0:
            self._keep(features[:wanted].detach().to("cpu", torch.float32), places[:wanted].cpu())

    def _keep(self, features: Tensor, places: Tensor) -> None:
        if not self._num_kept:
            self._room = torch.empty(MAX_KEPT, features.shape[1], dtype=torch.float32)
        rows = slice(self._num_kept, self._num_kept + len(features))
        self._room[rows], self._places[rows] = features, places
        self._num_kept = rows.stop

    @property
    def count(self) -> int:
        """How many features there are."""
        return sum(half[0].count for half in self._halves if half)

    def whole(self) -> GaussianStatistics:
        """The statistics of all samples."""
        return reduce(add, [part for half in self._halves for part in half])

    def kept(self) -> Tensor:
        """The first features, `(K, F)` float32."""
        return self._room[: self._num_kept]

    def halves(self) -> tuple[Tensor, Tensor]:
        """Those of the kept features that have a partner in the other half; row i of both has one prompt."""
        places = self._places[: self._num_kept]
        order = places.argsort()
        pairs = places[order] // 2
        first = order[:-1][pairs[:-1] == pairs[1:]]
        second = order[1:][pairs[:-1] == pairs[1:]]
        kept = self.kept()
        return kept[first], kept[second]

    def distance(self, other: FeatureSet) -> float:
        """The Fréchet distance to another set."""
        return frechet_distance(self.whole(), other.whole())

    def floor(self) -> float | None:
        """The distance to another set of this size and distribution; None with halves of one sample."""
        if not all(half and half[0].count > 1 for half in self._halves):
            return None
        return extrapolated_floor(self._halves[0][0], self._halves[1][0])

    def state(self) -> dict[str, Tensor]:
        """What `from_state` needs, as tensors."""
        found = {"kept": self.kept(), "places": self._places[: self._num_kept]}
        for number, half in enumerate(self._halves):
            for part in half:
                found[f"{number}.count"] = torch.tensor(part.count)
                found[f"{number}.mean"] = part.mean
                found[f"{number}.scatter"] = part.scatter
        return found

    @classmethod
    def from_state(cls, name: str, state: dict[str, Tensor]) -> FeatureSet:
        """The set that `state` was made of."""
        found = cls(name)
        found._keep(state["kept"], state["places"])
        for number, half in enumerate(found._halves):
            if f"{number}.count" in state:
                parts = (state[f"{number}.{part}"] for part in ("mean", "scatter"))
                half.append(GaussianStatistics(int(state[f"{number}.count"]), *parts))
        return found


def frechet_replicates(
    mine: FeatureSet, other: FeatureSet, draws: Callable[[int, int], Sequence[Tensor]]
) -> tuple[Tensor, float]:
    """Bootstrap replicates of a Fréchet distance, on the first 2000 samples at most.

    Args:
        mine: a set.
        other: another.
        draws: `(samples, replicates) -> counts (samples,)` for each replicate.

    Returns:
        Replicates `(B,)`, and sqrt(samples used / samples): the factor on their deviation.
    """
    a, b = mine.kept()[:MAX_RESAMPLED].double(), other.kept()[:MAX_RESAMPLED].double()
    replicates = min(50, max(10, 4000 // a.shape[1]))  # each takes eigenvalue problems of size F
    distance = _small_distance if max(len(a), len(b)) < a.shape[1] else _large_distance
    found = [
        distance(a, first, b, second)
        for first, second in zip(draws(len(a), replicates), draws(len(b), replicates), strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64), math.sqrt(len(a) / mine.count)


def _large_distance(a: Tensor, first: Tensor, b: Tensor, second: Tensor) -> float:
    return gaussian_distance(*_weighted(a, first), *_weighted(b, second))


def _small_distance(a: Tensor, first: Tensor, b: Tensor, second: Tensor) -> float:
    """For fewer samples than features: tr (C_a^(1/2) C_b C_a^(1/2))^(1/2) = |A B^T|_*, where C_a = A^T A."""
    roots, means = [], []
    for features, counts in ((a, first), (b, second)):
        mean = counts @ features / counts.sum()
        roots.append((counts / (counts.sum() - 1)).sqrt()[:, None] * (features - mean))
        means.append(mean)
    between = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = sum(root.square().sum() for root in roots)
    return float((means[0] - means[1]).square().sum() + spread - 2 * between)


def _weighted(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    total = counts.sum()
    mean = counts @ features / total
    centred = features - mean
    return mean, centred.T @ (counts[:, None] * centred) / (total - 1)
