"""Files and folders that are whole or absent, flushed to the disk, with the permissions of any new file; hashes.

What is new is written beside its destination under a temporary name, `.NAME.MACHINE-PROCESS-RANDOM.tmp`, flushed
to the disk and renamed. A process that is killed leaves its temporary behind; the name says whose it was, so that
whoever writes there next can remove it without harm to writers that still live.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

Data: TypeAlias = "str | bytes | memoryview"

_BLOCK = 1 << 20
_DAY = 24 * 60 * 60
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""How file systems say that they have no fsync."""
_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.(?P<kind>tmp|old)"
)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` when the block ends well, and else vanishes.

    It may be overwritten or replaced in the block; its permissions are those of any new file all the same
    (safetensors gives its files to their owner alone). What killed writers of `path` left is removed before.
    """
    remove_stale(path.parent, path.name)
    temporary = temporary_of(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        _share(temporary, mode)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        FileNotFoundError: if there is none; a pipe is none, as one would wait for it.
        ValueError: if it is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "this is no file of text", str(path))
    return path.read_text(encoding="utf-8")


def read_lines(path: Path, *counts: str) -> list[dict[str, Any]]:
    """The lines of a file of JSON objects; a warning names those that are none, and they are left out.

    Args:
        path: of the file.
        counts: names that every object has, of integers.
    """
    found, torn = [], []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and all(type(line.get(name)) is int for name in counts):
            found.append(line)
        else:
            torn.append(str(number))
    if torn:
        more = f" and {len(torn) - 3} more" if len(torn) > 3 else ""
        warnings.warn(
            f"{path}: what stands in line {', '.join(torn[:3])}{more} is torn, and left out.",
            RuntimeWarning,
            stacklevel=2,
        )
    return found


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file that appears when it is complete."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object, indent: int = 1) -> None:
    """Writes a JSON file that appears when it is complete."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_new_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file as `write_text` does, unless there is one already: the first of several writers wins."""
    temporary = temporary_of(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and else vanishes.

    What killed writers of `path` left is removed before. The parent must exist.
    """
    remove_stale(path.parent, path.name)
    temporary = temporary_of(path)
    temporary.mkdir()
    try:
        yield temporary
        complete_folder(temporary)
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def complete_folder(folder: Path) -> None:
    """Flushes all files and folders in `folder` to the disk, with the permissions of new files."""
    mode = folder.stat().st_mode
    for place in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
        if place.is_file():
            _share(place, mode)
        sync(place)
    sync(folder)


def replace_folder(new: Path, path: Path) -> None:
    """Gives a complete folder its name; what had the name goes.

    Where the system can exchange two names, there is always a folder at `path`. Elsewhere there is none for a
    moment; `remove_stale` brings the earlier one back if the process is killed then.
    """
    if not path.exists():
        os.replace(new, path)
        sync(path.parent)
        return
    old = new
    if not _exchange(new, path):
        old = temporary_of(path).with_suffix(".old")
        os.replace(path, old)
        os.replace(new, path)
    sync(path.parent)
    shutil.rmtree(old)


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Removes what killed processes left in a folder.

    That is what belongs to a process of this machine that is gone, and what nobody has touched for a day.

    Args:
        folder: where; its subfolders are not looked at.
        name: of the file or folder that was to be written; None takes all.
    """
    for place in folder.glob(".*-*-*.*"):
        match = _TEMPORARY.fullmatch(place.name)
        if match is None or name not in (None, match["name"]) or not _is_stale(place, match):
            continue
        if match["kind"] == "old" and not (folder / match["name"]).exists():
            os.replace(place, folder / match["name"])  # killed between two renames
        elif place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def temporary_of(path: Path) -> Path:
    """A new temporary name beside `path`; nothing is made."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one that is being written, or was."""
    return _TEMPORARY.fullmatch(name) is not None


def blake2(parts: Data | Iterable[Data], size: int = 16) -> bytes:
    """The BLAKE2b hash, `size` bytes, of data or of its parts one after another; text counts as UTF-8."""
    digest = hashlib.blake2b(digest_size=size)
    for part in (parts,) if isinstance(parts, (str, bytes, memoryview)) else parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.digest()


def hash_file(path: Path) -> str:
    """The BLAKE2b hash of a file's content: 16 bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return blake2(iter(lambda: stream.read(_BLOCK), b"")).hex()


def record_of(path: Path) -> dict[str, object]:
    """What a manifest says of a file: its size (`bytes`) and its hash (`blake2b`)."""
    return {"bytes": path.stat().st_size, "blake2b": hash_file(path)}


def damage(folder: Path, records: Mapping[str, object]) -> str | None:
    """What is wrong with the files of a folder, as the end of a sentence; None if nothing is.

    Args:
        folder: where they are.
        records: file's name, relative to the folder and with "/", -> what `record_of` said of it.
    """
    for name, record in records.items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"it names a file outside of its folder: {name!r}"
        if not file.is_file():
            return f"{name} is missing"
        if record != record_of(file):
            return f"{name} is not what was written"
    return None


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk; does nothing where the file system has no such thing.

    Raises:
        OSError: if it cannot be written.
    """
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _machine() -> str:
    """A name for what process numbers mean here: containers on one machine count their own."""
    processes = ""
    with suppress(OSError):  # not Linux
        processes = os.readlink("/proc/self/ns/pid")
    return blake2(f"{platform.node()} {processes}", 4).hex()


def _is_stale(place: Path, match: re.Match[str]) -> bool:
    if match["machine"] == _machine() and not _is_alive(int(match["process"])):
        return True
    with suppress(OSError):  # its writer was faster
        return time.time() - place.stat().st_mtime > _DAY
    return False


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where os.kill kills
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _share(path: Path, mode: int) -> None:
    """Gives a file the permissions to read and write in `mode`, which the umask has gone through."""
    wanted = mode & 0o666
    if path.stat().st_mode & 0o777 != wanted:
        path.chmod(wanted)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; says whether the system can (Linux, on most local file systems)."""
    with suppress(AttributeError, OSError, TypeError):  # not Linux
        call = ctypes.CDLL(None).renameat2
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
    return False
