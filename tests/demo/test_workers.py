from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta

import psutil
import pytest
import torch
from torch import distributed

from nitrodistill.demo import workers
from nitrodistill.demo.workers import can_train_together, cores, other_processes, training_together

WORK = """
import os
import time
from datetime import timedelta
import torch
from torch import distributed
from nitrodistill.demo.workers import training_together

def note(folder, rank, count):
    (folder / f"{rank} of {count}, threads: {torch.get_num_threads()}").touch()

def slow(folder, rank, count):
    time.sleep(1)
    (folder / "late").touch()

def fail(folder, rank, count):
    raise ValueError("mine")

def stay(folder, rank, count):
    (folder / str(os.getpid())).touch()
    time.sleep(600)

def add(folder, rank, count):
    with training_together(rank, count, folder / "meeting"):
        total = torch.tensor([10.0**rank])
        distributed.all_reduce(total)
        (folder / str(rank)).write_text(f"{total.item()} {os.environ['LOCAL_RANK']}")
        distributed.barrier()
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Functions of a module that a new process can import, as it can not import a test."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "some_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return importlib.import_module("some_work")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_workers_are_numbered_and_use_one_thread_each(work, folder):
    with other_processes(work.note, folder, count=2):
        until = time.monotonic() + 60
        while not any(folder.iterdir()) and time.monotonic() < until:
            time.sleep(0.05)
    assert [path.name for path in folder.iterdir()] == ["1 of 2, threads: 1"]


def test_the_block_waits_and_raises_where_another_failed(work, folder):
    with other_processes(work.slow, folder, count=2):
        pass
    assert (folder / "late").exists()
    with (
        pytest.raises(RuntimeError, match="another process failed"),
        other_processes(work.fail, folder, count=2),
    ):
        pass


def test_processes_that_train_together_hear_each_other(work, folder):
    before = set(os.environ)
    with other_processes(work.add, folder, count=2):
        work.add(folder, 0, 2)
    assert (folder / "0").read_text() == "11.0 0"
    assert (folder / "1").read_text() == "11.0 1"
    assert not distributed.is_initialized()
    assert set(os.environ) == before


def test_processes_without_a_way_to_each_other_train_alone(monkeypatch):
    assert can_train_together() == (not torch.cuda.is_available())

    def refuse(*_: object, **__: object):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert not can_train_together()


def test_one_process_alone_is_left_as_it_is(folder):
    with training_together(0, 1, folder / "meeting"):
        assert "RANK" not in os.environ
        assert not distributed.is_initialized()


def test_others_end_when_this_process_fails(work, folder):
    with pytest.raises(RuntimeError, match="mine"), other_processes(work.add, folder, count=2):
        raise RuntimeError("mine")
    assert not (folder / "1").exists()


def test_others_end_with_a_first_process_that_is_killed(work, folder):
    script = f"""
import time
from datetime import timedelta
from pathlib import Path
from nitrodistill.demo import workers
from nitrodistill.demo.workers import other_processes
import {work.__name__} as work
if __name__ == "__main__":
    with other_processes(work.stay, Path({str(folder)!r}), count=2):
        time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen([sys.executable, "-c", script], env=environment)
    until = time.monotonic() + 60
    while not any(folder.iterdir()) and time.monotonic() < until:
        time.sleep(0.05)
    (other,) = [int(path.name) for path in folder.iterdir()]
    first.kill()
    first.wait()
    while _runs(other) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(other)


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_there_are_cores():
    assert 1 <= cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not can_train_together(), reason="processes cannot train together here")
def test_a_worker_that_never_comes_is_told_in_time(folder, monkeypatch):
    monkeypatch.setattr(workers, "MEETING", timedelta(seconds=1))
    with (
        pytest.raises(RuntimeError, match=r"process 0 of 2 .* after 1 s not all had come \("),
        training_together(0, 2, folder / "meeting"),
    ):
        pass
    assert "WORLD_SIZE" not in os.environ
    assert not distributed.is_initialized()
