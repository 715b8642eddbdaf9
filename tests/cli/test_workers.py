from __future__ import annotations

import importlib
import os
import time

import pytest
from torch import distributed

from nitrodistill.cli.workers import beside, cores, training_together

WORK = """
import os
import torch
from torch import distributed
from nitrodistill.cli.workers import training_together

def note(folder, rank, count):
    (folder / f"{rank} of {count}, threads: {torch.get_num_threads()}").touch()

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
    with beside(work.note, folder, count=2):
        until = time.monotonic() + 60
        while not any(folder.iterdir()) and time.monotonic() < until:
            time.sleep(0.05)
    assert [path.name for path in folder.iterdir()] == ["1 of 2, threads: 1"]


def test_processes_that_train_together_hear_each_other_and_leave_nothing(work, folder):
    before = set(os.environ)
    with beside(work.add, folder, count=2):
        work.add(folder, 0, 2)
    assert (folder / "0").read_text() == "11.0 0"
    assert (folder / "1").read_text() == "11.0 1"
    assert not distributed.is_initialized()
    assert not (folder / "meeting").exists()
    assert set(os.environ) == before


def test_one_process_alone_is_left_as_it_is(folder):
    with training_together(0, 1, folder / "meeting"):
        assert "RANK" not in os.environ
        assert not distributed.is_initialized()


def test_others_end_when_this_process_fails(work, folder):
    with pytest.raises(RuntimeError, match="mine"), beside(work.add, folder, count=2):
        raise RuntimeError("mine")
    assert not (folder / "1").exists()


def test_there_are_cores():
    assert 1 <= cores() <= (os.cpu_count() or 1)
