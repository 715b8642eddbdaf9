"""Folders appear whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from nitrodistill.export import folder as folders
from nitrodistill.export.folder import RECORD, check_target, folder_for
from nitrodistill.files import record_of


def test_a_folder_appears_when_its_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep"
    with folder_for(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["deep"]


def test_an_earlier_export_stays_until_the_new_one_stands(tmp_path: Path) -> None:
    target = tmp_path / "student"
    for text in ("old", "new"):
        with folder_for(check_target(target)) as partial:
            (partial / RECORD).write_text(text)
    assert (target / RECORD).read_text() == "new"
    with pytest.raises(KeyError), folder_for(check_target(target)):
        raise KeyError
    assert (target / RECORD).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_what_was_put_into_an_earlier_export_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w").write_text("1")
    record = {"files": {"unet/w": record_of(tmp_path / "unet" / "w")}}
    (tmp_path / RECORD).write_text(json.dumps(record))
    (tmp_path / "README.md").touch()
    check_target(tmp_path)
    (tmp_path / "unet" / "w").write_text("2")  # damage is a reason to export again
    check_target(tmp_path)
    (tmp_path / "photo.png").touch()
    with pytest.raises(FileExistsError, match=r"also photo.png, which would be lost"):
        check_target(tmp_path)


def _export_and_die(target: Path) -> None:
    with folder_for(target) as partial:
        (partial / "half").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_next_export_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "student"
    with folder_for(target) as partial:
        (partial / RECORD).write_text("old")
    process = multiprocessing.get_context("fork").Process(target=_export_and_die, args=(target,))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert (target / RECORD).read_text() == "old"
    with folder_for(check_target(target)) as partial:
        (partial / RECORD).write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert (target / RECORD).read_text() == "new"


def test_a_failed_block_leaves_no_parents(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder_for(tmp_path / "new" / "deep" / "out"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_places_that_hold_something_else_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "photos"
    full.mkdir()
    (full / "mine.png").touch()
    with pytest.raises(FileExistsError, match="not an earlier export"):
        check_target(full)
    with pytest.raises(FileExistsError, match="is a file"):
        check_target(full / "mine.png")
    monkeypatch.setattr(folders.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="not writable"):
        check_target(tmp_path / "out")
