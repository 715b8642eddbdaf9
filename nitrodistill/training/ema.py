"""Exponential moving average of a module's weights.

    average <- decay average + (1 - decay) weights

It starts at the weights themselves, so there is no bias to correct.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["EMA"]


class EMA:
    """The moving average of `module`'s parameters; buffers are taken as they are.

    Args:
        module: whose weights are averaged; the averages have its devices and dtypes.
        decay: in [0, 1); 0 follows the weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be in [0, 1).")
        self.decay = decay
        self._weights = dict(module.named_parameters())
        self._averages = {name: w.detach().clone() for name, w in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages one step towards the weights."""
        torch._foreach_lerp_(
            list(self._averages.values()),
            [w.detach() for w in self._weights.values()],
            1 - self.decay,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Parameter name -> average."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Overwrites the averages.

        Raises:
            ValueError: if the names differ.
        """
        if state.keys() != self._averages.keys():
            different = sorted(state.keys() ^ self._averages.keys())
            raise ValueError(f"the averages are of another network: {different[:3]} differ.")
        for name, average in self._averages.items():
            average.copy_(state[name])

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
            kept = weight.detach().clone()
            weight.copy_(self._averages[name])
            self._averages[name].copy_(kept)
