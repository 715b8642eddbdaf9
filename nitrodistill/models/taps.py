"""FeatureTaps: named submodules of a network, or depths -> their feature maps.

The hooks live for one call. `features` stops the forward pass as soon as the last tap has fired, so that the
blocks behind it are never run; `prediction_and_features` runs to the end. `trim` gives the memory of the blocks
that are never run back.

**Wrappers.** The pass is left in two steps: the network's own forward returns what the taps found, so that DDP
sets up its reducer and FSDP its backward hooks as after any forward pass, and only then is the call left. Under
DDP, a *trained* network that is left early has parameters without gradients: it needs
`find_unused_parameters=True`, as for any network of which a part is not used. **torch.compile** does not see hooks
that come later, so calls through taps run eagerly (`torch.compiler.set_stance`, torch 2.6 or newer); other calls
stay compiled.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters import first_tensor
from nitrodistill.models.denoiser import DiffusersDenoiser
from nitrodistill.models.wrappers import is_compiled, plain_name, unwrapped
from nitrodistill.types import Condition, Denoiser, check_denoiser


class FeatureShape(NamedTuple):
    """What a tap returns for an example.

    Attributes:
        name: of the submodule.
        channels: of its map.
        stride: latent pixels a pixel, or token, of the map is wide.
        grid: (height, width) of the map for the example.

    Example:
        >>> nd.FeatureTaps(teacher.denoiser, "mid_block").shapes()
        (FeatureShape(name='mid_block', channels=96, stride=2, grid=(2, 2)),)
    """

    name: str
    channels: int
    stride: int
    grid: tuple[int, int]


class FeatureTaps:
    """Reads feature maps from inside a denoiser.

    Args:
        denoiser: the network; its submodules are looked up once, here.
        taps: dotted submodule names such as `"down_blocks.1"`, `"mid_block"`, or depths in (0, 1]: 0.5 is the
            block after which half of the blocks have run. In the order wanted; one alone needs no list.
            "every_block" is all of the blocks.
        image_part: picks the image's map from what a tapped module returns; by default what the
            denoiser's family says, else the first tensor.

    Attributes:
        names: the submodules' names, in that order.

    Raises:
        ValueError: if a name does not exist (the nearest ones are listed), was trimmed away, is given twice, or a
            depth leaves (0, 1].
        TypeError: if depths are given and the denoiser is not a DiffusersDenoiser.

    Example:
        >>> taps = nd.FeatureTaps(teacher.denoiser, ["down_blocks.0", "mid_block"])
        >>> [tuple(map.shape) for map in taps.features(noise, 500, condition)]
        [(2, 48, 4, 4), (2, 96, 4, 4)]
    """

    def __init__(
        self,
        denoiser: Denoiser,
        taps: str | float | Sequence[str | float],
        image_part: Callable[[object], Tensor] | None = None,
    ) -> None:
        if not isinstance(getattr(denoiser, "module", None), nn.Module):
            check_denoiser(denoiser)  # says what it is
        if isinstance(taps, (str, int, float)):
            taps = _blocks(denoiser, taps) if taps == "every_block" else [taps]
        names = [tap if isinstance(tap, str) else _at_depth(denoiser, tap) for tap in taps]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"taps are {names}; give at least one, each only once.")
        self.denoiser: Denoiser = denoiser
        self.names: tuple[str, ...] = tuple(names)
        network = unwrapped(denoiser.module)
        modules = {plain_name(name): module for name, module in network.named_modules()}
        self._modules = [_find(name, modules) for name in names]
        self._image_part = image_part

    def __repr__(self) -> str:
        return f"FeatureTaps({', '.join(self.names)} of {type(unwrapped(self.denoiser.module)).__name__})"

    def features(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """The feature maps, in the order of `names`; what lies behind the last tap is not run.

        Gradients flow to `x_t`. Diffusers networks give maps `(B, C_i, H_i, W_i)`, transformers too: their
        tokens are laid out on the latent's grid.
        """
        with self._hooked(x_t, stop=True) as found, suppress(_AllFound):
            self.denoiser(x_t, t, condition)
        return self._collect(found)

    def prediction_and_features(
        self, x_t: Tensor, t: Tensor, condition: Condition
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The prediction and the feature maps, from one forward pass."""
        with self._hooked(x_t, stop=False) as found:
            prediction = self.denoiser(x_t, t, condition)
        return prediction, self._collect(found)

    def bind(self, t: Tensor, condition: Condition) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """`x_t -> features` at a fixed timestep and condition: a perceptual trunk."""
        return lambda x_t: self.features(x_t, t, condition)

    def shapes(
        self, example: tuple[Tensor, Tensor, Condition] | None = None
    ) -> tuple[FeatureShape, ...]:
        """What each tap returns, probed by running the network once without gradients.

        Args:
            example: `(x_t, t, condition)`; by default the smallest input of the denoiser's family.

        Raises:
            TypeError: if there is no example and the family is unknown.
        """
        example = self._example(example)
        with torch.no_grad():
            maps = self.features(*example)
        height = example[0].shape[-2]
        for name, map in zip(self.names, maps, strict=True):
            if map.ndim != 4:
                raise ValueError(
                    f"the tap {name!r} gives shape {tuple(map.shape)}, which is no map (B, C, H, W); tap a "
                    "module that the image passes through, or pass image_part."
                )
        return tuple(
            FeatureShape(
                name, map.shape[1], round(height / map.shape[2]), (map.shape[2], map.shape[3])
            )
            for name, map in zip(self.names, maps, strict=True)
        )

    def channels(self, example: tuple[Tensor, Tensor, Condition] | None = None) -> tuple[int, ...]:
        """The channels of each map; see `shapes`."""
        return tuple(shape.channels for shape in self.shapes(example))

    def trim(self, example: tuple[Tensor, Tensor, Condition] | None = None) -> tuple[str, ...]:
        """Removes what lies behind the last tap from the network, in place; it predicts no more.

        For a backbone with weights of its own (`FeatureTaps(teacher.copy(), ...)`), never for a network that
        another role uses. What is not run for the example goes.

        Returns:
            the names of what was removed.

        Raises:
            TypeError: if there is no example and the family is unknown.
        """
        example, reached = self._example(example), set[nn.Module]()
        network = unwrapped(self.denoiser.module)
        handles = [
            module.register_forward_pre_hook(lambda module, args: reached.add(module))
            for module in network.modules()
        ]
        with torch.no_grad():
            self.features(*example)
        for handle in handles:
            handle.remove()
        return tuple(_removed(network, "", reached))

    def _example(
        self, example: tuple[Tensor, Tensor, Condition] | None
    ) -> tuple[Tensor, Tensor, Condition]:
        if example is not None:
            return example
        if not isinstance(self.denoiser, DiffusersDenoiser):
            raise TypeError(
                f"{type(self.denoiser).__name__} has no example input of its own; pass "
                "example=(x_t, t, condition) of batch size one."
            )
        return self.denoiser.example()

    def _reader(self, x_t: Tensor) -> Callable[[object], Tensor]:
        if self._image_part is not None:
            return self._image_part
        if not isinstance(self.denoiser, DiffusersDenoiser):
            return first_tensor
        adapter = self.denoiser.adapter
        grid = adapter.grid(x_t)
        return lambda output: adapter.image_part(output, grid)

    @contextmanager
    def _hooked(self, x_t: Tensor, stop: bool) -> Iterator[dict[int, Tensor]]:
        found: dict[int, Tensor] = {}
        image_part, outer = self._reader(x_t), self.denoiser.module
        network = unwrapped(outer)

        def hook_for(i: int) -> Callable[[nn.Module, object, object], None]:
            def hook(module: nn.Module, args: object, output: object) -> None:
                found[i] = image_part(output)
                if stop and len(found) == len(self._modules):
                    raise _AllFound(found)

            return hook

        with ExitStack() as stack:
            for i, module in enumerate(self._modules):
                stack.callback(module.register_forward_hook(hook_for(i)).remove)
            if stop:
                stack.enter_context(_ending_early(network, outer))
            if any(is_compiled(module) for module in {outer, network}):
                stack.enter_context(_eagerly())
            yield found

    def _collect(self, found: dict[int, Tensor]) -> tuple[Tensor, ...]:
        missing = [name for i, name in enumerate(self.names) if i not in found]
        if missing:
            raise ValueError(
                f"the taps {missing} were never reached in the forward pass; tap modules that the "
                "network calls."
            )
        return tuple(found[i] for i in range(len(self.names)))


class _AllFound(Exception):
    """Leaves a forward pass when every tap has fired."""

    def __init__(self, found: dict[int, Tensor]) -> None:
        super().__init__()
        self.found = found


class Removed(nn.Module):
    """Stands where `trim` removed a submodule, and says so."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.removed_name: str = name

    def forward(self, *args: object, **kwargs: object) -> None:
        """Refuses.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(self._why())

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(self._why()) from error

    def _why(self) -> str:
        return (
            f"{self.removed_name!r} was removed from the network by FeatureTaps.trim, so it gives features and no "
            "predictions; take the network that it was copied from."
        )


@contextmanager
def _ending_early(network: nn.Module, outer: nn.Module) -> Iterator[None]:
    """Turns _AllFound into an ordinary return of the network, and leaves only from outside of its wrappers."""
    before, own = network.forward, "forward" in vars(network)
    left: list[_AllFound] = []

    def forward(*args: object, **kwargs: object) -> object:
        try:
            return before(*args, **kwargs)
        except _AllFound as leaving:
            left.append(leaving)
            return tuple(leaving.found.values())

    def leave(module: nn.Module, args: object, output: object) -> None:
        if left:
            raise left.pop()

    network.forward = forward
    handle = outer.register_forward_hook(leave)
    try:
        yield
    finally:
        handle.remove()
        if own:
            network.forward = before
        else:
            del network.forward


def _eagerly() -> Any:
    set_stance = getattr(torch.compiler, "set_stance", None)
    if set_stance is None:
        raise RuntimeError(
            f"features of a compiled network need torch 2.6 or newer, this is {torch.__version__}; "
            "tap the network before torch.compile."
        )
    return set_stance("force_eager")


def _blocks(denoiser: Denoiser, what: object) -> tuple[str, ...]:
    if not isinstance(denoiser, DiffusersDenoiser):
        raise TypeError(
            f"{what} needs a DiffusersDenoiser, which knows the order of its blocks; name a submodule of "
            f"this {type(denoiser).__name__} instead."
        )
    return denoiser.adapter.blocks(denoiser.network)


def _at_depth(denoiser: Denoiser, depth: float) -> str:
    blocks = _blocks(denoiser, f"depth {depth}")
    if not 0 < depth <= 1:
        raise ValueError(
            f"a tap's depth is {depth}; it must be above 0 and at most 1 (all blocks)."
        )
    return blocks[math.ceil(depth * len(blocks) - 1e-9) - 1]


def _find(name: str, modules: dict[str, nn.Module]) -> nn.Module:
    parents = [name.rsplit(".", cut)[0] for cut in range(name.count(".") + 1)]
    for parent in parents:
        if isinstance(modules.get(parent), Removed):
            raise ValueError(
                f"the tap {name!r} lies behind the early exit: {parent!r} was trimmed away, so it can never be "
                "reached; tap before it, or trim after all taps are made."
            )
    if not name or name not in modules:
        near = difflib.get_close_matches(name, modules, n=5, cutoff=0.3)
        raise ValueError(
            f"the network has no submodule {name!r}; the nearest are "
            f"{', '.join(near) or ', '.join(list(modules)[1:6])}."
        )
    return modules[name]


def _removed(module: nn.Module, path: str, reached: set[nn.Module]) -> Iterator[str]:
    """Replaces the largest parts with weights of which nothing was reached; yields their names."""
    for name, child in list(module.named_children()):
        place = f"{path}.{name}" if path else name
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)) or any(
            part in reached for part in child.modules()
        ):
            yield from _removed(child, place, reached)
        elif next(child.parameters(), None) is not None:
            setattr(module, name, Removed(plain_name(place)))
            yield plain_name(place)
