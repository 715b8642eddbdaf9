"""Which of several processes this one is, as `torchrun`, `accelerate launch` or `srun` say, and its device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

PATIENCE = timedelta(minutes=10)
"""How long processes wait for each other, at the start and in each operation that they do together."""

_OTHERS = ("timeout", "Timed out", "Connection closed by peer", "Connection reset by peer")
"""What gloo says, in plain RuntimeErrors, of operations that another process has left."""


@dataclass(frozen=True)
class Place:
    """This process among those that were started together.

    Attributes:
        rank: its number.
        world_size: how many there are.
        local_rank: its number on this machine.
    """

    rank: int
    world_size: int
    local_rank: int

    def device(self, wish: str) -> torch.device:
        """The device to use.

        Args:
            wish: "auto" is a GPU of this process's own if there is one, else the CPU; or torch's name.

        Raises:
            ValueError: if torch knows no such device, or sees no such GPU.
        """
        if wish == "auto":
            if not torch.cuda.is_available():
                return torch.device("cpu")
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        try:
            device = torch.device(wish)
        except RuntimeError as error:
            raise ValueError(
                f"device is {wish!r}; it must be auto, cpu, cuda or another name that torch knows."
            ) from error
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"device is {wish!r}, and torch sees {torch.cuda.device_count()} GPUs here; give another, or auto."
            )
        return device


def place() -> Place:
    """This process's place, from RANK and WORLD_SIZE (torchrun, accelerate launch) or SLURM's (srun).

    Raises:
        ValueError: if they are no numbers, or do not fit each other.
    """
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if rank in os.environ and size in os.environ:
            found = Place(
                _number(rank), _number(size), _number(local) if local in os.environ else 0
            )
            if found.rank >= found.world_size:
                raise ValueError(
                    f"{rank} is {found.rank} and {size} {found.world_size}; start the processes with "
                    "torchrun, accelerate launch or srun, or unset them."
                )
            return found
    return Place(0, 1, 0)


@contextmanager
def meeting(patience: timedelta, what: str = "") -> Iterator[None]:
    """Tells in a sentence that processes which were started together did not all come, in a `with` block.

    gloo notices at once that another process has ended; NCCL waits for `patience`, if nobody ends this process
    before, as torchrun and `srun --kill-on-bad-exit` do.

    Args:
        patience: how long an operation of all processes waits.
        what: has happened; by default that not all have come.

    Raises:
        RuntimeError: if it waited in vain, as one does whose neighbour failed before.
    """
    what = what or f"after {patience.total_seconds():g} s not all had come"
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if not isinstance(error, torch.distributed.DistError) and not any(map(text.count, _OTHERS)):
            raise
        here = place()
        raise RuntimeError(
            f"this is process {here.rank} of {here.world_size} (counted from 0), and {what} ({text[:300]}); "
            "read what the others said: one failed before, was never started, or cannot reach this machine."
        ) from error


def _number(name: str) -> int:
    value = os.environ[name]
    if not value.isdigit():
        raise ValueError(f"the environment's {name} is {value!r}; it must be a number.")
    return int(value)
