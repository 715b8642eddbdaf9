"""Exponential moving average of a module's weights.

    average <- decay average + (1 - decay) weights

It starts at the weights themselves, so there is no bias to correct. Of weights that several processes share out,
each averages its part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nitrodistill.training.parallel import laid_out_like, local

__all__ = ["EMA"]


class EMA:
    """The moving average of the parameters that are trained; all others and buffers are as they are.

    Args:
        module: whose weights are averaged, those that ask for a gradient now; the averages have their devices
            and dtypes.
        decay: in [0, 1); 0 follows the weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be in [0, 1).")
        self.decay = decay
        self._weights = {n: w for n, w in module.named_parameters() if w.requires_grad}
        self._averages = {name: w.detach().clone() for name, w in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages one step towards the weights."""
        torch._foreach_lerp_(
            [local(average) for average in self._averages.values()],
            [local(w.detach()) for w in self._weights.values()],
            1 - self.decay,
        )

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

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the averages in the module's place for the length of a `with` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            here, average = local(weight.detach()), local(self._averages[name])
            kept = here.clone()
            here.copy_(average)
            average.copy_(kept)
