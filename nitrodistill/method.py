"""The contract between a distillation method and whatever trains it, and the draws that methods use.

A method knows nothing of optimizers, devices or processes. It names what it trains, says which roles are
active at a step, and yields one loss a role from a generator. The trainer calls backward *while the
generator is suspended*:

    for role, terms in method.losses(batch, method.active(step), Draws(seed, step, batch.index)):
        terms.total.backward()

so that freeze - forward - backward - unfreeze is the only order there is, and what two roles share (one
student sample) is a local variable.

Several processes train one model on parts of a micro-batch. Their networks meet in collective operations, so a
method must do the same in each of them: yield every active role for every micro-batch, and call the same networks
in the same order, whatever rows its part holds. A role that one process left out would wait for ever, or, with
accumulation, go its own way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from nitrodistill.types import Batch, Terms

__all__ = ["DistillationMethod", "Draws", "Role", "frozen_within"]


@dataclass(frozen=True)
class Role:
    """Where a trained module lives: `getattr(owner, attribute)`.

    A trainer may replace the module by a prepared one (DDP, FSDP) with `bind`; the method reads it anew
    each time, so its gradients are synchronised. A method that kept the raw module would train
    without synchronisation, silently.

    Attributes:
        owner: the object that uses the module, for example a denoiser.
        attribute: its name there, for example "module".
    """

    owner: object
    attribute: str

    @property
    def module(self) -> nn.Module:
        """The module in use now."""
        module = getattr(self.owner, self.attribute)
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"{type(self.owner).__name__}.{self.attribute} is {type(module).__name__}; a Role "
                "points at an nn.Module."
            )
        return module

    def bind(self, module: nn.Module) -> None:
        """Replaces the module by a prepared one."""
        setattr(self.owner, self.attribute, module)


@runtime_checkable
class DistillationMethod(Protocol):
    """What a trainer, or a plain loop, needs to know of a method."""

    def trainable(self) -> Mapping[str, Role]:
        """Role name -> where its module lives. The order is the order of preparation."""
        ...

    def active(self, step: int) -> Sequence[str]:
        """The roles that are updated at `step`; a pure function."""
        ...

    def losses(
        self, batch: Batch, active: Sequence[str], draws: Draws
    ) -> Iterator[tuple[str, Terms]]:
        """Yields `(role, terms)` for each active role; call backward before resuming it."""
        ...


@contextmanager
def frozen_within(module: nn.Module) -> Iterator[None]:
    """No parameter of `module` asks for a gradient inside of the block; each has its own flag again after it.

    Put the forward pass *and* the `yield` inside: the backward pass must be over when the flags return. The
    other orders fail silently under FSDP.
    """
    asking = [p for p in module.parameters() if p.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _alone(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Draws:
    """Random draws that are a function of (seed, step, sample index, name), and of nothing else.

    One process or eight, accumulation or not, killed and resumed or not: the same draws. They come from
    numpy's counter-based Philox generator on the CPU, one stream a sample and name, and are then
    moved, so that they do not depend on the device either.

    Attributes:
        seed: the run's seed.
        step: the optimizer step.
        index: `(B,)` int64 global sample numbers.
        gather: joins `(B, *)` of every process that shares the micro-batch, in the order of its samples; for
            losses that look at other samples. All processes must call it alike. One process: identity.

    Example:
        >>> import torch
        >>> one = Draws(seed=0, step=7, index=torch.tensor([3, 5])).normal("noise", (2,))
        >>> two = Draws(seed=0, step=7, index=torch.tensor([5])).normal("noise", (2,))
        >>> torch.equal(one[1:], two)
        True
    """

    seed: int
    step: int
    index: Tensor
    gather: Callable[[Tensor], Tensor] = field(default=_alone, repr=False)

    def take(self, rows: Tensor) -> Draws:
        """The draws of some samples: `rows` is `(b,)` int64, places in this micro-batch."""
        return replace(self, index=self.index[rows.to(self.index.device)])

    def normal(
        self, name: str, shape: Sequence[int] = (), device: torch.device | str = "cpu"
    ) -> Tensor:
        """Standard normal draws `(B, *shape)`, float32."""
        rows = [g.standard_normal(tuple(shape), dtype=np.float32) for g in self._streams(name)]
        return self._stack(rows, shape, device)

    def uniform(
        self, name: str, shape: Sequence[int] = (), device: torch.device | str = "cpu"
    ) -> Tensor:
        """Uniform draws in [0, 1), `(B, *shape)`, float32."""
        rows = [g.random(tuple(shape), dtype=np.float32) for g in self._streams(name)]
        return self._stack(rows, shape, device)

    def _streams(self, name: str) -> Iterator[np.random.Generator]:
        digest = hashlib.blake2b(f"{self.seed}/{self.step}/{name}".encode(), digest_size=8)
        key = int.from_bytes(digest.digest(), "little")
        for index in self.index.tolist():
            yield np.random.Generator(np.random.Philox(key=np.array([key, index], np.uint64)))

    def _stack(
        self, rows: list[np.ndarray], shape: Sequence[int], device: torch.device | str
    ) -> Tensor:
        if not rows:
            return torch.zeros(0, *shape, device=device)
        return torch.from_numpy(np.stack(rows)).to(device)
