"""A process for each core of this machine, for networks too small to be shared between threads.

    with other_processes(work, argument, count=2):   # work(argument, 1, 2) runs in a process of its own
        work(argument, 0, 2)

A worker that fails prints its error, and the block raises at its end.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import torch
from torch import distributed

from nitrodistill.processes import meeting

MEETING = timedelta(minutes=5)
"""How long those that train together wait for each other."""


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


def can_train_together() -> bool:
    """Whether processes of this machine can train a network together: on the CPU, through the loopback address."""
    if torch.cuda.is_available() or not (
        distributed.is_available() and distributed.is_gloo_available()
    ):
        return False
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def training_together(rank: int, count: int, place: Path) -> Iterator[None]:
    """Makes this process one of `count` for a trainer on the CPU, for as long as the block lasts.

    Args:
        rank: its number.
        count: how many there are; with 1 nothing happens.
        place: a file that does not exist, in an existing folder; the processes find each other there. It may
            be left.
    """
    if count == 1:
        yield
        return
    _forget_processes()  # of an earlier training here
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in places.items()})
    try:
        store = distributed.FileStore(str(place), count)
        with meeting(MEETING):
            distributed.init_process_group(
                "gloo", store=store, rank=rank, world_size=count, timeout=MEETING
            )
        yield
    finally:
        if distributed.is_initialized():  # Accelerate ends it where a training ended well
            distributed.destroy_process_group()
        _forget_processes()
        for name in places:
            del os.environ[name]


def _forget_processes() -> None:
    """Ends Accelerate's memory of the processes; it has no public way to."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
