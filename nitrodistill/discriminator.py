"""LatentDiscriminator: trained heads on the features of a frozen denoiser.

The idea of Nitro and LADD (Sauer et al. 2024): the teacher's own network, shown a noised latent, already
separates real from fake; small heads on its features are all that must be trained. Nitro's head on each
feature map of C channels:

    GroupNorm -> Conv 4x4, stride 2, padding 2 (C -> width) -> SiLU -> Conv 1x1 (width -> 1)

with width = C/4, a logit for every patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nitrodistill.models.denoiser import device_of, frozen
from nitrodistill.models.taps import FeatureTaps
from nitrodistill.types import Condition, Denoiser

__all__ = ["ConvHead", "DiscriminatorHeads", "LatentDiscriminator"]


class ConvHead(nn.Sequential):
    """Nitro's convolutional head: a feature map `(B, C, H, W)` -> patch logits `(B, 1, H', W')`.

    Args:
        channels: C.
        width: hidden channels; None is C/4, as published.
        groups: of the GroupNorm; the largest common divisor with C is taken.
    """

    def __init__(self, channels: int, width: int | None = None, groups: int = 32) -> None:
        width = max(channels // 4, 1) if width is None else width
        super().__init__(
            nn.GroupNorm(math.gcd(groups, channels), channels),
            nn.Conv2d(channels, width, kernel_size=4, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(width, 1, kernel_size=1),
        )


class DiscriminatorHeads(nn.Module):
    """One head a feature map; the module that is trained, saved and prepared.

    Args:
        heads: as many as there are feature maps.
    """

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads: nn.ModuleList = nn.ModuleList(heads)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`(B, C_i, H_i, W_i)` a map -> `(B, N_i)` logits a map."""
        # contiguous: GroupNorm's backward on a channels-last input that needs no gradient crashes the
        # process on the CPU (seen with torch 2.13).
        pairs = zip(self.heads, features, strict=True)
        return tuple(head(feature.contiguous()).flatten(1) for head, feature in pairs)


class LatentDiscriminator:
    """Tells real latents from generated ones by a frozen denoiser's features.

    The denoiser is frozen (gradients off, eval mode) and is *not* part of `heads`: train, save and
    prepare `heads` alone. Gradients still flow through the denoiser to the latents.

    Args:
        denoiser: the backbone, usually the teacher.
        taps: names of its submodules whose feature maps the heads see.
        width: hidden channels of every head; None is a quarter of the map's channels (Nitro).
        example: `(x_t, t, condition)` to probe the channels with; by default the smallest input of
            the denoiser's family.
        seed: of the heads' initial weights; the global generator is not touched.

    Attributes:
        taps: the feature taps.
        heads: the trained module; a trainer may replace it by a prepared one.

    Example:
        discriminator = nd.LatentDiscriminator(teacher, ["down_blocks.0", "mid_block"])
        optimizer = torch.optim.AdamW(discriminator.heads.parameters())
        logits = discriminator(x_t, t, condition)
    """

    heads: nn.Module

    def __init__(
        self,
        denoiser: Denoiser,
        taps: Sequence[str],
        *,
        width: int | None = None,
        example: tuple[Tensor, Tensor, Condition] | None = None,
        seed: int = 0,
    ) -> None:
        if width is not None and width < 1:
            raise ValueError(f"width is {width}; it must be at least 1, or None for C/4.")
        self.taps: FeatureTaps = FeatureTaps(denoiser, taps)
        frozen(denoiser.module)
        channels = self.taps.channels(example)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = DiscriminatorHeads([ConvHead(c, width) for c in channels])
        self.heads.to(device_of(denoiser.module))

    @property
    def denoiser(self) -> Denoiser:
        """The frozen backbone."""
        return self.taps.denoiser

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """Logits of noised latents; high means real.

        Args:
            x_t: `(B, C, H, W)` latents at timestep `t`.
            t: `(B,)` or zero-dimensional, the backbone's timesteps.
            condition: of batch size B.

        Returns:
            `(B, N_i)` patch logits for each tap.
        """
        return self.heads(self.taps.features(x_t, t, condition))
