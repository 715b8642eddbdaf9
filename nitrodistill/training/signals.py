"""Signals that ask a run to save and leave: Ctrl-C, and what clusters send before they take the machine away."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGUSR1 that arrive inside of a `with` block; pass it to a trainer as `stop`.

    A second Ctrl-C interrupts at once.

    The handlers that were there come back after the block. Python allows handlers in the main thread only.

    Example:
        >>> from nitrodistill.training import StopSignals
        >>> with StopSignals() as stop:
        ...     print(repr(stop()))
        ''
    """

    def __init__(self) -> None:
        self._received = ""
        self._before: dict[signal.Signals, object] = {}

    def __call__(self) -> str:
        """The name of the first signal that has arrived, or an empty string."""
        return self._received

    def __enter__(self) -> StopSignals:
        names = ("SIGINT", "SIGTERM", "SIGUSR1")  # Windows has no SIGUSR1
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received:
            raise KeyboardInterrupt
        self._received = self._received or signal.Signals(number).name
