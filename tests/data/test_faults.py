"""kill -9 at random moments of generate: the rerun ends with the same bytes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from nitrodistill.data import GenerateConfig, PairStore, generate
from nitrodistill.models import Pipeline

InChild = Callable[[Callable[[], object]], BaseProcess]
Contents = Callable[[Path], dict[str, bytes]]


def _kill_and_resume(
    seed: int,
    made: PairStore,
    run: Callable[[Path], object],
    folder: Path,
    in_child: InChild,
    contents: Contents,
) -> int:
    """Kills two generators on one folder, each after a random part of the time that one takes here and now.

    Returns:
        How many were still at work.
    """
    draw = random.Random(seed)
    killed = 0
    start = time.monotonic()
    undisturbed = in_child(lambda: run(folder.with_name(f"{folder.name}-undisturbed")))
    undisturbed.join(60)
    seconds = time.monotonic() - start
    for _ in range(2):
        process = in_child(lambda: run(folder))
        process.join(draw.uniform(0.0, 0.6 * seconds))
        killed += process.is_alive()
        process.kill()
        process.join()
    last = in_child(lambda: run(folder))
    last.join(60)
    assert last.exitcode == 0
    assert contents(folder) == contents(made.path)
    PairStore.open(folder).verify()
    return killed


@pytest.fixture
def run(pipeline: Pipeline, prompts: list[str], config: GenerateConfig) -> Callable[[Path], object]:
    def go(folder: Path) -> object:
        torch.set_num_threads(1)
        return generate(pipeline, prompts, folder, config, teacher_name="tiny", progress=False)

    return go


def test_killed_generators_leave_what_a_rerun_completes(
    made: PairStore,
    run: Callable[[Path], object],
    tmp_path: Path,
    in_child: InChild,
    contents: Contents,
) -> None:
    killed = [
        _kill_and_resume(seed, made, run, tmp_path / str(seed), in_child, contents)
        for seed in range(3)
    ]
    assert sum(killed) >= 2  # the second of a folder may find all done


@pytest.mark.soak
def test_twenty_killed_generators(
    made: PairStore,
    run: Callable[[Path], object],
    tmp_path: Path,
    in_child: InChild,
    contents: Contents,
) -> None:
    start = time.time_ns()
    for trial in range(20):
        _kill_and_resume(start + trial, made, run, tmp_path / str(trial), in_child, contents)
