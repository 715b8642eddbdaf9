"""Memorisation: is the student nearer to the pairs that it was trained on than its teacher is?

The distance of a sample to the nearest latent of the training pairs, as RMS over the latent's numbers. On fresh
noise the teacher's own distances say what is normal:

    nearest_ratio  median over samples of the student's distance, over the teacher's median
    copied         share of the student's samples below the teacher's 1st percentile

A student that gives back its training latents has a ratio near 0; one that copies only some of them shows in
`copied`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nitrodistill.evaluation.frechet import finite

COPY_QUANTILE = 0.01


class NearestPair:
    """Finds the nearest training latent.

    Args:
        latents: `(M, F)` features of the training pairs' latents, M >= 1.

    Raises:
        ValueError: if there are none, or they hold NaN or infinity.

    Example:
        >>> latents = torch.eye(4)
        >>> nd.evaluation.NearestPair(latents).distances(latents[:2])
        tensor([0., 0.])
    """

    def __init__(self, latents: Tensor) -> None:
        if latents.ndim != 2 or len(latents) == 0:
            raise ValueError(
                f"training latents have shape {tuple(latents.shape)}; they must be (M, F), M >= 1."
            )
        self._latents = finite(latents).detach().to("cpu", torch.float32)

    def __len__(self) -> int:
        return len(self._latents)

    def distances(self, latents: Tensor) -> Tensor:
        """The RMS distance of each of `(B, F)` to the nearest one; `(B,)`.

        Raises:
            ValueError: if the latents have another dimension than the training pairs', or hold NaN or infinity.
        """
        if latents.ndim != 2 or latents.shape[1] != self._latents.shape[1]:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}, the training pairs' {tuple(self._latents.shape)}; "
                "they must have equal dimensions."
            )
        wide = finite(latents).detach().to("cpu", torch.float32)
        # the matrix product loses digits where a copy is exact; a copy is then at 1e-4 instead of 0
        nearest = torch.cdist(wide, self._latents).amin(1)
        return nearest / wide.shape[1] ** 0.5
