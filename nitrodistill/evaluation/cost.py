"""Cost: how long things take, measured so that it means something.

Every task is run `warmup` times before the clock starts (allocators, kernel choices, caches). Then the tasks take
turns, so that a slow minute of the machine meets all of them; the device is synchronised before the clock is
read, on both sides; and the median counts, not the mean.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Timing", "measure", "synchronize"]


@dataclass(frozen=True)
class Timing:
    """Wall-clock milliseconds of one task: median, fastest and slowest run."""

    median_ms: float
    fastest_ms: float
    slowest_ms: float


def measure(
    tasks: Mapping[str, Callable[[], object]],
    repeats: int = 5,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times tasks in turns.

    Args:
        tasks: name -> what to run.
        repeats: measured runs of each, at least 1.
        warmup: runs of each before those.
        device: what has to be idle when the clock is read.
        clock: seconds.

    Raises:
        ValueError: if `repeats` is below 1 or `warmup` below 0.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(
            f"repeats is {repeats} and warmup {warmup}; they must be at least 1 and at least 0."
        )
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(warmup + repeats):
        for name, task in tasks.items():
            synchronize(device)
            start = clock()
            task()
            synchronize(device)
            if turn >= warmup:
                times[name].append(1000 * (clock() - start))
    return {
        name: Timing(statistics.median(runs), min(runs), max(runs)) for name, runs in times.items()
    }


def synchronize(device: torch.device | str) -> None:
    """Waits until the device has done what it was told; nothing to wait for on the CPU."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
