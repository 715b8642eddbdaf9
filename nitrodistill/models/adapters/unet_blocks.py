"""Which blocks of a UNet may go, and how diffusers' config says what is left.

A UNet is levels down, a mid block, and the same levels up. Each level down has n layers and the level up n + 1,
one for each map that it is handed across. So

    levels   go on both sides (`down_blocks` [0, 1, 2] and `up_blocks` [1, 2, 3] of four)
    layers   too: n kept in `down_blocks.i.resnets`, n + 1 in `up_blocks.j.resnets`
    attention behind the layers goes with them, or all of a block's (`attentions` [])
    depths   `...attentions.k.transformer_blocks`, each list by itself
    mid      `mid_block` [], or its first resnet alone (`mid_block.attentions` [])

What the config cannot say is refused. Whether widths fit is seen by `prune`, which builds the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nitrodistill.models.adapters.base import Adapter

_PER_LEVEL = (
    "down_block_types",
    "block_out_channels",
    "attention_head_dim",
    "num_attention_heads",
    "cross_attention_dim",
    "only_cross_attention",
)
_ATTENTION = ("CrossAttn", "Attn")
_MID = "mid_block"

Keep = Mapping[str, tuple[int, ...]]


class UNetBlocksAdapter(Adapter):
    """A UNet of which blocks may go."""

    def pruned(
        self, network: nn.Module, keep: Keep
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
        """Levels, layers, attention and its depths, and the mid block: see the module."""
        config: Any = network.config
        blocks = _Blocks(network, keep)
        downs, ups = blocks.kept("down_blocks"), blocks.kept("up_blocks")
        levels = len(config["down_block_types"])
        if not downs or not ups:
            raise ValueError("the spec keeps no level of the UNet; keep at least one, down and up.")
        across = tuple(levels - 1 - i for i in reversed(downs))
        if ups != across:
            raise ValueError(
                f"down_blocks keep {list(downs)} and up_blocks {list(ups)}, but each level down hands its maps to "
                f"the level up across from it (skip connections): keep {list(across)} up."
            )
        for up, down in zip(ups, reversed(downs), strict=True):
            _check_layers(blocks, f"down_blocks.{down}", f"up_blocks.{up}")
        changes: dict[str, Any] = {}
        for key in _PER_LEVEL:
            if isinstance(config.get(key), (list, tuple)):
                changes[key] = [config[key][i] for i in downs]
        for side, kept in (("down", downs), ("up", ups)):
            types = config[f"{side}_block_types"]
            changes[f"{side}_block_types"] = [
                blocks.type(f"{side}_blocks.{i}", types[i]) for i in kept
            ]
        layers = [len(blocks.kept(f"down_blocks.{i}.resnets")) for i in downs]
        changes["layers_per_block"] = layers[0] if len(set(layers)) == 1 else layers
        if isinstance(changes["layers_per_block"], list) and isinstance(
            config["layers_per_block"], int
        ):
            _check_lists(network, layers)
        changes |= _mid(blocks, config)
        if "transformer_layers_per_block" in config:
            changes |= _depths(blocks, config, downs, ups)
        return blocks.keep, changes

    def removable(self, network: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Transformer blocks, the attention of a block, a layer down with its layer up, the mid block.

        Those that do not work out (the only layer of a level) are among them.
        """
        unet: Any = network
        found: list[tuple[str, ...]] = []
        levels, names = len(unet.down_blocks), {name for name, _ in network.named_modules()}
        for i, block in enumerate(unet.down_blocks):
            across = f"up_blocks.{levels - 1 - i}"
            # the first changes the width; so may the first and last up
            for j in range(1, len(block.resnets)):
                found.append((f"down_blocks.{i}.resnets.{j}", f"{across}.resnets.{j}"))
        for name, module in network.named_modules():
            depth = len(list(module.children()))
            if name.endswith(".attentions") and name != "mid_block.attentions" and depth:
                found.append((name,))
            if name.endswith(".transformer_blocks") and depth > 1 and not name.startswith(_MID):
                # the config has one number for the mid block and the last level's first layer
                tied = name == f"down_blocks.{levels - 1}.attentions.0.transformer_blocks"
                mid = [f"{_MID}{name.removeprefix(f'down_blocks.{levels - 1}')}"] if tied else []
                mid = [other for other in mid if other in names]
                found += [tuple(f"{of}.{k}" for of in (name, *mid)) for k in range(depth)]
        if unet.mid_block is not None:
            if any(part is not None for part in getattr(unet.mid_block, "attentions", ())):
                found.append(("mid_block.attentions",))
            found.append((_MID,))
        return tuple(found)


class _Blocks:
    """A UNet's lists of blocks and what stays of each; the attention behind the layers goes with them."""

    def __init__(self, network: nn.Module, keep: Keep) -> None:
        self.keep: dict[str, tuple[int, ...]] = dict(keep)
        self._modules = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, nn.ModuleList)
        }
        for name in keep:
            block, _, last = name.rpartition(".")
            is_level = block.startswith(("down_blocks.", "up_blocks.")) and block.count(".") == 1
            known = (is_level or block == _MID) and last in ("resnets", "attentions")
            if (
                not known
                and last != "transformer_blocks"
                and name not in (_MID, "down_blocks", "up_blocks")
            ):
                raise ValueError(
                    f"keep names {name!r}; of a UNet the levels (down_blocks, up_blocks), a level's `resnets` and "
                    "`attentions`, an attention's `transformer_blocks` and the mid_block can go."
                )
            behind = f"{block}.attentions"
            if is_level and last == "resnets" and self.has_attention(block):
                self.keep.setdefault(behind, keep[name])
        for name in list(self.keep):
            block, _, last = name.rpartition(".")
            if last != "attentions" or block == _MID:
                continue
            layers = self.kept(f"{block}.resnets")
            if self.keep[name] not in ((), layers):
                raise ValueError(
                    f"{name} keeps {list(self.keep[name])} and {block}.resnets {list(layers)}; diffusers has "
                    "attention behind all layers of a block or behind none: keep the same, or []."
                )

    def has_attention(self, block: str) -> bool:
        """Whether there is attention behind the block's layers."""
        return any(part is not None for part in self._modules.get(f"{block}.attentions", ()))

    def kept(self, name: str) -> tuple[int, ...]:
        """The indices that stay of a list."""
        return self.keep.get(name, tuple(range(len(self._modules.get(name, ())))))

    def type(self, block: str, before: str) -> str:
        """diffusers' class of a block: without attention it is another one."""
        if self.keep.get(f"{block}.attentions") != () or not self.has_attention(block):
            return before
        for prefix in _ATTENTION:
            before = before.removeprefix(prefix)
        return before

    def depths(self, block: str) -> list[int]:
        """Transformer blocks of each attention of a block that stays."""
        if not self.has_attention(block):
            return []
        kept = self.kept(f"{block}.attentions")
        return [len(self.kept(f"{block}.attentions.{k}.transformer_blocks")) for k in kept]


def _check_layers(blocks: _Blocks, down: str, up: str) -> None:
    below, above = len(blocks.kept(f"{down}.resnets")), len(blocks.kept(f"{up}.resnets"))
    if below == 0:
        raise ValueError(
            f"{down}.resnets keeps nothing, but nothing leads round a level's layers; keep one, or remove "
            "the level."
        )
    if above != below + 1:
        raise ValueError(
            f"{down} keeps {below} layers and {up} {above}, but a level up takes one map from each layer down and "
            f"one from the level before (skip connections): keep {below + 1} up."
        )


def _check_lists(network: nn.Module, layers: list[int]) -> None:
    if type(network).__name__ == "UNet2DModel":
        raise ValueError(
            f"the levels keep {layers} layers, but UNet2DModel has as many in each; keep the same number."
        )


def _mid(blocks: _Blocks, config: Any) -> dict[str, Any]:
    """The mid block whole, gone, or without attention; what UNet2DConditionModel then builds is one resnet."""
    resnets, attentions = f"{_MID}.resnets", f"{_MID}.attentions"
    if blocks.keep.get(_MID) == ():
        return {"mid_block_type": None}
    if blocks.keep.get(attentions) != () or not blocks.has_attention(_MID):
        if any(name in blocks.keep for name in (resnets, attentions)) and (
            blocks.keep.get(resnets, (0, 1)) != (0, 1) or blocks.keep.get(attentions, (0,)) != (0,)
        ):
            raise ValueError(
                "the mid block is a resnet, attention and a resnet; keep all of it, its first resnet alone "
                "(mid_block.attentions: []), or nothing (mid_block: [])."
            )
        return {}
    if "add_attention" in config:  # UNet2DModel keeps both resnets
        return {"add_attention": False}
    blocks.keep[resnets] = blocks.keep.get(resnets, (0,))
    if len(blocks.keep[resnets]) != 1:
        raise ValueError(
            f"{resnets} keeps {list(blocks.keep[resnets])}, but without attention diffusers builds the mid block "
            "of one resnet; keep [0] or [1]."
        )
    return {"mid_block_type": "UNetMidBlock2D"}


def _depths(
    blocks: _Blocks, config: Any, downs: tuple[int, ...], ups: tuple[int, ...]
) -> dict[str, Any]:
    """`transformer_layers_per_block` and its reverse; the mid block is as deep as the last level's first layer."""
    before = config["transformer_layers_per_block"]
    own = [before] * (max(downs) + 1) if isinstance(before, int) else before
    found = [blocks.depths(f"down_blocks.{i}") for i in downs]
    down = [_short(depths, own[i]) for i, depths in zip(downs, found, strict=True)]
    above = [blocks.depths(f"up_blocks.{i}") for i in ups]
    has_mid = blocks.has_attention(_MID) and () not in (
        blocks.keep.get(_MID), blocks.keep.get(f"{_MID}.attentions")
    )  # fmt: skip
    if has_mid:
        (mid,) = blocks.depths(_MID)
        if not found[-1]:
            down[-1] = mid
        elif found[-1][0] != mid:
            raise ValueError(
                f"the mid block keeps {mid} transformer blocks and the first attention of down_blocks.{downs[-1]} "
                f"{found[-1][0]}, but diffusers' config has one number for both; keep as many, or leave the mid "
                "block's attention out (mid_block.attentions: [])."
            )
    up = [
        _short(depths, _whole(number)) for depths, number in zip(above, reversed(down), strict=True)
    ]
    mirrored = up == list(reversed(down)) and all(isinstance(number, int) for number in down)
    if mirrored and len(set(down)) == 1 and isinstance(before, int):
        return {
            "transformer_layers_per_block": down[0],
            "reverse_transformer_layers_per_block": None,
        }
    return {
        "transformer_layers_per_block": down,
        "reverse_transformer_layers_per_block": None if mirrored else up,
    }


def _short(depths: list[int], otherwise: Any) -> Any:
    """One number where all are equal; of a block without attention what stands there already."""
    if not depths:
        return otherwise
    return depths[0] if len(set(depths)) == 1 else depths


def _whole(number: Any) -> int:
    return number if isinstance(number, int) else number[0]
