"""What may stand around a network: DDP, torch.compile, and a LoRA role; and checkpointing that knows roles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

ROLES = "_nitrodistill_lora_roles"
"""The attribute of a shared network that lists its roles."""

Switch = Callable[[], AbstractContextManager[None]]
"""Makes a context in which a shared network plays one role."""

_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
_INSIDE = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})

_running: list[Switch] = []


class LoRARole(nn.Module):
    """One role of a network that several roles share: its LoRA weights, and a forward that switches to them.

    Its parameters are the role's alone, under the names that peft saves them by, so that what optimizers,
    checkpoints, averages and DDP see of the role is small. The network itself is not registered. Made by
    `add_lora`.

    Args:
        network: the shared network, with the role's layers in it.
        switch: makes a context in which those layers act; outside of it the network is the base.
        weights: the role's parameters by dotted name.
        scale: of the difference they make, alpha / rank.

    Attributes:
        network: the shared network.
        scale: see above.
    """

    network: nn.Module

    def __init__(
        self,
        network: nn.Module,
        switch: Switch,
        weights: dict[str, nn.Parameter],
        scale: float,
    ) -> None:
        super().__init__()
        object.__setattr__(self, "network", network)
        self.scale: float = scale
        self._switch: Switch = switch
        for name, weight in weights.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in dict(place.named_children()):
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, weight)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's forward, with this role's layers.

        Raises:
            RuntimeError: if the role's weights were sharded (FSDP2), apart from the layers that use them.
        """
        if type(next(self.parameters())).__name__ == "DTensor":
            raise RuntimeError(
                "this LoRA role was sharded by FSDP2, which does not reach the layers that use its weights; a "
                "role's weights are small, so prepare it with DDP."
            )
        with running(self._switch):
            return self.network(*args, **kwargs)

    def enable_gradient_checkpointing(self) -> None:
        """Checkpoints the shared network's blocks, for all roles; see `checkpointed`."""
        network: Any = self.network
        network.enable_gradient_checkpointing(checkpointed)


@contextmanager
def running(switch: Switch) -> Iterator[None]:
    """Inside of the block a network runs in a context that checkpointed blocks of it are recomputed in too."""
    _running.append(switch)
    try:
        with switch():
            yield
    finally:
        _running.pop()


def checkpointed(block: nn.Module, *args: Any) -> Any:
    """Runs a block without keeping its activations; backward recomputes them in the role that ran it.

    By then the shared network may play another role, or none, so the role is remembered with the block; so is what
    the network was given (`models.inputs`). The function that `enable_gradient_checkpointing` of diffusers takes.
    """
    switch: Switch = _running[-1] if _running else nullcontext

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), switch()

    return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts)


def plain_name(name: str) -> str:
    """A submodule's or weight's dotted name as it is without torch.compile's and other wrappers around parts."""
    return ".".join(part for part in name.split(".") if part not in _INSIDE)


def unwrapped(module: nn.Module) -> nn.Module:
    """The bare network inside of DDP's, torch.compile's and a LoRA role's wrappers."""
    inside = {**_WRAPPERS, "LoRARole": "network"}
    while type(module).__name__ in inside:
        module = getattr(module, inside[type(module).__name__])
    return module


def role_in(module: nn.Module) -> LoRARole | None:
    """The LoRA role inside of DDP's and torch.compile's wrappers, if it is one."""
    while type(module).__name__ in _WRAPPERS:
        module = getattr(module, _WRAPPERS[type(module).__name__])
    return module if isinstance(module, LoRARole) else None


def has_roles(module: nn.Module) -> bool:
    """Whether the module is, or holds, a network that LoRA roles share (a role itself does not hold it)."""
    return any(ROLES in vars(part) for part in module.modules())


def is_compiled(module: nn.Module) -> bool:
    """Whether the module, or any part of it, runs through torch.compile."""
    return any(
        type(part).__name__ == "OptimizedModule"
        or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )
