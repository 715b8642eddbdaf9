"""Reads the next micro-batch in a thread while the one before is trained on.

A stream is a pure function of the micro-batch's number, so reading ahead changes nothing but the waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from nitrodistill.types import Batch

__all__ = ["Prefetch"]


class Prefetch:
    """A stream that is read one ahead inside of a `with` block.

    Args:
        stream: number of a micro-batch -> Batch. It is called from one thread at a time.
        end: number of the first micro-batch that is not wanted any more.
    """

    def __init__(self, stream: Callable[[int], Batch], end: int) -> None:
        self._stream = stream
        self._end = end
        self._ahead: tuple[int, Future[Batch]] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="nitrodistill-reader")

    def __call__(self, number: int) -> Batch:
        """Micro-batch `number`; what the stream raises is raised here."""
        if self._ahead is None or self._ahead[0] != number:
            self._ahead = (number, self._reader.submit(self._stream, number))
        batch = self._ahead[1].result()
        following = number + 1
        self._ahead = None
        if following < self._end:
            self._ahead = (following, self._reader.submit(self._stream, following))
        return batch

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)
