from __future__ import annotations

import importlib
import os
import time

import pytest

from nitrodistill.cli.workers import beside, cores

WORK = """
import torch

def note(folder, rank, count):
    (folder / f"{rank} of {count}, threads: {torch.get_num_threads()}").touch()
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


def test_others_end_when_this_process_fails(work, folder):
    with pytest.raises(RuntimeError, match="mine"), beside(work.note, folder, count=2):
        raise RuntimeError("mine")
    assert not any(folder.iterdir())


def test_there_are_cores():
    assert 1 <= cores() <= (os.cpu_count() or 1)
