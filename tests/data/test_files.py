from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from nitrodistill.data.files import check_folder, digest_of, explained
from nitrodistill.files import temporary_of


def test_digest_is_hashlib_s(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    path = tmp_path / "shards" / "0.arrow"
    path.write_bytes(bytes(range(256)))
    file = digest_of(path, tmp_path, 3)
    assert (file.name, file.rows, file.bytes) == ("shards/0.arrow", 3, 256)
    assert file.blake2b == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def test_check_folder(tmp_path: Path) -> None:
    check_folder(tmp_path / "missing", ["manifest.json"])
    check_folder(tmp_path, ["manifest.json"])
    temporary_of(tmp_path / "settings.json").touch()  # of a killed worker
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
