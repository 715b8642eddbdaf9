"""Diversity: how much the pictures of one prompt differ, against the teacher's at the same noises.

    spread = sqrt( mean over prompts of  1/F sum_f var(x_f | prompt) )

with the unbiased variance over a prompt's samples. A student that draws one picture a prompt has 0; one that
draws the mean of its teacher's pictures comes out below the teacher. Noise would raise it: read it with the
Fréchet distance. The sums are streamed: memory grows with the prompts, not with the samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nitrodistill.evaluation.frechet import finite


class PromptSpread:
    """Streams samples and gives the spread within prompts.

    Args:
        num_prompts: prompts are numbered 0..num_prompts - 1.

    Example:
        >>> spread = nd.evaluation.PromptSpread(num_prompts=1)
        >>> spread.update(torch.tensor([0, 0]), torch.tensor([[0.0], [2.0]]))
        >>> spread.spread()
        1.4142135623730951
    """

    def __init__(self, num_prompts: int) -> None:
        self._counts = torch.zeros(num_prompts, dtype=torch.float64)
        self._sums = torch.zeros(num_prompts, 0, dtype=torch.float64)
        self._squares = torch.zeros(num_prompts, dtype=torch.float64)

    def update(self, prompt_ids: Tensor, samples: Tensor) -> None:
        """Adds samples `(B, *)` of the prompts `(B,)`.

        Raises:
            ValueError: if they hold NaN or infinity.
        """
        wide = finite(samples).detach().to("cpu", torch.float64).flatten(1)
        if self._sums.shape[1] == 0:
            self._sums = torch.zeros(len(self._counts), wide.shape[1], dtype=torch.float64)
        ids = prompt_ids.cpu()
        self._counts.index_add_(0, ids, torch.ones(len(ids), dtype=torch.float64))
        self._sums.index_add_(0, ids, wide)
        self._squares.index_add_(0, ids, wide.square().sum(1))

    def __add__(self, other: PromptSpread) -> PromptSpread:
        """Both sets of samples together."""
        if not other._counts.any():
            return self
        if not self._counts.any():
            return other
        both = PromptSpread(0)
        both._counts = self._counts + other._counts
        both._sums = self._sums + other._sums
        both._squares = self._squares + other._squares
        return both

    def variances(self) -> Tensor:
        """The mean variance of a number within each prompt, `(P,)` float64; NaN with fewer than two samples."""
        numbers = max(1, self._sums.shape[1])
        scatter = self._squares - self._sums.square().sum(1) / self._counts
        variance = scatter.clamp_min(0) / (self._counts - 1) / numbers
        return variance.where(self._counts > 1, torch.nan)

    def spread(self) -> float | None:
        """The RMS deviation from a prompt's mean; None if no prompt has two samples."""
        known = self.variances()[self._counts > 1]
        return math.sqrt(known.mean()) if len(known) else None
