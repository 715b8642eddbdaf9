from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time

import psutil
import pytest

from nitrodistill.demo.workers import cores, other_processes

WORK = """
import os
import time
import torch

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


def test_others_end_when_this_process_fails(work, folder):
    with pytest.raises(RuntimeError, match="mine"), other_processes(work.slow, folder, count=2):
        raise RuntimeError("mine")
    assert not (folder / "late").exists()


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
