"""What the verbs print: no name and no prompt, whoever wrote it, makes the terminal do something."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from nitrodistill.settings import printable


def say(text: object, file: TextIO | None = None) -> None:
    """Prints a text with its control characters written out; None is the standard output."""
    print(printable(str(text)), file=file)


@contextmanager
def harmless_warnings() -> Iterator[None]:
    """Within a `with` block, warnings are shown as `say` would."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda *given, **named: printable(before(*given, **named))
    try:
        yield
    finally:
        warnings.formatwarning = before


def size_text(size: float) -> str:
    """Bytes in three digits and a unit."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.3g} {units[0]}"
