"""A store elsewhere: its files are fetched when they are first needed, checked, and kept in a folder here.

Any address that fsspec knows will do (`hf://datasets/user/name`, `s3://`, `https://`, `file://`). What is fetched
is kept under its hash, so that a store that changed, and two stores, cannot be mixed up.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nitrodistill.checks import check_whole
from nitrodistill.data.files import explained
from nitrodistill.data.manifest import File
from nitrodistill.files import atomic, hash_file


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Makes a ConnectionError of what an HTTP library raises, whichever huggingface_hub and fsspec use.

    Raises:
        ConnectionError: if the network, or the other side, cannot be reached.
    """
    try:
        yield
    except Exception as error:
        # requests' errors are OSErrors; those of httpx and its successors are not.
        named = any(kind.__name__ == "HTTPError" for kind in type(error).__mro__)
        if isinstance(error, OSError) or not named:
            raise
        raise ConnectionError(
            f"{what} cannot be reached ({' '.join(str(error).split())[:80]}); check the network and the address."
        ) from error


def is_address(path: str | Path) -> bool:
    """Whether `path` is an address that fsspec opens, and not a folder of this machine."""
    return isinstance(path, str) and "://" in path


class Remote:
    """The files below an address.

    Args:
        address: of the store.
        cache: folder for what is fetched; it is made.
        max_files: how many files are kept, the most recently used; None keeps all.

    Attributes:
        cache: the folder.
        max_files: how many files are kept.

    Raises:
        ValueError: if fsspec does not know this kind of address.
        ConnectionError: if it cannot be reached.
    """

    def __init__(self, address: str, cache: str | Path, max_files: int | None = None) -> None:
        from fsspec.core import url_to_fs

        if max_files is not None:
            check_whole("max_files", max_files)
        try:
            with reaching(address):
                self._files, self._root = url_to_fs(address)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{address!r} cannot be opened: {error}.") from error
        self._address = address
        self.cache: Path = Path(cache)
        self.max_files: int | None = max_files
        self._kept: OrderedDict[Path, None] = OrderedDict()

    def text(self, name: str) -> str:
        """A small UTF-8 file, not kept.

        Raises:
            FileNotFoundError: if it is not there.
            UnicodeDecodeError: if it is not UTF-8.
        """
        with reaching(self._address):
            return self._files.cat_file(f"{self._root}/{name}").decode()

    def fetch(self, entry: File) -> Path:
        """Where a file of the store is on this machine; fetched if it is not there yet.

        Raises:
            FileNotFoundError: if the store lacks it.
            ValueError: if it is not the file that the manifest names.
            OSError: if it cannot be fetched or kept.
        """
        path = self.cache / entry.name.split("/")[0] / f"{_safe(entry.blake2b)}.arrow"
        if not path.is_file() or path.stat().st_size != entry.bytes:
            with explained(self.cache):
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic(path) as temporary:
                    self._download(entry, temporary)
        self._kept[path] = None
        self._kept.move_to_end(path)
        while self.max_files is not None and len(self._kept) > self.max_files:
            self._kept.popitem(last=False)[0].unlink(missing_ok=True)
        return path

    def _download(self, entry: File, target: Path) -> None:
        try:
            with reaching(self._address):
                self._files.get_file(f"{self._root}/{entry.name}", str(target))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{entry.name} is missing in {self._address!r}; push the store again."
            ) from error
        if hash_file(target) != entry.blake2b:
            raise ValueError(
                f"{entry.name} in {self._address!r} is not the file that the manifest names (its hash "
                "differs); push the store again."
            )


def default_cache() -> Path:
    """Where fetched files are kept if nothing else is said: `$XDG_CACHE_HOME/nitrodistill/pairs`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nitrodistill" / "pairs"


def _safe(digest: str) -> str:
    """A digest as a file's name: a manifest from elsewhere must not choose a path."""
    if len(digest) != 32 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError(f"a file's blake2b is {digest!r:.40}; it must be 32 hexadecimal digits.")
    return digest
