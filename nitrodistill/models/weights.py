"""The weights that act in a network, under plain names, and their fingerprint.

What stands around a network (DDP, torch.compile, activation checkpointing) changes the names of its weights and
not what it draws, so it is left out. What acts beside its own weights (LoRA that was loaded and not fused) changes
what it draws and belongs to it.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from nitrodistill.models.wrappers import plain_name, role_in, unwrapped


def fingerprint(module: nn.Module) -> str:
    """A hex hash of all that makes a network draw what it draws: which teacher made a store.

    These are its weights (plain names, shapes, dtypes, bytes), the settings of its config that are not the class's
    defaults, and adapters that act on it, such as LoRA that was loaded and not fused, with their scales. Wrappers
    and LoRA roles (`add_lora`) do not count: the base is what it was without them. The fingerprint of a role is
    made of the base's, its own weights and its scale.

    The hash (xxh3, 128 bits) tells networks apart; it is no protection against a forger. It runs at the speed of
    memory, so that there is nothing to be gained by keeping it. Weights that processes share out (FSDP2) count
    whole; all of them must call it then.

    Args:
        module: a network, wrapped or not, or a LoRA role.
    """
    digest, role = xxhash.xxh3_128(), role_in(module)
    network = unwrapped(module)
    facts = [f"config:{json.dumps(_settings(network), sort_keys=True, default=str)}"]
    weights = acting_weights(network)
    if role is None:
        facts += _adapter_facts(network)
    else:
        weights |= {plain_name(name): value for name, value in role.state_dict().items()}
        facts.append(f"LoRA, scale {role.scale}")
    digest.update(";".join(facts).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype};".encode())
        for part in _plain_tensors(value):
            digest.update(part.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def acting_weights(module: nn.Module) -> dict[str, Tensor]:
    """What acts when a network is called, by plain name: its own weights, and those of active adapters.

    An adapter is named by its place among the active ones, `.lora_A.0.weight`; one that is off, merged into the
    weights, or a LoRA role between its calls, is not there.
    """
    network = unwrapped(module)
    of_adapters: set[str] = set()
    acting: dict[str, Tensor] = {}
    for place, layer in adapter_layers(network).items():
        active = acting_adapters(layer)
        for kind in layer.adapter_layer_names:
            of_adapters.add(f"{place}.{kind}")
            for name, value in getattr(layer, kind).state_dict().items():
                adapter, _, rest = name.partition(".")
                if adapter in active:
                    acting[f"{place}.{kind}.{active.index(adapter)}.{rest}"] = value
    own = {plain_name(name): value for name, value in network.state_dict().items()}
    return acting | {
        name.replace(".base_layer.", "."): value
        for name, value in own.items()
        if of_adapters.isdisjoint(accumulate(name.split("."), "{}.{}".format))
    }


def hollow(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    """A diffusers network of a config: weights without values (the meta device), constants with theirs.

    Constants that are no buffers (Qwen-Image's rotary frequencies) would have none if all were made there.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return kind.from_config(config)


def rebuilt(
    network: nn.Module, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> nn.Module:
    """A network of the same class with another config and these weights, which it shares."""
    made = hollow(type(network), config)
    made.load_state_dict(weights, assign=True)
    return made.to(next(iter(weights.values())).device).train(network.training)


def adapter_layers(network: nn.Module) -> dict[str, Any]:
    """The layers that adapters of peft were put around, by plain name."""
    if "peft" not in sys.modules:  # then there are none
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {plain_name(n): m for n, m in network.named_modules() if isinstance(m, BaseTunerLayer)}


def acting_adapters(layer: Any) -> list[str]:
    """The names of the adapters that add something to a layer's own weights when it is called."""
    return [] if layer.disable_adapters or layer.merged else list(layer.active_adapters)


def _adapter_facts(network: nn.Module) -> list[str]:
    """What acts of adapters and is no weight."""
    facts = []
    for place, layer in adapter_layers(network).items():
        for i, adapter in enumerate(acting_adapters(layer)):
            for name in ("scaling", "use_dora"):
                known = getattr(layer, name, {})
                if known.get(adapter):
                    facts.append(f"{place}.{name}.{i}:{known[adapter]}")
    return facts


def _settings(network: nn.Module) -> dict[str, Any]:
    """A diffusers network's config where it is not the default: newer versions add settings, with defaults."""
    config = getattr(network, "config", None)
    if not isinstance(config, dict):
        return {}
    defaults = inspect.signature(type(network).__init__).parameters

    def is_default(key: str, value: object) -> bool:
        return key in defaults and _listed(defaults[key].default) == _listed(value)

    known = {key: value for key, value in config.items() if not key.startswith("_")}
    return {key: value for key, value in known.items() if not is_default(key, value)}


def _listed(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them."""
    return [_listed(part) for part in value] if isinstance(value, (tuple, list)) else value


def _plain_tensors(value: Tensor) -> Iterator[Tensor]:
    """The contiguous tensors on the CPU that a weight is made of: one, but for quantised ones."""
    if type(value).__name__ == "DTensor":  # whose import takes seconds
        value = value.full_tensor()  # type: ignore[operator]
    if is_traceable_wrapper_subclass(value):
        names, _ = value.__tensor_flatten__()  # type: ignore[attr-defined]
        for name in names:
            yield from _plain_tensors(getattr(value, name))
    else:
        yield value.detach().cpu().contiguous()
