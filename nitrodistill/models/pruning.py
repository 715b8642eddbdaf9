"""Fewer blocks: a smaller network of the same class, with the weights of a larger one.

    prune(network, "bk-small")
    prune(network, PruneSpec({"transformer_blocks": (0, 2, 4, 6)}))

A spec says which indices stay of which lists of blocks; lists that it does not name stay whole. Each weight of
the smaller network is one of the larger (`weight_map`), none is new, and its config is what diffusers builds it
from. What a spec may say is in the family's adapter (`Adapter.pruned`; of UNets `adapters.unet_blocks`).
Published ones:

    bk-base, bk-small, bk-tiny   Kim et al. 2023, BK-SDM (arXiv 2305.15798), for Stable Diffusion 1.x and 2.x.
                                 bk-base is also Segmind's small-sd, bk-tiny its tiny-sd
    ssd-1b, vega                 Gupta et al. 2024, "Progressive Knowledge Distillation of Stable Diffusion XL
                                 Using Layer Level Loss" (arXiv 2401.02677)

Departure: which of their transformer blocks SSD-1B and Vega keep, and which resnet of the mid block, is not
published, only how many; the first ones are kept here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor, nn

from nitrodistill.checks import check_fields
from nitrodistill.models.adapters import Adapter, adapter_for
from nitrodistill.models.denoiser import DiffusersDenoiser, check_wide, trainable
from nitrodistill.models.weights import adapter_layers, hollow
from nitrodistill.models.wrappers import has_roles, plain_name, unwrapped
from nitrodistill.settings import build, nearest, shown

PRESETS: tuple[str, ...] = ("bk-base", "bk-small", "bk-tiny", "ssd-1b", "vega")
"""The published specs."""

_DROPPED = ("downsamplers", "upsamplers")
"""What the last level down and the last level up do without."""


@dataclass(frozen=True)
class PruneSpec:
    """Which blocks stay.

    Attributes:
        keep: dotted name of a list of blocks in the whole network -> the indices that stay, ascending, in the
            whole network's numbering. `mid_block: []` leaves a UNet's mid block out.

    Raises:
        TypeError: if it is no mapping from names to whole numbers.
        ValueError: if it names nothing, or indices that are negative, twice or not ascending.

    Example:
        >>> PruneSpec({"transformer_blocks": (0, 1, 3)}).keep["transformer_blocks"]
        (0, 1, 3)
    """

    keep: dict[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.keep:
            raise ValueError("keep is empty; name a list of blocks and the indices that stay.")
        for name, indices in self.keep.items():
            if list(indices) != sorted(set(indices)) or any(i < 0 for i in indices):
                raise ValueError(
                    f"{name} keeps {list(indices)}; give indices from 0, ascending, each once."
                )

    @classmethod
    def without(
        cls, network: nn.Module | DiffusersDenoiser, names: str | Iterable[str]
    ) -> PruneSpec:
        """The spec that removes some parts and keeps the rest.

        Args:
            network: the whole network, or a denoiser around it.
            names: of blocks ("transformer_blocks.3"), whole lists ("up_blocks.0.attentions") or "mid_block".

        Raises:
            ValueError: if the network has no such part, or no name is given.
        """
        whole = network.module if isinstance(network, DiffusersDenoiser) else network
        modules = dict(unwrapped(whole).named_modules())
        keep: dict[str, set[int]] = {}
        for name in [names] if isinstance(names, str) else names:
            if modules.get(name) is None:
                raise ValueError(f"the network has no {name!r}; {nearest(name, modules)}")
            parent, _, last = name.rpartition(".")
            if last.isdecimal():
                keep.setdefault(parent, set(range(_length(modules[parent])))).discard(int(last))
            else:
                keep[name] = set()
        return cls({name: tuple(sorted(indices)) for name, indices in keep.items()})


@overload
def prune(network: DiffusersDenoiser, spec: str | PruneSpec) -> DiffusersDenoiser: ...
@overload
def prune(network: nn.Module, spec: str | PruneSpec) -> nn.Module: ...
def prune(
    network: nn.Module | DiffusersDenoiser, spec: str | PruneSpec
) -> nn.Module | DiffusersDenoiser:
    """A smaller network with copies of the weights of the blocks that stay.

    On the device of the network, the meta device too; in its dtype and mode, and trainable (a denoiser's but
    for weights that its prediction does not depend on). `save_pretrained` writes it with its own config, and
    `from_pretrained` loads it.

    Args:
        network: a diffusers network of a known family, or a denoiser around one; it stays as it is.
        spec: one of `PRESETS`, or what to keep.

    Raises:
        TypeError: if its family cannot be pruned.
        ValueError: if the spec does not fit the network, or the network carries LoRA or 8-bit weights.

    Example:
        >>> spec = nd.PruneSpec.without(teacher.denoiser, "mid_block")
        >>> nd.prune(teacher.denoiser, spec).network.mid_block is None
        True
    """
    if isinstance(network, DiffusersDenoiser):
        return trainable(
            network.with_module(pruned_network(network.network, spec, network.adapter))
        )
    return pruned_network(unwrapped(network), spec)


def parse_spec(value: object) -> str | PruneSpec:
    """What a recipe says below `prune`, checked as far as it can be without a network.

    Raises:
        ValueError: if it is neither a known name nor `{keep: {list of blocks: indices}}`.
    """
    if isinstance(value, PruneSpec):
        return value
    if isinstance(value, str):
        if value not in PRESETS:
            raise ValueError(f"there is no spec {shown(value)}; {nearest(value, PRESETS)}")
        return value
    if isinstance(value, Mapping):
        return build(PruneSpec, value, "prune")
    raise ValueError(
        f"prune is {shown(value)}; give one of {', '.join(PRESETS)}, or keep: {{LIST OF BLOCKS: [INDICES]}}."
    )


def spec_for(network: nn.Module, spec: str | PruneSpec) -> PruneSpec:
    """The spec itself, or a published one as it is for this network.

    Raises:
        ValueError: if there is none of that name, or it is for another network.
    """
    spec = parse_spec(spec)
    return spec if isinstance(spec, PruneSpec) else PruneSpec(_published(spec, network))


def weight_map(network: nn.Module, spec: str | PruneSpec) -> dict[str, str]:
    """Name of a weight or buffer in the smaller network -> its name in the whole one; all of them.

    Raises:
        TypeError, ValueError: as `prune`.
    """
    bare = unwrapped(network)
    keep, _ = _planned(bare, adapter_for(bare), spec)
    return _names(bare, keep)


def module_map(network: nn.Module, spec: str | PruneSpec) -> dict[str, str]:
    """Name of a submodule of the whole network -> its name in the smaller one; of those that stay.

    Raises:
        TypeError, ValueError: as `prune`.
    """
    bare = unwrapped(network)
    keep, _ = _planned(bare, adapter_for(bare), spec)
    pairs = ((name, _moved(name, keep)) for name, _ in bare.named_modules() if name)
    return {name: new for name, new in pairs if new is not None}


def pruned_network(
    network: nn.Module, spec: str | PruneSpec, adapter: Adapter | None = None, *, copy: bool = True
) -> nn.Module:
    """See `prune`.

    Args:
        network: bare.
        spec: see there.
        adapter: of a network of no known family.
        copy: False shares the weights with the whole network, to look at what is left.
    """
    if adapter_layers(network) or has_roles(network):
        raise ValueError(
            f"this {type(network).__name__} carries LoRA; merge it first (fuse_lora, or "
            "nitrodistill.models.merged)."
        )
    check_wide(network, "cannot be pruned and trained: load the network in float32")
    keep, config = _planned(network, adapter or adapter_for(network), spec)
    student = hollow(type(network), config)
    names = _names(network, keep)
    tensors, places = _tensors(network), _tensors(student)
    _check_fit(tensors, places, names)
    own = student.state_dict()
    chosen = {
        name: tensors[before].detach().clone() if copy else tensors[before].detach()
        for name, before in names.items()
        if name in places
    }
    student.load_state_dict({name: chosen[name] for name in own}, assign=True)
    for name in chosen.keys() - own.keys():  # buffers that are not saved
        path, _, last = name.rpartition(".")
        setattr(student.get_submodule(path), last, chosen[name])
    return student.requires_grad_(copy).train(network.training)


def _planned(
    network: nn.Module, adapter: Adapter, spec: str | PruneSpec
) -> tuple[Mapping[str, tuple[int, ...]], dict[str, Any]]:
    """All that stays, and the smaller network's config."""
    given = spec_for(network, spec).keep
    modules = dict(network.named_modules())
    for name, indices in given.items():
        if modules.get(name) is None:
            raise ValueError(
                f"keep names {name!r}, which the network lacks; {nearest(name, modules)}"
            )
        length = _length(modules[name])
        if indices and indices[-1] >= length:
            raise ValueError(
                f"{name} keeps {list(indices)}, but it has {length} blocks, counted from 0."
            )
    keep, changes = adapter.pruned(network, given)
    plain: Any = network
    config = {key: value for key, value in plain.config.items() if not key.startswith("_")}
    return keep, config | changes


def _length(module: nn.Module) -> int:
    """How many blocks a list holds; a block that is no list counts as one."""
    return len(module) if isinstance(module, nn.ModuleList) else 1


def _names(network: nn.Module, keep: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    pairs = ((_moved(name, keep), name) for name in _tensors(network))
    return {new: name for new, name in pairs if new is not None}


def _moved(name: str, keep: Mapping[str, tuple[int, ...]]) -> str | None:
    """The name in the smaller network; None if it is not there."""
    before, after = "", []
    for part in name.split("."):
        kept = keep.get(before)
        before = f"{before}.{part}" if before else part
        if kept is not None and part.isdecimal():
            if int(part) not in kept:
                return None
            part = str(kept.index(int(part)))
        if keep.get(before) == ():
            return None
        after.append(part)
    return ".".join(after)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers, also those that are not saved."""
    named = (*network.named_parameters(), *network.named_buffers())
    return {plain_name(name): tensor for name, tensor in named}


def _check_fit(
    whole: Mapping[str, Tensor], student: Mapping[str, Tensor], names: Mapping[str, str]
) -> None:
    """All that the smaller network has comes from the whole one, in its shape, and nothing is left over."""
    for name, tensor in student.items():
        if name not in names:
            raise ValueError(
                f"the smaller network would have a {name!r}, for which the whole one has no weight: diffusers "
                "builds another block at that place. Keep the blocks that change widths or sizes."
            )
        before = whole[names[name]]
        if before.shape != tensor.shape:
            raise ValueError(
                f"{names[name]!r} of the whole network has shape {tuple(before.shape)}, but in its place {name!r} "
                f"of the smaller one has {tuple(tensor.shape)}: it takes another width, of the block before it or "
                "of a skip connection. Keep the first layer of a level, and the first and the last one up."
            )
    for name in names.keys() - student.keys():
        if not any(part in _DROPPED for part in name.split(".")):
            raise ValueError(
                f"{names[name]!r} is kept, but diffusers builds no such part into the smaller network; leave its "
                "block out too."
            )


def _published(name: str, network: nn.Module) -> dict[str, tuple[int, ...]]:
    modules = dict(network.named_modules())

    def lengths(pattern: str, parts: Sequence[int]) -> list[int]:
        found = (modules.get(pattern.format(i)) for i in parts)
        return [0 if module is None else _length(module) for module in found]

    if name.startswith("bk-"):
        layers = lengths("down_blocks.{}.resnets", range(5))
        if layers != [2, 2, 2, 2, 0] or modules.get("mid_block") is None:
            raise ValueError(
                f"{name} is for UNets of four levels with two layers each and a mid block (Stable Diffusion 1.x "
                f"and 2.x), and the levels of this {type(network).__name__} have {_levels(layers)}; give a "
                "PruneSpec."
            )
        return _bk_sdm(name)
    depths = [
        lengths(f"{block}.attentions.{{}}.transformer_blocks", range(4))
        for block in ("down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1")
    ]
    if depths != [[2, 2, 0, 0], [10, 10, 0, 0], [10, 0, 0, 0], [10, 10, 10, 0], [2, 2, 2, 0]]:
        raise ValueError(
            f"{name} is for SDXL's UNet, with 2, 10, 10, 10 and 2 transformer blocks in its attentions, and this "
            f"{type(network).__name__} has others; give a PruneSpec."
        )
    return _sdxl(*_SDXL[name])


def _levels(layers: list[int]) -> str:
    found = ", ".join(str(count) for count in layers if count)
    return f"{found} layers" if found else "none"


def _bk_sdm(name: str) -> dict[str, tuple[int, ...]]:
    """Layer 1 goes down, and the middle one up; of bk-small the mid block too; of bk-tiny the innermost level."""
    keep: dict[str, tuple[int, ...]] = {}
    for level in range(4):
        keep |= {f"down_blocks.{level}.resnets": (0,), f"up_blocks.{level}.resnets": (0, 2)}
    if name != "bk-base":
        keep["mid_block"] = ()
    if name == "bk-tiny":
        keep |= {"down_blocks": (0, 1, 2), "up_blocks": (1, 2, 3)}
    return keep


_Depths = tuple[int, ...]
_SDXL: dict[str, tuple[_Depths, _Depths, _Depths, _Depths]] = {
    "ssd-1b": ((2, 2), (4, 4), (4, 4, 10), (2, 1, 1)),
    "vega": ((1, 1), (2, 2), (2, 2, 2), (1, 1, 1)),
}
"""Transformer blocks of the attentions of down_blocks.1, down_blocks.2, up_blocks.0 and up_blocks.1."""


def _sdxl(*depths: _Depths) -> dict[str, tuple[int, ...]]:
    blocks = ("down_blocks.1", "down_blocks.2", "up_blocks.0", "up_blocks.1")
    keep: dict[str, tuple[int, ...]] = {
        f"{block}.attentions.{k}.transformer_blocks": tuple(range(depth))
        for block, attentions in zip(blocks, depths, strict=True)
        for k, depth in enumerate(attentions)
    }
    return keep | {"mid_block.attentions": (), "mid_block.resnets": (0,)}
