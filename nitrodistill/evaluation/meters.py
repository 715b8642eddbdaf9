"""Streamed measurements of one arm: what is kept of its pictures does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nitrodistill.evaluation.alignment import Alignment, AlignmentCounts
from nitrodistill.evaluation.diversity import PromptSpread
from nitrodistill.evaluation.frechet import (
    GaussianStatistics,
    extrapolated_floor,
    frechet_distance,
)
from nitrodistill.evaluation.sharpness import TextureFeatures, edge_strength, high_frequency_energy

__all__ = ["Meter", "Statistics", "latent_features"]

MAX_LATENT_FEATURES = 1024


class Statistics:
    """Gaussian statistics of two random halves of a set, and so of the whole."""

    def __init__(self) -> None:
        self._halves: list[list[GaussianStatistics]] = [[], []]

    def update(self, features: Tensor, in_first_half: Tensor) -> None:
        """Adds features `(B, F)`; `in_first_half` is `(B,)` bool."""
        for half, rows in zip(self._halves, (in_first_half, ~in_first_half), strict=True):
            if bool(rows.any()):
                part = GaussianStatistics.of(features[rows.to(features.device)])
                half[:] = [half[0] + part] if half else [part]

    def whole(self) -> GaussianStatistics:
        """The statistics of all samples."""
        return reduce(add, [part for half in self._halves for part in half])

    def distance(self, other: Statistics) -> float:
        """The Fréchet distance to another set."""
        return frechet_distance(self.whole(), other.whole())

    def floor(self) -> float | None:
        """The distance to another set of this size and distribution; None with halves of one sample."""
        if not all(half and half[0].count > 1 for half in self._halves):
            return None
        return extrapolated_floor(self._halves[0][0], self._halves[1][0])


class Meter:
    """Measures the pictures, and where there are any the latents, of one arm.

    Args:
        num_prompts: prompts are numbered 0..num_prompts - 1.
        features: images `(B, 3, H, W)` in [-1, 1] -> `(B, F)`.
        alignment: the oracle, or None.
        texture: texture features.
    """

    def __init__(
        self,
        num_prompts: int,
        features: Callable[[Tensor], Tensor],
        alignment: Alignment | None,
        texture: TextureFeatures,
    ) -> None:
        self._feature_extractor = features
        self._oracle = alignment
        self._texture_extractor = texture
        self.features: Statistics = Statistics()
        self.texture: Statistics = Statistics()
        self.latents: Statistics = Statistics()
        self.alignment: AlignmentCounts = AlignmentCounts()
        self._spread = PromptSpread(num_prompts)
        self._edge, self._high, self._count = 0.0, 0.0, 0

    def update(self, images: Tensor, prompts: Sequence[str], in_first_half: Tensor) -> None:
        """Adds images `(B, 3, H, W)` in [-1, 1] and their prompts."""
        self.features.update(self._feature_extractor(images), in_first_half)
        self.texture.update(self._texture_extractor(images), in_first_half)
        if self._oracle is not None:
            self.alignment.update(self._oracle(images, prompts))
        self._edge += float(edge_strength(images).double().sum())
        self._high += float(high_frequency_energy(images).double().sum())
        self._count += len(images)

    def update_latents(self, latents: Tensor, prompt_ids: Tensor, in_first_half: Tensor) -> None:
        """Adds latents `(B, C, H, W)` of the prompts `(B,)`."""
        self.latents.update(latent_features(latents), in_first_half)
        self._spread.update(prompt_ids, latents)

    def edge(self) -> float:
        """Mean edge strength."""
        return self._edge / self._count

    def high_frequency(self) -> float:
        """Mean high-frequency energy."""
        return self._high / self._count

    def spread(self) -> float | None:
        """Spread within prompts; None if every prompt has one sample."""
        return self._spread.spread()


def latent_features(latents: Tensor) -> Tensor:
    """Latents `(B, C, H, W)` as features `(B, F)`, averaged over cells where F would exceed 1024.

    A covariance of Stable Diffusion's 16,384 numbers would need 2 GB and more samples than anybody draws.
    """
    channels, height, width = latents.shape[1:]
    if channels * height * width > MAX_LATENT_FEATURES:
        side = max(1, int((MAX_LATENT_FEATURES // channels) ** 0.5))
        latents = adaptive_avg_pool2d(latents.float(), (min(side, height), min(side, width)))
    return torch.flatten(latents, 1)
