"""LatentDiscriminator: trained heads on the features of a frozen denoiser.

The idea of Nitro and of Sauer et al. 2024: the teacher's own network, shown a noised latent, already
separates real from fake; small heads on its features are all that must be trained. Where the features come
from is a choice:

    LatentDiscriminator(teacher, taps)                  a frozen network, shared with whoever uses it
    LatentDiscriminator(critic, taps, freeze=False)     a network that is trained too, as DMD2's critic
    LatentDiscriminator(add_lora(teacher, ...), taps)   a LoRA role of a shared network, frozen or not
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nitrodistill import pretrained
from nitrodistill.checks import as_tensor, check_choice, check_kind, check_whole
from nitrodistill.discriminator import saved
from nitrodistill.discriminator.heads import (
    ConditionEmbedding,
    ConvHead,
    DiscriminatorHeads,
    MakeHead,
    ProjectionHead,
    named_head,
)
from nitrodistill.models.denoiser import (
    DiffusersDenoiser,
    device_of,
    evaluating,
    frozen,
    millions,
    seeded,
)
from nitrodistill.models.taps import FeatureShape, FeatureTaps
from nitrodistill.models.wrappers import unwrapped
from nitrodistill.pretrained import Pushable
from nitrodistill.settings import build, to_plain
from nitrodistill.types import Condition, Denoiser, as_condition

Conditioned = Literal["timestep", "text"]
"""What heads can be conditioned on."""

_EMBEDDING = 256
"""Channels of the embedding that conditions heads."""


class LatentDiscriminator(nn.Module, Pushable):
    """Separates real latents from generated ones by a frozen denoiser's features.

    Its parameters are the heads' alone. The denoiser is frozen (gradients off, eval mode) and not registered:
    `to`, `train`, `state_dict` and `prepare` do not reach it. Gradients still flow through it to the latents.

    Args:
        denoiser: the backbone, usually the teacher.
        taps: names of its submodules whose feature maps the heads see, or depths, or "every_block"; see
            `FeatureTaps`.
        head: makes a head from a map's channels and `width`: `ConvHead`, `TokenHead`, `MLPHead`, their names in
            recipes (`named_head`), or your own, whose modules turn `(B, C, H, W)` into logits with any dimensions
            behind the batch.
        width: hidden channels of every head; None is the head's own choice.
        example: `(x_t, t, condition)` to probe the channels with; by default the smallest input of
            the denoiser's family.
        conditioning: what the heads know next to the features, by a projection: "timestep", "text" (pooled), both.
        pooled: the name of the pooled text in a Condition, `(B, D)`; by default what the denoiser's family says.
        seed: of the heads' initial weights; the global generator is not touched.
        freeze: False leaves the denoiser as it is, for heads on a network that is trained too: DMD2's critic.

    Attributes:
        taps: the feature taps.
        heads: the trained module; a trainer may replace it by a prepared one.

    Raises:
        ValueError: if a tap has no map, a head does not take its channels, or there is no pooled text.
        TypeError: if a head of your own is to be conditioned and is no `ProjectableHead`.

    Example:
        >>> discriminator = nd.LatentDiscriminator(teacher.denoiser, [0.25, 0.5, 0.75])
        >>> optimizer = torch.optim.AdamW(discriminator.parameters())
        >>> logits = discriminator(noise, 500, condition)

        Where the features are there already:

        >>> prediction, features = discriminator.taps.prediction_and_features(noise, 500, condition)
        >>> logits = discriminator.logits(features, 500, condition)
    """

    _kind: ClassVar[str] = "heads"
    heads: nn.Module

    def __init__(
        self,
        denoiser: Denoiser,
        taps: str | float | Sequence[str | float],
        *,
        head: str | MakeHead = ConvHead,
        width: int | None = None,
        conditioning: Conditioned | Sequence[Conditioned] = (),
        pooled: str | None = None,
        example: tuple[Tensor, Tensor, Condition] | None = None,
        seed: int = 0,
        freeze: bool = True,
    ) -> None:
        super().__init__()
        check_kind("freeze", freeze, bool)
        check_whole("width", 1 if width is None else width)
        check_whole("seed", seed, 0)
        if isinstance(head, str):
            head = named_head(head)
        check_kind("head", head, Callable, ", such as ConvHead, or the name of one")
        if isinstance(conditioning, str):
            conditioning = (conditioning,)
        for name in conditioning:
            check_choice("conditioning", name, ("timestep", "text"))
        if len(set(conditioning)) < len(conditioning):
            raise ValueError(f"conditioning is {tuple(conditioning)}; name each only once.")
        if pooled is not None and "text" not in conditioning:
            raise ValueError(
                f"pooled is {pooled!r}, but conditioning is {tuple(conditioning)}; put 'text' in it, or leave "
                "pooled out."
            )
        self.taps: FeatureTaps = FeatureTaps(denoiser, taps)
        self.conditioning: tuple[Conditioned, ...] = tuple(conditioning)
        self.pooled: str | None = None
        if "text" in conditioning:
            self.pooled = _pooled_name(denoiser, pooled)
        if freeze:
            frozen(denoiser.module)
        shapes = self.taps.shapes(example)
        self._settings: saved.HeadSettings = saved.HeadSettings(
            self.taps.names,
            tuple(shape.channels for shape in shapes),
            saved.name_of(head),
            width,
            self.conditioning,
            self.pooled,
            0 if self.pooled is None else self._text_channels(example),
        )
        device = device_of(denoiser.module)
        with seeded(seed):
            self.heads = _make_heads(head, self._settings).to(device)
        _check_heads(self.heads, shapes, device)

    @property
    def denoiser(self) -> Denoiser:
        """The backbone."""
        return self.taps.denoiser

    def __repr__(self) -> str:
        """In one line; `print(discriminator.heads)` shows the layers."""
        backbone, settings = unwrapped(self.denoiser.module), self._settings
        maps = zip(settings.taps, settings.channels, strict=True)
        known = f", conditioned on {' and '.join(self.conditioning)}" if self.conditioning else ""
        return (
            f"LatentDiscriminator({settings.head} heads of {millions(self)}{known}, on "
            f"{type(backbone).__name__} at {', '.join(f'{tap} ({channels} channels)' for tap, channels in maps)})"
        )

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        condition: Condition | Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits of noised latents; high means real.

        Args:
            x_t: `(B, C, H, W)` latents at timestep `t`.
            t: `(B,)`, or one for all: the backbone's timesteps.
            condition: of batch size B, or a dict of its tensors; None holds nothing.

        Returns:
            `(B, N_i)` logits for each tap.
        """
        check_kind("x_t", x_t, Tensor)
        t, condition = as_tensor("t", t), as_condition(condition)
        return self.logits(self.taps.features(x_t, t, condition), t, condition)

    def logits(
        self,
        features: Tensor | Sequence[Tensor],
        t: Tensor | float,
        condition: Condition | Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits of features that are there already.

        Args:
            features: `(B, C_i, H_i, W_i)`, a map for each tap; of one tap it may be the map itself.
            t: the timesteps of the latents that they come from, `(B,)` or one for all.
            condition: of batch size B; None holds nothing.

        Raises:
            ValueError: if there is not a map for each tap, or the heads know the pooled text and `condition` has
                none.
        """
        features = (features,) if isinstance(features, Tensor) else tuple(features)
        channels = [one.shape[1] if one.ndim > 1 else 0 for one in features]
        if channels != list(self._settings.channels):
            raise ValueError(
                f"features are maps of {channels} channels; the heads take one of each tap, of "
                f"{list(self._settings.channels)}."
            )
        if not self.conditioning:
            return self.heads(features)
        first, u, text = features[0], None, None
        if "timestep" in self.conditioning:
            u = (
                self.denoiser.schedule.fraction(as_tensor("t", t))
                .to(first.device)
                .expand(len(first))
            )
        if self.pooled is not None:
            text = _pooled(as_condition(condition), self.pooled).to(first.device)
        return self.heads(features, u, text)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the heads with their config and the taps they belong to; `from_pretrained` reads them.

        Raises:
            FileExistsError: if the folder holds something else.
        """
        tensors = self.heads.state_dict()
        pretrained.save(Path(folder), "heads", tensors, to_plain(self._settings))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        denoiser: Denoiser,
        *,
        taps: Sequence[str | float] | None = None,
        head: str | MakeHead | None = None,
        example: tuple[Tensor, Tensor, Condition] | None = None,
        freeze: bool = True,
    ) -> LatentDiscriminator:
        """A discriminator with heads that `save_pretrained` wrote.

        Args:
            folder: where they are, or a repository's name on the Hub, `"user/name"`.
            denoiser: the backbone, of the same architecture.
            taps: if given, must be those that the heads were trained on.
            head: what made them, if that was your own.
            example: see the class.
            freeze: see the class.

        Raises:
            FileNotFoundError: if there are none.
            ValueError: if the files are damaged, or the heads belong to other taps, another network or another
                head.
        """
        plain, tensors = pretrained.load(folder, "heads")
        settings = build(saved.HeadSettings, plain, pretrained.CONFIG)
        if taps is not None and FeatureTaps(denoiser, taps).names != settings.taps:
            raise ValueError(
                f"the heads in {str(folder)!r} belong to the taps {', '.join(settings.taps)}, not to "
                f"{', '.join(FeatureTaps(denoiser, taps).names)}; leave taps out."
            )
        made = cls(
            denoiser,
            settings.taps,
            head=saved.maker(settings.head, head),
            width=settings.width,
            conditioning=settings.conditioning,
            pooled=settings.pooled,
            example=example,
            freeze=freeze,
        )
        if made._settings.channels != settings.channels:
            raise ValueError(
                f"the heads in {str(folder)!r} are for maps of {settings.channels} channels, and this network's "
                f"have {made._settings.channels}; they belong to another network."
            )
        here, there = (_shapes(one) for one in (made.heads.state_dict(), tensors))
        if here != there:
            name = min(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
            raise ValueError(
                f"the heads in {str(folder)!r} have {name} of shape {there.get(name, 'none')}, and those that "
                f"{settings.head} makes here {here.get(name, 'none')}; pass the head= that made them, and their "
                "network."
            )
        made.heads.load_state_dict(tensors)
        return made

    def _text_channels(self, example: tuple[Tensor, Tensor, Condition] | None) -> int:
        assert self.pooled is not None
        if example is None:
            assert isinstance(self.denoiser, DiffusersDenoiser)  # else the taps wanted an example
            example = self.denoiser.example()
        return _pooled(example[2], self.pooled).shape[1]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _make_heads(make: MakeHead, settings: saved.HeadSettings) -> DiscriminatorHeads:
    heads = [make(channels, settings.width) for channels in settings.channels]
    for head in heads:
        check_kind(f"what {settings.head} makes", head, nn.Module)
    if not settings.conditioning:
        return DiscriminatorHeads(heads)
    timestep = "timestep" in settings.conditioning
    embedding = ConditionEmbedding(_EMBEDDING, timestep, settings.text_channels)
    return DiscriminatorHeads([ProjectionHead(head, _EMBEDDING) for head in heads], embedding)


def _check_heads(heads: nn.Module, shapes: Sequence[FeatureShape], device: torch.device) -> None:
    """Shows each head two maps as its tap gives them."""
    for head, shape in zip(heads.get_submodule("heads").children(), shapes, strict=True):
        features = torch.zeros(2, shape.channels, *shape.grid, device=device)
        try:
            with torch.no_grad(), evaluating(head):
                logits = (head.head if isinstance(head, ProjectionHead) else head)(features)
        except RuntimeError as error:
            raise ValueError(
                f"the head of {shape.name!r} does not take its map of {shape.channels} channels and "
                f"{shape.grid[0]}x{shape.grid[1]} positions ({error}); make it for that many, or pass a larger "
                "example."
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim == 0 or len(logits) != 2:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the head of {shape.name!r} makes {found} of 2 maps; let it return a tensor of logits with the "
                "batch first."
            )


def _pooled_name(denoiser: Denoiser, pooled: str | None) -> str:
    if pooled is None and isinstance(denoiser, DiffusersDenoiser):
        pooled = denoiser.adapter.pooled_text
    if pooled is None:
        raise ValueError(
            "conditioning on text needs pooled text, which this backbone's Condition does not have; leave 'text' "
            "out of conditioning, or name a tensor (B, D) of yours by pooled=."
        )
    return pooled


def _pooled(condition: Condition, name: str) -> Tensor:
    text = condition.tensors.get(name)
    if text is None or text.ndim != 2:
        found = "none" if text is None else f"one of shape {tuple(text.shape)}"
        raise ValueError(
            f"the heads are conditioned on the pooled text {name!r} (B, D), and the Condition has {found}; encode "
            "the prompts with the network's own pipeline, or leave 'text' out of conditioning."
        )
    return text
