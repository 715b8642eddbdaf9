"""Files that are whole or absent, folders that are ours, and errors that say where."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from nitrodistill.data.manifest import File

__all__ = ["atomic", "check_folder", "digest_of", "explained", "write_new_text", "write_text"]


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends well, and else vanishes."""
    temporary = _temporary(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file that appears when it is complete."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_new_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file as `write_text` does, unless there is one already: the first of several writers wins."""
    temporary = _temporary(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def digest_of(path: Path, root: Path, rows: int) -> File:
    """What the manifest says of a file: its size and hash are read from it."""
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    return File(path.relative_to(root).as_posix(), rows, size, digest.hexdigest())


def check_folder(root: Path, known: Collection[str]) -> None:
    """Refuses a place that holds something else than a store or its beginnings.

    Args:
        root: the folder; it need not exist.
        known: names of which a store or its beginnings hold at least one.

    Raises:
        FileExistsError: if it is a file, or a folder that holds other things.
    """
    with explained(root):
        if root.exists() and not root.is_dir():
            raise FileExistsError(f"{str(root)!r} is a file; choose a folder for the pairs.")
        if not root.exists():
            return
        names = {p.name for p in root.iterdir() if not re.fullmatch(r"\..*\.tmp|\.lock", p.name)}
    if names and not names.intersection(known):
        raise FileExistsError(
            f"{str(root)!r} exists and holds something else ({min(names)}); choose another folder."
        )


@contextmanager
def explained(root: Path) -> Iterator[None]:
    """Says in one sentence where writing failed."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a sentence of our own
            raise
        raise type(error)(
            f"cannot write pairs to {str(root)!r}: {error.strerror or error}; make room there or get "
            "permission, or choose another folder."
        ) from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
