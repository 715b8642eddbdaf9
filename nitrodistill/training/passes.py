"""What the backward passes of a method's step keep, counted by running its losses on shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from nitrodistill.method import Cast, DistillationMethod, Draws
from nitrodistill.models import Pipeline
from nitrodistill.models.wrappers import unwrapped
from nitrodistill.training.recipe import Stage
from nitrodistill.training.saved import Autocast, Saved, SavedTensors
from nitrodistill.types import Batch, Latents, Pairs

_SIZES = 6, 12
"""Micro-batches that are counted: shares of a batch by halves and thirds come out even."""


class Line(NamedTuple):
    """Bytes as they grow with the micro-batch."""

    fixed: int
    each: int

    def at(self, batch_size: int) -> int:
        """Bytes for so many samples."""
        return self.fixed + batch_size * self.each


@dataclass(frozen=True)
class Backward:
    """One role's backward pass.

    Attributes:
        role: whose.
        kept: what autograd holds when it begins.
        block: what the largest checkpointed block computes anew, for as long as it is gone through.
    """

    role: str
    kept: Line
    block: Line


Passes = tuple[Backward, ...]
"""The backward passes of a step, in order."""


class LossesOnShapes:
    """Runs a method's losses on shapes, and counts what its backward passes keep.

    Args:
        method: on the meta device.
        cast: what it took.
        stage: its settings.
        pipeline: the shapes of latents and text.
        text_length: tokens of a prompt.
    """

    def __init__(
        self,
        method: DistillationMethod,
        cast: Cast,
        stage: Stage,
        pipeline: Pipeline,
        text_length: int,
    ) -> None:
        self._method, self._bf16 = method, stage.trainer.half is not None
        modules = [role.module for role in method.trainable().values()]
        modules += [entry.module for entry in method.frozen().values()]
        modules += [denoiser.module for denoiser in cast.taken.values()]
        self._saved = SavedTensors(*(unwrapped(module) for module in modules), *modules)
        for module in modules:  # the frozen ones too, as a run does
            _checkpoint(module, self._saved)
        trained = {role.module for role in method.trainable().values()} if self._bf16 else set()
        self._runs = {module: _Runs(module, module in trained) for module in modules}
        self._seen: dict[tuple[int, int], _Ran] = {}
        x0 = torch.empty(1, *pipeline.latent_shape, device="meta")
        self._x0, self._text = x0, pipeline.denoiser.adapter.example_condition(x0, text_length)

    def passes(self, step: int) -> tuple[Passes, Passes]:
        """The backward passes of a step without gradient checkpointing, and with it."""
        small, large = (self._of(step, size).saved for size in _SIZES)
        plain, checkpointed = [], []
        for (role, few), (_, more) in zip(small, large, strict=True):
            all_of, kept, block = (_line(*sizes) for sizes in zip(few, more, strict=True))
            plain.append(Backward(role, all_of, Line(0, 0)))
            checkpointed.append(Backward(role, kept, block))
        return tuple(plain), tuple(checkpointed)

    def kept(self, step: int) -> int:
        """Bytes that a step's backward passes keep of a small micro-batch, without gradient checkpointing."""
        return sum(saved.plain for _, saved in self._of(step, _SIZES[0]).saved)

    def what_runs(self, step: int) -> object:
        """Equal for two steps that keep as much and run each network as often."""
        return self._of(step, _SIZES[0])

    def flops(self, step: int, checkpoints: bool = False) -> float:
        """Operations of a step's losses and backward passes, of one sample of a micro-batch.

        With gradient checkpointing the blocks run forward once more: half of what backward costs.
        """
        size, backward = _SIZES[0], 0
        batch = self._batch(size)
        with FlopCounterMode(display=False) as counter:
            for _, terms in self._method.losses(
                batch, self._method.active(step), Draws(0, step, batch.index)
            ):
                before = counter.get_total_flops()
                terms.total.backward()
                backward += counter.get_total_flops() - before
        anew = backward / 2 if checkpoints else 0
        return (counter.get_total_flops() + anew) / size

    def _of(self, step: int, size: int) -> _Ran:
        """What running the losses of a step showed, for a micro-batch of `size`."""
        if (step, size) in self._seen:
            return self._seen[step, size]
        batch, found = self._batch(size), []
        draws = Draws(0, step, batch.index)
        before = [run.count for run in self._runs.values()]
        with self._saved.counting(), _counted(self._runs):
            for role, terms in self._method.losses(batch, self._method.active(step), draws):
                del terms
                found.append((role, self._saved.take()))
        counts = zip(self._runs.values(), before, strict=True)
        ran = _Ran(tuple(found), tuple(run.count - earlier for run, earlier in counts))
        self._seen[step, size] = ran
        return ran

    def _batch(self, size: int) -> Batch:
        """A micro-batch of shapes, with all that a method may read."""
        x0 = self._x0.expand(size, *self._x0.shape[1:])
        text = self._text.index([0] * size)
        pairs = Pairs(torch.empty_like(x0), torch.empty_like(x0), text)
        return Batch(torch.arange(size), pairs, Latents(torch.empty_like(x0), text), text)


def turns_of(method: DistillationMethod, steps: int) -> dict[tuple[str, ...], list[int]]:
    """The roles that learn in a step -> those steps."""
    turns: dict[tuple[str, ...], list[int]] = {}
    for step in range(steps):
        turns.setdefault(tuple(method.active(step)), []).append(step)
    return turns


def _line(small: int, large: int) -> Line:
    """The line through what two sizes need."""
    slope = (large - small) // (_SIZES[1] - _SIZES[0])
    return Line(small - _SIZES[0] * slope, slope)


def _checkpoint(module: nn.Module, saved: SavedTensors) -> None:
    from diffusers import ModelMixin

    for part in unwrapped(module).modules():
        if isinstance(part, ModelMixin) and part._supports_gradient_checkpointing:
            part.enable_gradient_checkpointing(saved.checkpointed)


class _Ran(NamedTuple):
    """The losses of a step, once.

    Attributes:
        saved: each role that learned, and what its backward pass keeps.
        counts: how often each network ran.
    """

    saved: tuple[tuple[str, Saved], ...]
    counts: tuple[int, ...]


class _Runs:
    """A network's forward passes: with autocast, if it is trained in half precision, as Accelerate puts it there.

    Without gradients nothing is kept, so what came out once stands for what comes out of the same shapes.

    Attributes:
        count: how often it was asked for.
    """

    def __init__(self, module: nn.Module, lower: bool) -> None:
        self.count = 0
        self._module, self._forward, self._lower = module, module.forward, lower
        self._known: dict[object, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        tapped = any(part._forward_hooks for part in unwrapped(self._module).modules())
        if torch.is_grad_enabled() or tapped:
            return self._computed(*args, **kwargs)
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        key = torch.is_autocast_enabled("cpu"), *((v.shape, v.dtype) for v in given)
        if key not in self._known:
            self._known[key] = self._computed(*args, **kwargs)
        return tree_map_only(Tensor, torch.empty_like, self._known[key])

    def _computed(self, *args: Any, **kwargs: Any) -> Any:
        if not self._lower:
            return self._forward(*args, **kwargs)
        # meta has none; who asks, asks the CPU's
        with Autocast(), torch.autocast("cpu", torch.bfloat16):
            return self._forward(*args, **kwargs)


@contextmanager
def _counted(runs: Mapping[nn.Module, _Runs]) -> Iterator[None]:
    for network, run in runs.items():
        network.forward = run
    try:
        yield
    finally:
        for network in runs:
            del network.forward
