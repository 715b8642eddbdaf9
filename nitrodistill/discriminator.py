"""LatentDiscriminator: trained heads on the features of a frozen denoiser.

The idea of Nitro and of Sauer et al. 2024: the teacher's own network, shown a noised latent, already
separates real from fake; small heads on its features are all that must be trained. Two heads, both AMD's
(Nitro-SD2.1 and Nitro-PixArt), turn a map of C channels into logits, one for every patch or token:

    ConvHead    GroupNorm -> Conv 4x4, stride 2, padding 2 (C -> width) -> SiLU -> Conv 1x1 (width -> 1)
    TokenHead   h = f1(x),  h = (h + f3(h)) / sqrt(2),  logits = Conv 1x1(h)
                fk = Conv k x k -> GroupNorm -> LeakyReLU(0.2), with spectral norm on every convolution

The width is C/4 for the first and C for the second, unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from nitrodistill.checks import check_whole
from nitrodistill.models.denoiser import device_of, frozen
from nitrodistill.models.taps import FeatureTaps
from nitrodistill.types import Condition, Denoiser


class ConvHead(nn.Sequential):
    """Nitro's convolutional head: a feature map `(B, C, H, W)` -> patch logits `(B, 1, H', W')`.

    Args:
        channels: C.
        width: hidden channels; None is C/4, as published.
        groups: of the GroupNorm; the largest common divisor with C is taken.
    """

    def __init__(self, channels: int, width: int | None = None, groups: int = 32) -> None:
        width = check_whole("width", max(channels // 4, 1) if width is None else width)
        check_whole("channels", channels)
        super().__init__(
            nn.GroupNorm(math.gcd(groups, channels), channels),
            nn.Conv2d(channels, width, kernel_size=4, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(width, 1, kernel_size=1),
        )


class TokenHead(nn.Module):
    """Nitro-PixArt's head: the tokens of a block as a map `(B, C, H, W)` -> a logit each `(B, 1, H, W)`.

    Two departures from the published head, at the same number of parameters. Its second convolution runs
    along the tokens in raster order, nine of them, and around the end: a row's last token touches the next
    row's first, and the image's last its first. Here it is 3x3 on the grid, with zeros outside. Its
    normalisation takes its statistics from eight samples of the batch, so that a logit depends on who
    else is in the batch; here it is a GroupNorm within the sample.

    Args:
        channels: C.
        width: hidden channels; None is C, as published.
        groups: of the GroupNorms; the largest common divisor with the width is taken.
    """

    def __init__(self, channels: int, width: int | None = None, groups: int = 32) -> None:
        super().__init__()
        width = check_whole("width", channels if width is None else width)
        check_whole("channels", channels)
        self.token: nn.Module = _normalised(channels, width, 1, groups)
        self.neighbours: nn.Module = _normalised(width, width, 3, groups)
        self.logit: nn.Module = spectral_norm(nn.Conv2d(width, 1, kernel_size=1))

    def forward(self, features: Tensor) -> Tensor:
        """`(B, C, H, W)` -> logits `(B, 1, H, W)`."""
        hidden = self.token(features)
        hidden = (hidden + self.neighbours(hidden)) / math.sqrt(2)
        return self.logit(hidden)


def _normalised(channels: int, width: int, kernel_size: int, groups: int) -> nn.Module:
    convolution = nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(
        spectral_norm(convolution),
        nn.GroupNorm(math.gcd(groups, width), width),
        nn.LeakyReLU(0.2),
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
        taps: names of its submodules whose feature maps the heads see, or depths; see `FeatureTaps`.
        head: makes a head from a map's channels and `width`: `ConvHead`, `TokenHead`, or your own,
            whose modules turn `(B, C, H, W)` into logits with any dimensions behind the batch.
        width: hidden channels of every head; None is the head's own choice.
        example: `(x_t, t, condition)` to probe the channels with; by default the smallest input of
            the denoiser's family.
        seed: of the heads' initial weights; the global generator is not touched.
        freeze: False leaves the denoiser as it is, for heads on a network that is trained too: DMD2's critic.

    Attributes:
        taps: the feature taps.
        heads: the trained module; a trainer may replace it by a prepared one.

    Example:
        discriminator = nd.LatentDiscriminator(teacher, ["down_blocks.0", "mid_block"])
        optimizer = torch.optim.AdamW(discriminator.heads.parameters())
        logits = discriminator(x_t, t, condition)

    Where the features are there already, `discriminator.heads(features)` gives the logits:

        prediction, features = discriminator.taps.prediction_and_features(x_t, t, condition)
    """

    heads: nn.Module

    def __init__(
        self,
        denoiser: Denoiser,
        taps: Sequence[str | float],
        *,
        head: Callable[[int, int | None], nn.Module] = ConvHead,
        width: int | None = None,
        example: tuple[Tensor, Tensor, Condition] | None = None,
        seed: int = 0,
        freeze: bool = True,
    ) -> None:
        check_whole("width", 1 if width is None else width)
        check_whole("seed", seed, 0)
        self.taps: FeatureTaps = FeatureTaps(denoiser, taps)
        if freeze:
            frozen(denoiser.module)
        channels = self.taps.channels(example)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = DiscriminatorHeads([head(c, width) for c in channels])
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
