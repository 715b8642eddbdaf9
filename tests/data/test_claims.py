from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from nitrodistill.data.claims import Claims, own_first

InChild = Callable[[Callable[[], object]], BaseProcess]


@pytest.fixture
def holder(tmp_path: Path, in_child: InChild) -> BaseProcess:
    """Another process that holds claim 3."""

    def hold() -> None:
        other = Claims(tmp_path / "lock")
        other.open()
        with other.claimed(3):
            (tmp_path / "held").touch()
            time.sleep(60)

    process = in_child(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    return process


def test_a_claim_is_held_by_one_process_until_it_dies(tmp_path: Path, holder: BaseProcess) -> None:
    claims = Claims(tmp_path / "lock")
    claims.open()
    with claims.claimed(3) as granted:
        assert not granted
    with claims.claimed(4) as granted:
        assert granted
    assert not claims.alone()
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    with claims.claimed(3, wait=True) as granted:
        assert granted
    holder.join()
    assert claims.alone()


def test_who_is_here_is_known_by_kind(tmp_path: Path, in_child: InChild) -> None:
    claims = Claims(tmp_path / "lock", "mine")
    assert not claims.alone()  # not open: it cannot know
    claims.open()
    assert claims.alone()

    def stay() -> None:
        other = Claims(tmp_path / "lock", "theirs")
        other.open()
        assert not other.nobody("mine")
        assert other.nobody("third")
        (tmp_path / "here").touch()
        time.sleep(60)

    process = in_child(stay)
    while not (tmp_path / "here").exists() and process.is_alive():
        time.sleep(0.01)
    assert not claims.alone()
    assert not claims.nobody("theirs")
    process.kill()
    process.join()
    assert claims.nobody("theirs")
    assert claims.alone()


def test_a_claim_is_free_after_its_block(tmp_path: Path, in_child: InChild) -> None:
    claims = Claims(tmp_path / "lock")
    claims.open()
    with claims.claimed(0):
        pass

    def take() -> None:
        other = Claims(tmp_path / "lock")
        other.open()
        with other.claimed(0) as granted:
            assert granted
        assert not other.alone()  # the parent is here, without a claim

    process = in_child(take)
    process.join()
    assert process.exitcode == 0


def test_a_file_system_without_locks_grants_everything_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    claims = Claims(tmp_path / "lock")
    with caplog.at_level(logging.WARNING):
        claims.open()
        with claims.claimed(0) as granted, claims.claimed(1) as too:
            assert granted
            assert too
        assert not claims.alone()  # who can know?
        assert not claims.nobody("other")
    assert [record.message.count("may do the same work twice") for record in caplog.records] == [1]
    claims.close()


def test_a_worker_takes_its_own_first_and_leaves_none_out() -> None:
    assert own_first(7, 1, 3) == [1, 4, 0, 2, 3, 5, 6]
    assert own_first(3, 0, 1) == [0, 1, 2]
    assert own_first(1, 2, 4) == [0]
