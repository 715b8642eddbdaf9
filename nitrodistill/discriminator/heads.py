"""Heads: a feature map of a network -> logits, high for real.

Two are AMD's (Nitro-SD2.1 and Nitro-PixArt) and give a logit for every patch or token; the third gives one:

    ConvHead    GroupNorm -> Conv 4x4, stride 2, padding 2 (C -> width) -> SiLU -> Conv 1x1 (width -> 1)
    TokenHead   h = f1(x),  h = (h + f3(h)) / sqrt(2),  logits = Conv 1x1(h)
                fk = Conv k x k -> GroupNorm -> LeakyReLU(0.2), with spectral norm on every convolution
    MLPHead     mean over positions -> LayerNorm -> Linear (C -> width) -> SiLU -> Linear -> SiLU -> Linear (-> 1)

The width is C/4 for the first and C for the others, unless `width` says otherwise. Each is phi followed by a
linear psi. A **projection** conditions any of them on an embedding e of the timestep and the pooled text:

    logit(x, e) = psi(phi(x)) + <V e, phi(x)> / sqrt(K),   K the channels of phi        (Miyato & Koyama 2018)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import ParametrizationList

from nitrodistill.checks import check_floating, check_whole
from nitrodistill.named import pick_class

MakeHead = Callable[[int, int | None], nn.Module]
"""`(channels, width) -> head`: a class of this module, or your own; width None is the head's own choice."""

_FREQUENCIES = 256
"""Of the embedding of a timestep."""


@runtime_checkable
class ProjectableHead(Protocol):
    """What a head must have to be conditioned.

    Attributes:
        hidden_channels: K.
        logit: psi, `(B, K, *)` -> `(B, 1, *)`.

    Example:
        >>> from nitrodistill.discriminator import ProjectableHead
        >>> isinstance(nd.ConvHead(8), ProjectableHead)
        True
    """

    hidden_channels: int

    @property
    def logit(self) -> nn.Module: ...

    def hidden(self, features: Tensor) -> Tensor:
        """phi: `(B, C, H, W)` -> `(B, K, *)`."""
        ...


class ConvHead(nn.Sequential):
    """Nitro's convolutional head: a feature map `(B, C, H, W)` -> patch logits `(B, 1, H', W')`.

    Args:
        channels: C.
        width: hidden channels; None is C/4, as published.
        groups: of the GroupNorm; the largest common divisor with C is taken.

    Example:
        >>> nd.ConvHead(64)(torch.zeros(2, 64, 8, 8)).shape
        torch.Size([2, 1, 5, 5])
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
        self.hidden_channels: int = width

    @property
    def logit(self) -> nn.Module:
        """The last convolution."""
        return self[3]

    def hidden(self, features: Tensor) -> Tensor:
        """`(B, C, H, W)` -> `(B, width, H', W')`."""
        for layer in (self[0], self[1], self[2]):
            features = layer(features)
        return features


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

    Example:
        >>> nd.TokenHead(64, width=32)(torch.zeros(2, 64, 8, 8)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, channels: int, width: int | None = None, groups: int = 32) -> None:
        super().__init__()
        width = check_whole("width", channels if width is None else width)
        check_whole("channels", channels)
        self.token: nn.Module = _normalised(channels, width, 1, groups)
        self.neighbours: nn.Module = _normalised(width, width, 3, groups)
        self.logit: nn.Module = spectral_norm(nn.Conv2d(width, 1, kernel_size=1))
        self.hidden_channels: int = width

    def hidden(self, features: Tensor) -> Tensor:
        """`(B, C, H, W)` -> `(B, width, H, W)`."""
        hidden = self.token(features)
        return (hidden + self.neighbours(hidden)) / math.sqrt(2)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, C, H, W)` -> logits `(B, 1, H, W)`."""
        return self.logit(self.hidden(features))


class MLPHead(nn.Module):
    """One logit a sample, from the mean of a map over its positions: `(B, C, H, W)` -> `(B, 1)`.

    Args:
        channels: C.
        width: hidden channels; None is C.

    Example:
        >>> nd.MLPHead(64)(torch.zeros(2, 64, 8, 8)).shape
        torch.Size([2, 1])
    """

    def __init__(self, channels: int, width: int | None = None) -> None:
        super().__init__()
        width = check_whole("width", channels if width is None else width)
        check_whole("channels", channels)
        self.layers: nn.Module = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.logit: nn.Module = nn.Linear(width, 1)
        self.hidden_channels: int = width

    def hidden(self, features: Tensor) -> Tensor:
        """`(B, C, H, W)` -> `(B, width)`."""
        return self.layers(features.flatten(2).mean(2))

    def forward(self, features: Tensor) -> Tensor:
        """`(B, C, H, W)` -> logits `(B, 1)`."""
        return self.logit(self.hidden(features))


def _normalised(channels: int, width: int, kernel_size: int, groups: int) -> nn.Module:
    convolution = nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(
        spectral_norm(convolution), nn.GroupNorm(math.gcd(groups, width), width), nn.LeakyReLU(0.2)
    )


class ProjectionHead(nn.Module):
    """A head whose logits depend on an embedding, by a projection.

    Args:
        head: what is conditioned.
        embedding_channels: of the embedding.

    Raises:
        TypeError: for a head that does not say what its last layer is.
    """

    def __init__(self, head: nn.Module, embedding_channels: int) -> None:
        super().__init__()
        if not isinstance(head, ProjectableHead):
            raise TypeError(
                f"conditioning needs a head with hidden(features), logit and hidden_channels, which "
                f"{type(head).__name__} lacks; see ProjectableHead, or leave conditioning out."
            )
        self.head: nn.Module = head
        self.projection: nn.Linear = nn.Linear(embedding_channels, head.hidden_channels)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """`(B, C, H, W)` and `(B, E)` -> logits `(B, 1, *)`."""
        head: ProjectableHead = self.head  # pyright: ignore[reportAssignmentType]
        hidden, direction = head.hidden(features), self.projection(embedding)
        direction = direction.reshape(*direction.shape, *([1] * (hidden.ndim - 2)))
        inner = (hidden * direction).sum(1, keepdim=True)
        return head.logit(hidden) + inner / math.sqrt(head.hidden_channels)


class ConditionEmbedding(nn.Module):
    """An embedding of the timestep, the pooled text, or both, which all heads share: `(B, channels)`.

    Args:
        channels: of the embedding.
        timestep: whether the timestep is in it.
        text_channels: of the pooled text; 0 leaves it out.
    """

    def __init__(self, channels: int, timestep: bool, text_channels: int) -> None:
        super().__init__()
        self.time: nn.Module | None = None
        self.text: nn.Linear | None = None
        if timestep:
            first, second = nn.Linear(_FREQUENCIES, channels), nn.Linear(channels, channels)
            self.time = nn.Sequential(first, nn.SiLU(), second)
        if text_channels:
            self.text = nn.Linear(text_channels, channels)

    def forward(self, u: Tensor | None, text: Tensor | None) -> Tensor:
        """`u` `(B,)` in [0, 1], the timestep's fraction of the way to noise, and `text` `(B, D)`."""
        parts: list[Tensor] = []
        if self.time is not None:
            from diffusers.models.embeddings import get_timestep_embedding

            assert u is not None
            angles = get_timestep_embedding(1000 * u.float(), _FREQUENCIES)
            parts.append(self.time(angles.to(next(self.time.parameters()).dtype)))
        if self.text is not None:
            assert text is not None
            parts.append(self.text(text.to(self.text.weight.dtype)))
        return torch.stack(parts).sum(0)


class DiscriminatorHeads(nn.Module):
    """One head a feature map; the module that is trained, saved and prepared.

    Args:
        heads: as many as there are feature maps; `ProjectionHead` where there is an embedding.
        embedding: of what they are conditioned on; None is nothing.

    Example:
        >>> from nitrodistill.discriminator import DiscriminatorHeads
        >>> heads = DiscriminatorHeads([nd.MLPHead(8), nd.MLPHead(16)])
        >>> [tuple(x.shape) for x in heads((torch.zeros(2, 8, 4, 4), torch.zeros(2, 16, 2, 2)))]
        [(2, 1), (2, 1)]
    """

    def __init__(
        self, heads: Sequence[nn.Module], embedding: ConditionEmbedding | None = None
    ) -> None:
        super().__init__()
        self.heads: nn.ModuleList = nn.ModuleList(heads)
        self.embedding: nn.Module | None = embedding
        kinds = {type(part).__name__ for part in self.modules()}
        self._batch_norms: bool = any("BatchNorm" in kind for kind in kinds)

    def forward(
        self, features: Sequence[Tensor], u: Tensor | None = None, text: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """`(B, C_i, H_i, W_i)` a map -> `(B, N_i)` logits a map.

        Args:
            features: the maps.
            u: `(B,)` the timesteps' fractions of the way to noise, where the heads know them.
            text: `(B, D)` the pooled text, likewise.

        Raises:
            TypeError: for features that are not floating point.
            ValueError: for a batch of 1 in train mode where heads normalise over the batch.
        """
        if self._batch_norms and self.training and len(features[0]) == 1:
            raise ValueError(
                "a head normalises over the batch, and this batch holds 1 sample, which has no statistics; "
                "give it 2 or more, or a head that normalises within a sample (GroupNorm)."
            )
        for feature in features:  # the cast below would hide what they are
            check_floating("features", feature)
        device, own = features[0].device.type, next(self.parameters(), None)
        if own is not None and not torch.is_autocast_enabled("cpu" if device == "meta" else device):
            # the backbone may be in half precision
            features = [feature.to(own.dtype) for feature in features]
            text = None if text is None else text.to(own.dtype)
        more = () if self.embedding is None else (self.embedding(u, text),)
        # contiguous: GroupNorm's backward on a channels-last input that needs no gradient crashes the
        # process on the CPU (seen with torch 2.13).
        pairs = zip(self.heads, features, strict=True)
        return tuple(_flat(head(feature.contiguous(), *more)) for head, feature in pairs)


def _flat(logits: Tensor) -> Tensor:
    """`(B, *)` -> `(B, N)`."""
    return logits.flatten(1) if logits.ndim > 1 else logits[:, None]


@contextmanager
def same_norms(heads: nn.Module) -> Iterator[None]:
    """Within it, heads are one function of their weights: a spectral norm stays what it was in the last pass.

    In train mode each pass else takes one more power iteration, and two passes differ by more than their inputs:
    a penalty on a small perturbation would measure that.
    """
    waiting = [m for m in heads.modules() if isinstance(m, ParametrizationList) and m.training]
    for module in waiting:
        module.eval()
    try:
        yield
    finally:
        for module in waiting:
            module.train()


HEADS: tuple[type[nn.Module], ...] = (ConvHead, TokenHead, MLPHead)
"""Those that have a name: conv, token, mlp."""


def named_head(name: str) -> MakeHead:
    """The head that a recipe names: `conv`, `token`, `mlp`, or `package.module:Class`.

    Raises:
        ValueError: for an unknown name (shows the nearest).

    Example:
        >>> from nitrodistill.discriminator import named_head
        >>> named_head("token").__name__
        'TokenHead'
    """
    return pick_class(name, HEADS, nn.Module, "head", "Head")
