"""Peak memory of a call, as torch allocates it."""

from __future__ import annotations

import importlib

import torch


def test_allocated_memory_is_that_of_the_tensors_that_live_at_once():
    """256 x 1024 float32 are one MiB."""
    measure = importlib.import_module("benchmarks._measure")

    def mib() -> torch.Tensor:
        return torch.empty(256, 1024)

    def together() -> None:
        first, second = mib(), mib()
        del first, second

    def in_turn() -> None:
        for _ in range(3):
            del_me = mib()
            del del_me

    assert abs(measure.allocated_mib(together) - 2) < 0.01
    assert abs(measure.allocated_mib(in_turn) - 1) < 0.01
    assert measure.allocated_mib(lambda: None) == 0
