"""Files and folders are whole or absent, and what killed writers left goes."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nitrodistill import files
from nitrodistill.files import (
    atomic,
    atomic_folder,
    blake2,
    damage,
    hash_file,
    is_temporary,
    read_lines,
    read_text,
    record_of,
    remove_stale,
    sync,
    temporary_of,
    write_json,
    write_new_text,
    write_text,
)


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.fixture
def umask_027() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def _left_by(process: int, path: Path) -> Path:
    return path.with_name(temporary_of(path).name.replace(f"-{os.getpid()}-", f"-{process}-"))


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_lines_that_are_torn_are_named_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n"\n\xff\n{"n": 1.5}\n[]\n{"n": true}\n{"n": 2}')
    with pytest.warns(RuntimeWarning, match=r"in line 2, 3, 4 and 2 more is torn, and left out\.$"):
        assert read_lines(path, "n") == [{"n": 1}, {"n": 2}]
    path.write_text("")
    assert read_lines(path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_file_of_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="this is no file of text"):
        read_text(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="No such file"):
        read_text(tmp_path / "b")


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    stopped = atomic(path)
    stopped.__enter__().write_text("half")
    stopped.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_first_of_several_writers_wins(tmp_path: Path) -> None:
    for text in ("first", "second"):
        write_new_text(tmp_path / "a", text)
    assert (tmp_path / "a").read_text() == "first"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.usefixtures("umask_027")
def test_what_safetensors_writes_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    tensors = {"x": torch.zeros(2)}
    save_file(tensors, tmp_path / "plain")
    assert (tmp_path / "plain").stat().st_mode & 0o777 == 0o600  # why this needs care
    with atomic(tmp_path / "a") as temporary:
        save_file(tensors, temporary)
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "deep").mkdir()
        save_file(tensors, folder / "deep" / "c")
    write_new_text(tmp_path / "d", "")
    write_json(tmp_path / "e", {})
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.name != "plain"}
    assert modes == {"a": 0o640, "b": 0o750, "deep": 0o750, "c": 0o640, "d": 0o640, "e": 0o640}


def test_hashes_are_hashlib_s(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192 + b"end"  # more than one block
    path = tmp_path / "a"
    path.write_bytes(data)
    expected = hashlib.blake2b(data, digest_size=16).hexdigest()
    assert hash_file(path) == expected
    assert record_of(path) == {"bytes": len(data), "blake2b": expected}
    assert blake2("é", 8) == hashlib.blake2b("é".encode(), digest_size=8).digest()
    assert blake2(["a", b"b", memoryview(b"c")]) == blake2("abc")


def test_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    for name in ("a", "deep/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    records = {name: record_of(tmp_path / name) for name in ("a", "deep/b")}
    assert damage(tmp_path, records) is None
    assert damage(tmp_path / "deep", {"../a": records["a"]}) == (
        "it names a file outside of its folder: '../a'"
    )
    assert damage(tmp_path, {str(tmp_path / "a"): records["a"]}) is not None
    assert damage(tmp_path, {"a": 3}) == "a is not what was written"
    (tmp_path / "deep/b").write_bytes(b"deep/c")  # as long
    assert damage(tmp_path, records) == "deep/b is not what was written"
    (tmp_path / "a").unlink()
    assert damage(tmp_path, records) == "a is missing"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_text(tmp_path / "a", "text")
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "c").touch()
    assert (tmp_path / "a").read_text() == "text"
    assert (tmp_path / "b" / "c").exists()


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        sync(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a", "text")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    target = tmp_path / "run"
    for text in ("old", "new"):
        with atomic_folder(target) as folder:
            (folder / text).touch()
    assert os.listdir(target) == ["new"]
    with pytest.raises(KeyError), atomic_folder(target):
        raise KeyError
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges names")
def test_two_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in {name}").touch()
    assert files._exchange(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path / "a") == ["in b"]
    assert not files._exchange(tmp_path / "a", tmp_path / "none")


@pytest.mark.parametrize("call", [1, 2])
def test_killed_between_two_renames(tmp_path: Path, call: int) -> None:
    """The earlier folder, or the new one, stands after the next start; nothing else does."""
    target = tmp_path / "run"
    with atomic_folder(target) as folder:
        (folder / "old").touch()

    def replace() -> None:
        real, done = os.replace, []

        def replace_and_die(*names: Path) -> None:
            real(*names)
            done.append(names)
            if len(done) == call:
                os.kill(os.getpid(), signal.SIGKILL)

        patch = pytest.MonkeyPatch()
        patch.setattr(files, "_exchange", lambda one, other: False)
        patch.setattr(os, "replace", replace_and_die)
        with atomic_folder(target) as folder:
            (folder / "new").touch()

    child = multiprocessing.get_context("fork").Process(target=replace)
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert target.exists() == (call == 2)
    remove_stale(tmp_path, "run")
    assert os.listdir(target) == [["old"], ["new"]][call - 1]
    assert os.listdir(tmp_path) == ["run"]


def test_only_what_the_dead_left_is_stale(tmp_path: Path, gone: int) -> None:
    mine = temporary_of(tmp_path / "a")
    dead, other = _left_by(gone, tmp_path / "a"), _left_by(gone, tmp_path / "b")
    elsewhere, old = (
        place.with_name(place.name.replace(f".{files._machine()}-", ".00000000-"))
        for place in (temporary_of(tmp_path / "c"), temporary_of(tmp_path / "d"))
    )
    users = [tmp_path / name for name in (".a.tmp", ".hidden", "a.1-2-3.tmp", ".git")]
    for place in (mine, dead, elsewhere, old, *users):
        place.touch()
    other.mkdir()
    (other / "half").touch()
    yesterday = time.time() - 25 * 60 * 60
    os.utime(old, (yesterday, yesterday))
    remove_stale(tmp_path, "a")
    assert set(tmp_path.iterdir()) == {mine, other, elsewhere, old, *users}
    remove_stale(tmp_path)
    assert set(tmp_path.iterdir()) == {mine, elsewhere, *users}
    assert [is_temporary(place.name) for place in (mine, elsewhere, *users)] == [
        True, True, False, False, False, False,
    ]  # fmt: skip


def test_who_writes_again_removes_what_the_dead_left(tmp_path: Path, gone: int) -> None:
    left = [_left_by(gone, tmp_path / name) for name in ("a", "b")]
    for place in left:
        place.touch()
    write_text(tmp_path / "a", "text")
    assert set(tmp_path.iterdir()) == {tmp_path / "a", left[1]}


def test_another_users_process_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(process: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(os, "kill", forbid)
    assert files._is_alive(1)
