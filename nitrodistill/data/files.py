"""The files of a store: how the manifest names them, folders that are ours, and errors that say where."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from nitrodistill.data.manifest import File
from nitrodistill.files import hash_file, is_temporary


def digest_of(path: Path, root: Path, rows: int) -> File:
    """What the manifest says of a file: its size and hash are read from it."""
    return File(path.relative_to(root).as_posix(), rows, path.stat().st_size, hash_file(path))


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
        names = {p.name for p in root.iterdir() if not is_temporary(p.name)} - {".lock"}
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
