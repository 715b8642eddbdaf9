"""What the verbs print: no name and no prompt makes the terminal do something, or begins a line of its own.

`say` prints for people. `results` gives the same to programs: with `--json` they are one document on the standard
output, and all else goes to the standard error. Progress and warnings are of the logger `nitrodistill`.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from nitrodistill.settings import printable, to_plain

_LOGGER = logging.getLogger("nitrodistill")
_document: dict[str, object] = {}
_is_json = False


def say(text: object, file: TextIO | None = None, *, lines: bool = False) -> None:
    """Prints a text with its control characters written out; None is the standard output.

    Args:
        text: what to say.
        file: where.
        lines: whether new lines are ours, as those of a table are; else they are a name's, and written out.
    """
    print(printable(str(text)) if lines else one_line(text), file=file)


def results(**values: object) -> None:
    """Adds to the document that `--json` prints when the verb has ended."""
    _document.update(values)


def set_output(*, quiet: bool, as_json: bool, level: str) -> None:
    """What the options that all verbs have ask for, until the `session` ends."""
    global _is_json
    _LOGGER.setLevel(level.upper())
    if quiet:
        _LOGGER.setLevel(max(_LOGGER.level, logging.WARNING))
    if as_json and not _is_json:
        _is_json, sys.stdout = True, sys.stderr


@contextmanager
def session() -> Iterator[None]:
    """A verb's run: its log is shown; then its document is printed, if there was no error and one is wanted.

    Of several processes the first prints it.
    """
    global _is_json
    out, level = sys.stdout, _LOGGER.level
    handler = logging.StreamHandler(sys.stderr)
    _LOGGER.addHandler(handler)
    _document.clear()
    _is_json = False
    try:
        with harmless_messages():
            yield
        if _is_json and _is_first():
            print(json.dumps(_finite(to_plain(_document)), indent=1, default=str), file=out)
    finally:
        sys.stdout = out
        _LOGGER.setLevel(level)
        _LOGGER.removeHandler(handler)


def _is_first() -> bool:
    from nitrodistill.processes import place  # loads torch

    return place().rank == 0


def _finite(value: object) -> object:
    """JSON knows no infinity, and no NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def harmless_messages() -> Iterator[None]:
    """Warnings and what goes to `logging` are shown as `say` would."""
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


def time_text(seconds: float) -> str:
    """A duration in the unit that shows two digits or more."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
