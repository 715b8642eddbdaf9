"""The convolutional stack that LatentLPIPS compares latents in, and the files that it is read from.

VGG-16 with the first convolution on the latent's channels and without the first three max-pools, since a latent is
eight times smaller than its picture (Kang et al. 2024, arXiv 2405.05967, section 3.2). Three layouts are read:

    elatentlpips        features.N or net.sliceK.N, heads linK: batch norm, the last two pools behind blocks 4
                        and 5, so that taps 4 and 5 have half and a quarter of the side
    SNU's e-latentlpips features.N or sliceK.N, heads linearK: pools before blocks 4 and 5, group norm of 32
                        groups, or batch norm
    fit-latent-lpips    blocks.K.N, heads K: pools before all blocks but the first

Batch norm is folded into the convolution before it: with s = g / sqrt(v + 1e-5), W' = W s, b' = (b - m) s + beta.
A head's negative channel weights count as 0. The two public packages' weights are for non-commercial use only, and
none comes with this one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.losses.winograd import Conv3x3

_WIDTHS = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
# Where the convolutions stand in `features`: pools, and what stands in for them, take a number too.
_BEHIND = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
_BEFORE = (0, 3, 6, 9, 12, 15, 18, 22, 25, 28, 32, 35, 38)
_LAYER = re.compile(r"(?:features|slice\d)\.(\d+)\.(\w+)")
_HEAD = re.compile(r"(?:lin|linear|heads\.)(\d)(?:\.model\.\d\.weight)?")
_PREFIX = re.compile(r"^(?:(?:module|net|model|backbone)\.)+")
_NONE = torch.empty(0)


class LatentTrunk(nn.Module):
    """Features of a latent after each block of 3x3 convolutions, frozen.

    Attributes:
        channels: of the latents.

    Args:
        channels: of the latents.
        widths: of each block, the channels of its convolutions.
        before: numbers of the blocks with a max-pool before them.
        behind: of those with one behind them; the features are taken there.
        groups: of a group norm behind each convolution; 0 has none.
    """

    channels: int

    def __init__(
        self,
        channels: int,
        widths: Sequence[Sequence[int]] = _WIDTHS,
        *,
        before: Collection[int] = (),
        behind: Collection[int] = (3, 4),
        groups: int = 0,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.blocks: nn.ModuleList = nn.ModuleList()
        for index, of_block in enumerate(widths):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if index in before else []
            for width in of_block:
                layers.append(Conv3x3(channels, width))
                layers += [nn.GroupNorm(groups, width)] if groups else []
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers += [nn.MaxPool2d(2)] if index in behind else []
            self.blocks.append(nn.Sequential(*layers))
        self._smallest = 2 ** (len(before) + len(behind))
        self.requires_grad_(False)

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        """The features of latents `(B, C, H, W)`, the shallowest first.

        Raises:
            ValueError: for another number of channels, or a side that the pools leave nothing of.
        """
        if latents.shape[1] != self.channels or min(latents.shape[-2:]) < self._smallest:
            raise ValueError(
                f"the latents are {tuple(latents.shape)}; this trunk needs {self.channels} channels and sides of "
                f"{self._smallest} or more."
            )
        taps, x = [], latents.to(next(self.parameters()).dtype)
        for block in self.blocks:
            x = block(x)
            taps.append(x)
        return tuple(taps)


def read_latent_trunk(
    state: Mapping[str, Any], source: str = "the weights"
) -> tuple[LatentTrunk, tuple[Tensor, ...]]:
    """The trunk of a state dict in one of the three layouts, and its heads, none where it holds none.

    Args:
        state: names and weights, or a mapping with them at "state_dict".
        source: what they are called, for the message.

    Raises:
        ValueError: if it is of none of them, or one of its weights lacks or has another shape.
    """
    tensors = _tensors(state)
    read = _fitted if any(key.startswith("blocks.") for key in tensors) else _published
    try:
        return read(tensors), read_heads(tensors)
    except (IndexError, KeyError, RuntimeError, ValueError) as error:
        cause = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(
            f"{source} are of no latent trunk, or damaged ({cause[:200].rstrip('.')}); give a file of "
            "elatentlpips, of SNU's e-latentlpips, or of `nitrodistill fit-latent-lpips`."
        ) from error


def read_heads(state: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The channel weights `(C_l,)` in a state dict of one of the three layouts, the shallowest first."""
    named = ((_HEAD.fullmatch(key), value) for key, value in _tensors(state).items())
    heads = {int(match[1]): value.flatten() for match, value in named if match}
    return tuple(heads[k] for k in sorted(heads))


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict by their names, without what wrappers put before them."""
    inner = state.get("state_dict")
    named = (inner if isinstance(inner, Mapping) else state).items()
    return {_PREFIX.sub("", str(key)): v for key, v in named if isinstance(v, Tensor)}


def _published(state: Mapping[str, Tensor]) -> LatentTrunk:
    layers: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if layer := _LAYER.fullmatch(key):
            layers.setdefault(int(layer[1]), {})[layer[2]] = value
    places = tuple(sorted(i for i, one in layers.items() if one.get("weight", _NONE).ndim == 4))
    if places not in (_BEHIND, _BEFORE):
        raise ValueError(
            f"its convolutions stand at {list(places)}, and those of a VGG-16 on latents at {list(_BEHIND)} or "
            f"{list(_BEFORE)}"
        )
    norms = [layers.get(i + 1, {}) for i in places]
    folded = "running_var" in norms[0]
    grouped = bool(norms[0]) and not folded
    pools: dict[str, Any] = (
        {"behind": (3, 4)} if places == _BEHIND else {"before": (3, 4), "behind": ()}
    )
    trunk = LatentTrunk(layers[0]["weight"].shape[1], **pools, groups=32 if grouped else 0)
    trunk.to(torch.promote_types(layers[0]["weight"].dtype, torch.float32))
    own = [m for m in trunk.modules() if isinstance(m, (nn.Conv2d, nn.GroupNorm))]
    read = [
        _fold(layers[i], n) if folded else layers[i] for i, n in zip(places, norms, strict=True)
    ]
    if grouped:
        read = [part for pair in zip(read, norms, strict=True) for part in pair]
    for module, values in zip(own, read, strict=True):
        module.load_state_dict(dict(values))
    return trunk


def _fold(layer: Mapping[str, Tensor], norm: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A convolution that does what it and the batch norm behind it did, computed in float64."""
    wide = {key: value.double() for key, value in norm.items()}
    scale = wide["weight"] / (wide["running_var"] + 1e-5).sqrt()
    weight = layer["weight"].double() * scale.view(-1, 1, 1, 1)
    bias = (layer["bias"].double() - wide["running_mean"]) * scale + wide["bias"]
    return {"weight": weight, "bias": bias}


def _fitted(state: Mapping[str, Tensor]) -> LatentTrunk:
    widths: dict[int, list[int]] = {}
    for key, value in state.items():
        if key.startswith("blocks.") and value.ndim == 4:
            widths.setdefault(int(key.split(".")[1]), []).append(value.shape[0])
    channels = state["blocks.0.0.weight"].shape[1]
    trunk = fitted_trunk(channels, [widths[k] for k in sorted(widths)])
    trunk.load_state_dict({k: v for k, v in state.items() if k.startswith("blocks.")})
    return trunk


def fitted_trunk(channels: int, widths: Sequence[Sequence[int]]) -> LatentTrunk:
    """A trunk with random weights, with a max-pool before all blocks but the first: what the fit trains."""
    return LatentTrunk(channels, widths, before=range(1, len(widths)), behind=())
