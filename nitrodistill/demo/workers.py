"""A process for each core of this machine, for networks too small to be shared between threads.

    with other_processes(work, argument, count=2):   # work(argument, 1, 2) runs in a process of its own
        work(argument, 0, 2)

A worker that fails prints its error, and the block raises at its end.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait

import torch


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def other_processes(work: Callable[..., object], *arguments: object, count: int) -> Iterator[None]:
    """Runs `work(*arguments, rank, count)` for the ranks 1 ... count - 1 in processes; the block waits for them.

    Args:
        work: a function of a module; it and its arguments are pickled for the new process.
        arguments: for it.
        count: of workers, this process included.

    Raises:
        RuntimeError: if one of them fails.
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
            other.join()
        if any(other.exitcode for other in others):
            raise RuntimeError("another process failed; its error stands above.")
    finally:
        for other in others:
            other.terminate()
            other.join()


def _alone(work: Callable[..., object], *arguments: object) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    work(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # the first process was killed and could not end this one
