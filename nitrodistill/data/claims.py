"""Claims: who of several workers on one folder makes which file.

A claim is a POSIX byte-range lock on one small file: the kernel (or the NFS server) frees it when its holder
dies, so a killed worker leaves nothing that somebody must clean up. Where the file system has no locks (and on
Windows) every claim is granted: two workers may then make the same file, which is a waste and no fault, because a
file appears whole, by renaming, and both write the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from nitrodistill.files import blake2

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_log = logging.getLogger(__name__)
_PRESENCE = 0
"""The byte that every worker shares while it works; the claims of files come behind it."""
_KINDS = 1 << 40
"""Behind the claims: a byte for each kind of worker, shared by those of that kind."""


def own_first(count: int, rank: int, world_size: int) -> list[int]:
    """0 ... count - 1 as a worker takes them: its own, k with `k % world_size == rank`, then the others'."""
    return sorted(range(count), key=lambda k: (k % world_size != rank, k))


class Claims:
    """The claims of one worker; a process must hold at most one of them for a folder.

    Args:
        path: of the lock file; its folder must exist when `open` is called.
        kind: any text; see `nobody`.
    """

    def __init__(self, path: Path, kind: str = "") -> None:
        self._path = path
        self._kind = kind
        self._descriptor: int | None = None
        self._locks = fcntl is not None

    def open(self) -> None:
        """Begins to work here: `alone` is false for the others until `close`."""
        if self._descriptor is None and fcntl is not None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            self._try(_PRESENCE, shared=True)
            self._try(_byte_of(self._kind), shared=True)

    def close(self) -> None:
        """Ends the work: every claim is free again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def alone(self) -> bool:
        """Whether no other worker is here; False before `open`, and where there are no locks to know by."""
        return self._free(_PRESENCE) and self._try(_PRESENCE, shared=True)

    def nobody(self, kind: str) -> bool:
        """Whether no worker of another kind than this one's is here; False where nobody can know."""
        free = self._free(_byte_of(kind))
        self._release(_byte_of(kind))
        return free

    @contextlib.contextmanager
    def claimed(self, number: int, wait: bool = False) -> Iterator[bool]:
        """Holds claim `number`, at least 0, in the block; says whether it was free.

        Args:
            number: which.
            wait: until it is free.
        """
        granted = self._try(1 + number)
        pause = 0.05
        while wait and not granted:
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
            granted = self._try(1 + number)
        try:
            yield granted
        finally:
            if granted:
                self._release(1 + number)

    def _free(self, byte: int) -> bool:
        return self._descriptor is not None and self._locks and self._try(byte) and self._locks

    def _release(self, byte: int) -> None:
        if self._descriptor is not None and fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, byte)

    def _try(self, byte: int, shared: bool = False) -> bool:
        if self._descriptor is None or fcntl is None:
            return True
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.lockf(self._descriptor, kind | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if self._locks:
                _log.warning(
                    "%s cannot be locked (%s): workers beside this one may do the same work twice.",
                    self._path,
                    error.strerror,
                )
                self._locks = False
        return True


def _byte_of(kind: str) -> int:
    return _KINDS + int.from_bytes(blake2(kind, 4), "little")
