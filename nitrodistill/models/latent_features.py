"""The features of a VAE's decoder as a perceptual trunk for latents: `LatentLPIPSLoss(DecoderFeatures(vae))`.

Berrada et al. 2024, Boosting Latent Diffusion with Perceptual Objectives (arXiv 2411.04873), without their masks
of outliers. The teacher's own features need nothing of this: `FeatureTaps.bind`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
        ValueError: for names that there are not, see `FeatureTaps`, or a decoder that would be trained.

    Example:
        >>> features = nd.models.DecoderFeatures(teacher.diffusers.vae, ("mid_block",))
        >>> [tuple(map.shape) for map in features(x0)]
        [(2, 32, 8, 8)]
    """

    def __init__(self, vae: Any, taps: Sequence[str] = ("mid_block", "up_blocks.0")) -> None:
        if any(p.requires_grad for p in vae.decoder.parameters()):
            raise ValueError(
                "the VAE's decoder has parameters that require gradients; call vae.requires_grad_(False) first."
            )
        self._vae = vae
        self._taps = FeatureTaps(cast(Denoiser, _Decoder(vae)), taps)

    def __call__(self, latents: Tensor) -> tuple[Tensor, ...]:
        """The maps `(B, C_i, H_i, W_i)` of latents `(B, C, H, W)`; gradients flow."""
        with _in_one_pass(self._vae):
            maps = self._taps.features(latents, latents, Condition())
        return tuple(m.squeeze(2) if m.ndim == 5 else m for m in maps)  # videos of one frame


@contextmanager
def _in_one_pass(vae: Any) -> Iterator[None]:
    """Without slicing and tiling: taps would see the first sample, or the first tile, alone."""
    names = [name for name in ("use_slicing", "use_tiling") if getattr(vae, name, False)]
    for name in names:
        setattr(vae, name, False)
    try:
        yield
    finally:
        for name in names:
            setattr(vae, name, True)


class _Decoder:
    """As much of a denoiser as `FeatureTaps` looks at."""

    def __init__(self, vae: Any) -> None:
        self.module: torch.nn.Module = vae.decoder
        self._vae = vae

    def __call__(self, latents: Tensor, t: object, condition: object) -> Tensor:
        return decode_latents(self._vae, latents, len(latents))
