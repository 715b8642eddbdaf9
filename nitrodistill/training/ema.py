"""Exponential moving average of a module's weights, in float32.

    average <- decay average + (1 - decay) weights

It starts at the weights themselves, so there is no bias to correct. Half-precision weights are averaged in
float32, because the steps of an average are smaller than their rounding. Of weights that several
processes share out, each averages its part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nitrodistill.models.wrappers import plain_name
from nitrodistill.training.parallel import laid_out_like, local


class EMA:
    """The moving average of the parameters that are trained; all others and buffers are as they are.

    Args:
        module: whose weights are averaged, those that ask for a gradient now; the averages have their devices.
        decay: in [0, 1); 0 follows the weights.
        into: a module of the same kind whose parameters become the averages; None keeps them apart.
        source: the moving average of `module`, which is averaged in the place of its weights.

    Raises:
        ValueError: if the decay is none, or `into` is another network or not in float32.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> average = nd.training.EMA(layer, decay=0.9)
        >>> average.update()
    """

    def __init__(
        self,
        module: nn.Module,
        decay: float,
        into: nn.Module | None = None,
        source: EMA | None = None,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be in [0, 1).")
        self.decay = decay
        named = module.named_parameters()
        self._weights: dict[str, Tensor] = {plain_name(n): w for n, w in named if w.requires_grad}
        if into is None:
            self._averages = {n: _float32(w) for n, w in self._weights.items()}
        else:
            self._averages = _places(self._weights, into)
        if source is not None:
            self._weights = source.state_dict()

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages one step towards the weights."""
        averages = [local(average) for average in self._averages.values()]
        weights = [local(w.detach()).to(a.dtype) for w, a in self._pairs()]
        torch._foreach_lerp_(averages, weights, 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Parameter name -> average; a process' part of it where weights are shared out."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Overwrites the averages by whole ones; all processes must call it.

        Raises:
            ValueError: if the names differ.
        """
        if state.keys() != self._averages.keys():
            different = sorted(state.keys() ^ self._averages.keys())
            raise ValueError(f"the averages are of another network: {different[:3]} differ.")
        for name, average in self._averages.items():
            local(average).copy_(local(laid_out_like(state[name], average)))

    @torch.no_grad()
    def restart(self) -> None:
        """Sets the averages to the weights."""
        for weight, average in self._pairs():
            local(average).copy_(local(weight.detach()))

    def is_finite(self) -> Tensor:
        """Whether all averages that this process holds are; a scalar on their device."""
        return torch.stack([local(a).isfinite().all() for a in self._averages.values()]).all()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the averages in the module's place for the length of a `with` block."""
        kept = self._exchange()
        try:
            yield
        finally:
            self._exchange(kept)

    @torch.no_grad()
    def _exchange(self, kept: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Exchanges weights and averages; returns copies of weights that are narrower than their averages."""
        copies = {}
        for name, (weight, average) in zip(self._weights, self._pairs(), strict=True):
            here, there = local(weight.detach()), local(average)
            before = here.clone()
            here.copy_(kept[name] if kept and name in kept else there)
            if here.dtype == there.dtype:
                there.copy_(before)
            else:
                copies[name] = before
        return copies

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self._weights.values(), self._averages.values(), strict=True)


def _float32(weight: Tensor) -> Tensor:
    """A copy of a weight, in float32 if it is narrower."""
    return weight.detach().clone().to(torch.promote_types(weight.dtype, torch.float32))


def _places(weights: Mapping[str, Tensor], into: nn.Module) -> dict[str, Tensor]:
    named = ((plain_name(name), p.detach()) for name, p in into.named_parameters())
    found = {name: p for name, p in named if name in weights}
    strange = [n for n, w in weights.items() if n not in found or found[n].shape != w.shape]
    narrow = [n for n, place in found.items() if place.dtype in (torch.float16, torch.bfloat16)]
    if strange or narrow:
        raise ValueError(
            f"a network that follows another must be of the same kind, in float32; {(strange + narrow)[:3]} "
            "differ."
        )
    return {name: found[name] for name in weights}
