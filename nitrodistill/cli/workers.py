"""A process for each core of this machine, for networks too small to be shared between threads.

    with beside(work, argument, count=2):   # work(argument, 1, 2) runs in a process of its own
        work(argument, 0, 2)

A worker that fails prints its error; it is for work that the others can do without it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["beside", "cores"]

PATIENCE = 30.0
"""Seconds that a worker gets to end by itself."""


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def beside(work: Callable[..., object], *arguments: object, count: int) -> Iterator[None]:
    """Runs `work(*arguments, rank, count)` for the ranks 1 ... count - 1 in processes that end with the block.

    Args:
        work: a function of a module; it and its arguments are pickled for the new process.
        arguments: for it.
        count: of workers, this process included.
    """
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_alone, args=(work, *arguments, rank, count), daemon=True)
        for rank in range(1, count)
    ]
    for other in others:
        other.start()
    try:
        yield
        for other in others:
            other.join(PATIENCE)  # nothing is left to do
    finally:
        for other in others:
            other.terminate()
            other.join()


def _alone(work: Callable[..., object], *arguments: object) -> None:
    torch.set_num_threads(1)
    work(*arguments)
