"""Reads the next micro-batches in threads while the one before is trained on.

A stream is a pure function of the micro-batch's number, so reading ahead changes nothing but the waiting. Threads,
because a `PairStore` spends its time in checksums and copies, which run beside Python: what another process reads
would have to be carried here, which takes longer than the reading (`docs/pair_store.md` has the numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from nitrodistill.checks import check_whole
from nitrodistill.types import Batch


class Prefetch:
    """A stream that is read ahead inside of a `with` block.

    Args:
        stream: number of a micro-batch -> Batch. With several threads it is called from all of them at once, which
            a `BatchStream` over a `PairStore` allows.
        end: number of the first micro-batch that is not wanted any more.
        threads: how many read; as many micro-batches are kept ready.

    Raises:
        ValueError: if `threads` is not positive.

    Example:
        >>> stream = nd.BatchStream(store, seed=0, batch_size=2)
        >>> with nd.data.Prefetch(stream, end=3) as ahead:
        ...     [ahead(i).index.tolist() for i in range(3)]
        [[0, 1], [2, 3], [4, 5]]
    """

    def __init__(self, stream: Callable[[int], Batch], end: int, threads: int = 1) -> None:
        check_whole("threads", threads)
        self._stream = stream
        self._end = end
        self._threads = threads
        self._ahead: dict[int, Future[Batch]] = {}
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="nitrodistill-reader")

    def __call__(self, number: int) -> Batch:
        """Micro-batch `number`; what the stream raises is raised here."""
        self._read([number, *range(number + 1, min(number + self._threads, self._end))])
        batch = self._ahead.pop(number).result()
        self._read(range(number + 1, min(number + 1 + self._threads, self._end)))
        return batch

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.shutdown(wait=True, cancel_futures=True)

    def _read(self, numbers: Iterable[int]) -> None:
        """Has these micro-batches read, and no others."""
        wanted = list(numbers)
        for number in self._ahead.keys() - wanted:
            self._ahead.pop(number).cancel()
        for number in wanted:
            if number not in self._ahead:
                self._ahead[number] = self._readers.submit(self._stream, number)
