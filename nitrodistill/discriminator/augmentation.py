"""Augmentations of the latents that a discriminator sees, real and fake by one law; gradients flow through.

A discriminator of few real samples learns them by heart; shown flipped, moved or cropped ones it cannot (Zhao et
al. 2020, DiffAugment; Karras et al. 2020, ADA). They act before noise is added, so that the noise stays white. All
of them are one affine map of the plane, by kornia: a pixel of the result is looked up in the latent, beyond whose
edges its mirror image lies.

A flip is wrong where prompts say left and right, or the pictures hold text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nitrodistill.checks import check_finite, check_fraction, check_tensor


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each sample.

    Attributes:
        flip: probability of left and right being exchanged.
        translation: the most a latent is moved along each axis, in shares of its side, by whole pixels.
        crop: the least side of a crop, in shares of the latent's; it is stretched to the whole again (bilinear). 1
            crops nothing, and then every pixel is one of the latent's.

    Raises:
        ValueError: for a value out of its range.

    Example:
        >>> nd.Augmentation(flip=0.5, translation=0.125)
        Augmentation(flip=0.5, translation=0.125, crop=1.0)
    """

    flip: float = 0.0
    translation: float = 0.0
    crop: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("flip", 0, 1), ("translation", 0, 0.5), ("crop", 0.1, 1)):
            if not low <= check_finite(name, getattr(self, name)) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [{low}, {high}].")

    def __call__(self, latents: Tensor, r: Tensor) -> Tensor:
        """The augmented latents `(B, C, H, W)`.

        Args:
            latents: `(B, C, H, W)`.
            r: `(B, 6)` uniform draws in [0, 1), one row a sample.

        Raises:
            TypeError: for anything but floating-point tensors.
            ValueError: for wrong shapes, or draws (on a CPU) outside of [0, 1].
            ModuleNotFoundError: without kornia.
        """
        check_tensor("latents", latents)
        r = check_fraction("r", r)
        if latents.ndim != 4 or r.shape != (len(latents), 6):
            raise ValueError(
                f"latents have shape {tuple(latents.shape)} and r {tuple(r.shape)}; give (B, C, H, W) and (B, 6)."
            )
        warp = import_kornia().warp_affine
        mode = "nearest" if self.crop == 1 else "bilinear"
        height, width = latents.shape[-2:]
        matrix = self._matrix(r.to(latents.device, torch.float32), height, width)
        wide = latents.float()
        moved = warp(wide, matrix, (height, width), mode=mode, padding_mode="reflection")
        return moved.to(latents.dtype)

    def _matrix(self, r: Tensor, height: int, width: int) -> Tensor:
        """`(B, 2, 3)`: latent pixel -> pixel of the result."""
        sides = r.new_tensor([width, height])
        most = (self.translation * sides).floor()
        moved = (r[:, 1:3] * (2 * most + 1)).floor() - most
        share = self.crop + (1 - self.crop) * r[:, 3:4]
        corner = r[:, 4:6] * (1 - share) * (sides - 1)
        matrix = torch.zeros(len(r), 2, 3, device=r.device)
        matrix[:, 0, 0] = matrix[:, 1, 1] = (1 / share)[:, 0]
        matrix[:, :, 2] = moved - corner / share
        mirrored = r[:, 0] < self.flip
        flipped = matrix * r.new_tensor([-1.0, 1.0])[:, None]
        flipped[:, 0, 2] += width - 1
        return torch.where(mirrored[:, None, None], flipped, matrix)


def import_kornia() -> Any:
    """What warps.

    Raises:
        ModuleNotFoundError: without kornia.
    """
    try:
        import kornia.geometry.transform as transform
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "augmentation needs kornia: `pip install kornia`, or leave it out."
        ) from error
    return transform
