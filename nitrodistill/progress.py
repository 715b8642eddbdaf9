"""How far long work is: a bar on a terminal or in a notebook; elsewhere, as in a batch job, a line now and then.

The lines go to `logging`, at the level INFO: the command line shows them, and a program as it likes.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_log = logging.getLogger(__name__)
_LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left{postfix}"
_FIRST, _SLOWEST = 5.0, 300.0
"""Seconds before the first line, and between two lines at last; they double from one line to the next."""


def progress_bar(
    iterable: Iterable[Any] | None = None, *, show: bool = True, **options: Any
) -> tqdm[Any]:
    """A bar of tqdm, or what says lines in its place.

    Args:
        iterable: what it counts; None is counted by `update`.
        show: False shows and says nothing.
        options: tqdm's: desc, total, unit.
    """
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(iterable, disable=not show, **options)
    options |= {
        "mininterval": _FIRST,
        "maxinterval": 0,
        "miniters": 1,
        "delay": _FIRST,
        "file": io.StringIO(),
    }
    return _Lines(iterable, disable=not show, bar_format=_LINE, **options)


class _Lines(tqdm):
    """Says lines where a bar would be drawn."""

    said = -1
    """Up to where the last line was."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None and self.n != self.said:
            self.said = self.n
            _log.info(" ".join(str(self).split()))
            self.mininterval = min(2 * self.mininterval, _SLOWEST)
