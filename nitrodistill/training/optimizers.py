"""Optimizers by name, and what a checkpoint keeps of one.

AdamW                      Loshchilov & Hutter 2019, which the library's rates and recipes are for
SGD, RAdam, NAdam, ...     any class of `torch.optim` that needs no closure
package.module:callable    anybody's: called as callable(weights, lr=..., **settings)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nitrodistill.named import check_settings, import_object
from nitrodistill.settings import nearest
from nitrodistill.training.parallel import laid_out_like, local

if TYPE_CHECKING:
    from nitrodistill.training.config import OptimizerConfig

ADAMW = "adamw"
_OF_ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "eight_bit": False}
"""Settings with a place of their own in the config -> what says that nobody set them."""


def check_optimizer(config: OptimizerConfig) -> dict[str, Any]:
    """The settings of the config's optimizer, checked by name and type; its rate is not among them.

    Raises:
        ValueError: if there is no such optimizer, it has no such setting, or the config sets what only AdamW has.
    """
    kind: Any = _find(config.optimizer)
    if config.optimizer.lower() == ADAMW:
        if config.eight_bit and config.settings:
            raise ValueError(
                f"settings are {config.settings}, which are of torch's AdamW, and eight_bit takes another; leave "
                "one of them out."
            )
        ours = ("params", "lr", "fused", "foreach", "differentiable", *_OF_ADAMW)
        return check_settings(kind, config.settings, "AdamW", without=ours)
    for name, unset in _OF_ADAMW.items():
        if getattr(config, name) != unset:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}, which is of AdamW; write what {config.optimizer} takes "
                "below `settings`."
            )
    return check_settings(kind, config.settings, config.optimizer, without=("params", "lr"))


def make_optimizer(config: OptimizerConfig, weights: Sequence[nn.Parameter]) -> Optimizer:
    """The config's optimizer over some weights.

    Raises:
        ImportError: if it is `eight_bit`, and bitsandbytes is not there.
    """
    options = {"lr": config.learning_rate, **check_optimizer(config)}
    if config.optimizer.lower() != ADAMW:
        return _find(config.optimizer)(list(weights), **options)
    options |= {name: getattr(config, name) for name in ("betas", "eps", "weight_decay")}
    if config.eight_bit:
        return _eight_bit()(list(weights), **options)
    fused = {weight.device.type for weight in weights} <= {"cpu", "cuda"}
    return torch.optim.AdamW(list(weights), **options, fused=fused)


def state_bytes(config: OptimizerConfig, weights: Sequence[nn.Parameter]) -> int | None:
    """Bytes that an optimizer keeps of weights on the meta device; None if it cannot take a step there."""
    copies = [nn.Parameter(torch.empty_like(weight)) for weight in weights]
    for copy in copies:
        copy.grad = torch.empty_like(copy)
    optimizer = make_optimizer(config, copies)
    try:
        optimizer.step()
    except (RuntimeError, NotImplementedError):
        return None
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def state_tensors(optimizer: Optimizer, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """An optimizer's state as "key:weight" -> tensor; a plain number becomes one of 64 bits."""
    states = ((name, optimizer.state.get(weight, {})) for name, weight in weights.items())
    flat = {f"{key}:{name}": value for name, state in states for key, value in state.items()}
    return {label: _as_tensor(value) for label, value in flat.items() if value is not None}


def load_state(
    optimizer: Optimizer, weights: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """The reverse of `state_tensors`."""
    for label, value in tensors.items():
        key, name = label.split(":", 1)
        weight = weights[name]
        optimizer.state[weight][key] = _state_value(value, weight)


def group_numbers(optimizer: Optimizer) -> list[dict[str, object]]:
    """What an optimizer keeps beside its state of each weight, such as how often it was called."""
    plain = (bool, int, float, str)
    return [
        {k: v for k, v in group.items() if isinstance(v, plain) and k != "lr"}
        for group in optimizer.param_groups
    ]


def _find(name: str) -> Callable[..., Optimizer]:
    if ":" in name:
        made: Any = import_object(name, "optimizer")
        if not callable(made):
            raise ValueError(f"the optimizer {name!r} cannot be called; give module:Class.")
        return cast("Callable[..., Optimizer]", made)
    known = {n: kind for n, kind in vars(torch.optim).items() if _is_usable(kind)}
    found = next((kind for n, kind in known.items() if n.lower() == name.lower()), None)
    if found is None:
        raise ValueError(f"there is no optimizer {name!r}; {nearest(name, known)}")
    return found


def _is_usable(kind: object) -> bool:
    """Whether it is an optimizer that needs no closure, of dense gradients."""
    if not inspect.isclass(kind) or not issubclass(kind, Optimizer):
        return False
    return kind not in (Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)


def _eight_bit() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "eight_bit needs bitsandbytes: `pip install bitsandbytes`, or leave it out of the "
            f"optimizer's settings ({error})."
        ) from error
    return AdamW8bit


def _as_tensor(value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, (bool, int, float)):
        raise ValueError(
            f"the optimizer keeps a {type(value).__name__} in its state; a checkpoint holds tensors and numbers."
        )
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def _state_value(value: Tensor, weight: Tensor) -> Tensor | float:
    if value.shape == weight.shape and value.is_floating_point():
        return laid_out_like(value, weight)
    if value.ndim == 0 and (not value.is_floating_point() or value.dtype == torch.float64):
        return value.item()
    return value.to(local(weight).device)
