"""What the verbs print: no name and no prompt makes the terminal do something, or begins a line of its own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from nitrodistill.settings import printable


def say(text: object, file: TextIO | None = None, *, lines: bool = False) -> None:
    """Prints a text with its control characters written out; None is the standard output.

    Args:
        text: what to say.
        file: where.
        lines: whether new lines are ours, as those of a table are; else they are a name's, and written out.
    """
    print(printable(str(text)) if lines else one_line(text), file=file)


@contextmanager
def harmless_messages() -> Iterator[None]:
    """Within a `with` block, warnings and what goes to `logging` are shown as `say` would."""
    shown, record = warnings.formatwarning, logging.getLogRecordFactory()
    warnings.formatwarning = lambda message, *given, **named: shown(
        one_line(message), *given, **named
    )
    logging.setLogRecordFactory(_Record)
    try:
        yield
    finally:
        warnings.formatwarning = shown
        logging.setLogRecordFactory(record)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return one_line(super().getMessage())


def one_line(text: object) -> str:
    """A text on one line, with its control characters written out."""
    return printable(str(text)).replace("\n", "\\n")


def size_text(size: float) -> str:
    """Bytes in three digits and a unit."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.3g} {units[0]}"
