"""One more number that a network takes next to its timestep: the scale of guidance, or how far its step goes.

    guidance    the scale; features of w = scale - 1 as diffusers' pipelines make them (Meng et al. 2023, LCM)
    interval    how far a step goes on the way to the data, in [0, 1]; sin(omega d) and cos(omega d) - 1, which are
                all 0 at d = 0: a network that is given no interval is the plain one

The number enters where the timestep does, by a linear map of its features without a bias, diffusers' own
`cond_proj` (`time_cond_proj_dim`). It is zero at first, so that the network begins as what it was. A network's
input stands in its config, so that a checkpoint brings it back; `baked` makes a plain network that draws alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nitrodistill.models.weights import rebuilt
from nitrodistill.models.wrappers import running
from nitrodistill.types import Condition

Input = Literal["guidance", "interval"]
INPUTS: tuple[str, ...] = get_args(Input)

_KEY = "nitrodistill_input"
"""The entry of a network's config: {name: its value where the condition does not say}."""
_FEATURES = 256
_GIVEN = "_nitrodistill_given"


def add_input(network: nn.Module, name: Input, default: float) -> None:
    """Gives a diffusers network, in place, an input for a number; one that has it already gets the new default.

    Args:
        network: bare.
        name: the number's, under which a Condition holds it, `(B,)`.
        default: its value where a Condition does not hold it.

    Raises:
        ValueError: if it has no embedding of timesteps, or that has an input already.
    """
    known, kind = input_of(network), type(network).__name__
    if known and name not in known:
        raise ValueError(
            f"this {kind} takes {next(iter(known))!r} already, so it cannot take {name!r} too; use one of "
            "them."
        )
    embeddings = _embeddings(network)
    if not embeddings or (not known and any(e.cond_proj is not None for e in embeddings)):
        lacks = "has an input next to its timestep" if embeddings else "has no TimestepEmbedding"
        raise ValueError(
            f"this {kind} cannot take {name!r}: it {lacks}; leave out what asks for it (guidance_range, or a "
            "flow map)."
        )
    for embedding in embeddings if not known else ():
        like: Any = embedding.linear_1.weight
        embedding.cond_proj = nn.Linear(
            _FEATURES,
            embedding.linear_1.in_features,
            bias=False,
            device=like.device,
            dtype=like.dtype,
        )
        nn.init.zeros_(embedding.cond_proj.weight)
        embedding.register_forward_pre_hook(_pass_on, with_kwargs=True)
    configured: Any = network
    configured.register_to_config(**{_KEY: {name: default}})


def input_of(network: nn.Module) -> dict[str, float]:
    """The number that a network takes: {name: default}; {} for a plain one."""
    config: Any = getattr(network, "config", {})
    return dict(config.get(_KEY, {})) if isinstance(config, Mapping) else {}


def built(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    """A network of a diffusers class from a config that may hold an input."""
    network = kind.from_config({k: v for k, v in config.items() if k != _KEY})
    for name, default in config.get(_KEY, {}).items():
        add_input(network, name, default)
    return network


@contextmanager
def giving(
    network: nn.Module, condition: Condition, x_t: Tensor, dtype: torch.dtype
) -> Iterator[None]:
    """Gives a network its number inside of the block, and again where a checkpointed block of it is recomputed.

    Args:
        network: bare.
        condition: holds the number, `(B,)`, or leaves it to the default.
        x_t: `(B, ...)`, the network's input.
        dtype: in which the network computes.
    """
    known = input_of(network)
    if not known:
        yield
        return
    ((name, default),) = known.items()
    value = condition.tensors.get(name)
    if value is None:
        value = torch.tensor(default, dtype=torch.float64)
    value = value.to(x_t.device, torch.promote_types(dtype, torch.float32)).expand(len(x_t))
    features, embeddings = _features(name, value).to(dtype), _embeddings(network)

    @contextmanager
    def given() -> Iterator[None]:
        for embedding in embeddings:
            setattr(embedding, _GIVEN, features)
        try:
            yield
        finally:
            for embedding in embeddings:
                setattr(embedding, _GIVEN, None)

    with running(given):
        yield


def baked(network: nn.Module, value: float) -> nn.Module:
    """A plain network that draws as this one does when it is always given the same number; weights may be shared.

    The map of its features is a constant, which joins the bias of the layer behind it.

    Raises:
        ValueError: if that layer has no bias.
    """
    ((name, _),) = input_of(network).items()
    weights = network.state_dict()
    for path, module in network.named_modules():
        if not _is_embedding(path, module):
            continue
        embedding: Any = module
        if embedding.linear_1.bias is None:
            raise ValueError(
                f"the timestep embedding of this {type(network).__name__} has no bias, so {name!r} cannot be "
                "baked into it; draw with nitrodistill.sample."
            )
        first: Any = embedding.linear_1
        features = _features(name, torch.tensor([value])).to(first.weight)
        constant = first.weight @ embedding.cond_proj(features)[0]
        weights[f"{path}.linear_1.bias"] = (first.bias + constant).detach()
        del weights[f"{path}.cond_proj.weight"]
    config: Any = network.config  # type: ignore[attr-defined]
    return rebuilt(network, {k: v for k, v in config.items() if k != _KEY}, weights)


def _features(name: str, value: Tensor) -> Tensor:
    """`(B,)` -> `(B, 256)`, float32 (of float64 float64)."""
    half = torch.arange(_FEATURES // 2, device=value.device, dtype=value.dtype)
    if name == "guidance":
        omega = torch.exp(-math.log(10000.0) / (_FEATURES // 2 - 1) * half)
        phase = 1000 * (value - 1)[:, None] * omega
        return torch.cat([phase.sin(), phase.cos()], dim=1)
    omega = math.pi / 2 * 32 ** (half / (_FEATURES // 2 - 1))
    phase = value[:, None] * omega
    return torch.cat([phase.sin(), phase.cos() - 1], dim=1)


def _embeddings(network: nn.Module) -> list[Any]:
    return [module for path, module in network.named_modules() if _is_embedding(path, module)]


def _is_embedding(path: str, module: nn.Module) -> bool:
    """Whether it embeds the timestep: the same class embeds Flux's guidance and other numbers."""
    last = path.rpartition(".")[2]
    return type(module).__name__ == "TimestepEmbedding" and last in (
        "time_embedding",
        "timestep_embedder",
    )


def _pass_on(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    features = getattr(module, _GIVEN, None)
    if features is None:
        return args, kwargs
    return (args[0], features), {}
