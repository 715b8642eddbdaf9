from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from nitrodistill.data.files import atomic, check_folder, digest_of, explained, write_text


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    stopped = atomic(path)
    stopped.__enter__().write_text("half")
    stopped.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_digest_is_hashlib_s(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    path = tmp_path / "shards" / "0.arrow"
    path.write_bytes(bytes(range(256)) * 8192)  # more than one block
    file = digest_of(path, tmp_path, 3)
    assert (file.name, file.rows, file.bytes) == ("shards/0.arrow", 3, 2**21)
    assert file.blake2b == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def test_check_folder(tmp_path: Path) -> None:
    check_folder(tmp_path / "missing", ["manifest.json"])
    check_folder(tmp_path, ["manifest.json"])
    (tmp_path / ".settings.json.1-ab.tmp").touch()  # of a killed worker
    check_folder(tmp_path, ["manifest.json"])
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"something else \(notes.txt\)"):
        check_folder(tmp_path, ["manifest.json"])
    with pytest.raises(FileExistsError, match="is a file"):
        check_folder(tmp_path / "notes.txt", ["manifest.json"])
    (tmp_path / "manifest.json").touch()
    check_folder(tmp_path, ["manifest.json"])


def test_explained_keeps_the_kind_and_leaves_our_own_sentences() -> None:
    where, sentence = Path("there"), r"cannot write pairs to 'there': no right; make"
    with pytest.raises(PermissionError, match=sentence), explained(where):
        raise PermissionError(13, "no right")
    with pytest.raises(FileNotFoundError, match=r"^ours$"), explained(where):
        raise FileNotFoundError("ours")
