"""Student against teacher at equal noise: how far apart are the two pictures of one sample?

    latent distance  sqrt(mean (z_s - z_t)^2)
    pixel distance   sqrt(mean (x_s - x_t)^2), pictures in [-1, 1]
    ssim             mean structural similarity in [-1, 1], windows of 11 pixels (Wang et al. 2004), RGB, as piq's
    lpips            perceptual distance (Zhang et al. 2018), where the trunk's weights are on disk

They say whether the student learnt the teacher's *map*, not whether its pictures are good: an average of plausible
pictures is near to all of them. Never rank by them alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nitrodistill.losses.ssim import ssim_loss

PerceptualDistance = Callable[[Tensor, Tensor], Tensor]
"""`(images (B, 3, H, W), images) in [-1, 1] -> (B,)`."""

SSIM_WINDOW = 11


def latent_distance(mine: Tensor, teachers: Tensor) -> Tensor:
    """The RMS difference of latents `(B, *)`; `(B,)`."""
    return (mine.float() - teachers.float()).square().flatten(1).mean(1).sqrt()


def paired_distances(
    mine: Tensor, teachers: Tensor, perceptual: PerceptualDistance | None = None
) -> dict[str, Tensor]:
    """Name -> `(B,)` for pictures `(B, 3, H, W)` in [-1, 1]; SSIM is left out below 11 pixels a side.

    Raises:
        ValueError: if the pictures have different shapes.
    """
    if mine.shape != teachers.shape:
        raise ValueError(
            f"student and teacher draw pictures of shapes {tuple(mine.shape)} and {tuple(teachers.shape)}; a "
            "paired distance needs equal resolutions."
        )
    a, b = mine.float(), teachers.float()
    found = {"pixel_distance": latent_distance(a, b)}
    if min(a.shape[-2:]) >= SSIM_WINDOW:
        known = [x.masked_fill(x.isinf(), torch.nan) for x in (a, b)]  # clamp would hide it
        unit = [(x.clamp(-1, 1) + 1) / 2 for x in known]
        found["ssim"] = 1 - ssim_loss(*unit, data_range=1.0)
    if perceptual is not None:
        found["lpips"] = perceptual(a, b)
    return found
