"""The same check for every network of the toys: a killed training ends where a whole one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tools.toy.loop import LoopConfig, build, fit


class Killed(Exception):
    """Stands for a kill in the midst of a step."""


def check_resumed_is_bit_equal(
    make: Callable[[], nn.Module], loss: Callable[..., Tensor], steps: int, folder: Path
) -> None:
    """Trains whole; trains again, killed in the last step and resumed; compares the weights."""
    config = LoopConfig("toy", steps=steps, batch_size=4, learning_rate=1e-3, checkpoint_every=1)
    (folder / "whole").mkdir()
    whole = fit(build(make, 0), loss, config, folder / "whole")
    calls = 0

    def killed(network: Any, batch_size: int, generator: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == steps:
            raise Killed
        return loss(network, batch_size, generator)

    with pytest.raises(Killed):
        fit(build(make, 0), killed, config, folder)
    resumed = fit(build(make, 1), loss, config, folder)
    for (name, first), second in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second), name
