"""The features of a VAE's decoder as a perceptual trunk for latents: `LatentLPIPSLoss(DecoderFeatures(vae))`.

Berrada et al. 2024, Boosting Latent Diffusion with Perceptual Objectives (arXiv 2411.04873), without their masks
of outliers. The teacher's own features need nothing of this: `FeatureTaps.bind`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from nitrodistill.models.autoencoder import decode_latents
from nitrodistill.models.taps import FeatureTaps
from nitrodistill.types import Condition, Denoiser


class DecoderFeatures:
    """Feature maps of a frozen VAE's decoder, as a function of latents; what follows the last is not run.

    Args:
        vae: a diffusers autoencoder.
        taps: names of modules in its decoder.

    Raises:
        ValueError: for names that there are not, see `FeatureTaps`.

    Example:
        >>> features = nd.models.DecoderFeatures(teacher.diffusers.vae, ("mid_block",))
        >>> [tuple(map.shape) for map in features(x0)]
        [(2, 32, 8, 8)]
    """

    def __init__(self, vae: Any, taps: Sequence[str] = ("mid_block", "up_blocks.0")) -> None:
        self._taps = FeatureTaps(cast(Denoiser, _Decoder(vae)), taps)

    def __call__(self, latents: Tensor) -> tuple[Tensor, ...]:
        """The maps `(B, C_i, H_i, W_i)` of latents `(B, C, H, W)`; gradients flow."""
        return self._taps.features(latents, latents, Condition())


class _Decoder:
    """As much of a denoiser as `FeatureTaps` looks at."""

    def __init__(self, vae: Any) -> None:
        self.module: torch.nn.Module = vae.decoder
        self._vae = vae

    def __call__(self, latents: Tensor, t: object, condition: object) -> Tensor:
        return decode_latents(self._vae, latents, len(latents))
