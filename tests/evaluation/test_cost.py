"""Timing with a clock of our own: what is counted, in which order, after which warm-up."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.evaluation import cost
from nitrodistill.evaluation.cost import Timing, count_flops, measure, peak_memory


class Clock:
    """A clock that tasks move."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, []

    def __call__(self) -> float:
        return self.now

    def task(self, name: str, *seconds: float):
        durations = iter(seconds)

        def run(*device: object) -> None:
            self.log.append(name)
            self.now += next(durations)

        return run


def test_tasks_take_turns_and_the_median_counts() -> None:
    clock = Clock()
    tasks = {"a": clock.task("a", 9, 1, 5, 2), "b": clock.task("b", 7, 3, 3, 4)}
    found = measure(tasks, repeats=3, warmup=1, clock=clock)
    assert clock.log == ["a", "b"] * 4
    assert found == {"a": Timing(2000, 1000, 5000), "b": Timing(3000, 3000, 4000)}


def test_the_device_is_idle_at_both_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(cost, "synchronize", clock.task("sync", *[0.5] * 4))
    found = measure({"a": clock.task("a", 1, 1)}, repeats=1, warmup=1, clock=clock)
    assert clock.log == ["sync", "a", "sync"] * 2
    assert found["a"].median_ms == 1500, (
        "the wait after the task belongs to it, that before does not"
    )


def test_no_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats is 0"):
        measure({}, repeats=0)


def test_operations_of_a_product_and_a_convolution() -> None:
    """2 m n k, and 2 C_in C_out k^2 H W."""
    assert count_flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5
    layer = torch.nn.Conv2d(3, 7, 3, padding=1)
    assert count_flops(lambda: layer(torch.ones(2, 3, 8, 8))) == 2 * 2 * 3 * 7 * 9 * 64


def test_peak_memory_is_what_lives_at_once() -> None:
    held = torch.ones(1000)

    def task() -> None:
        first = held + 1  # 4000 bytes
        second = first * 2  # 8000
        first.view(10, 100).add_(1)  # a view and a change in place take nothing
        del first
        torch.cat([second, second])  # 4000 + 8000
        torch.ones(500)  # 4000 + 2000

    assert peak_memory(task) == 12000
    assert peak_memory(lambda: held.view(2, 500)) == 0
