"""Numbers as people read them: three significant digits, intervals with the digits of their value."""

from __future__ import annotations

import math
from collections.abc import Sequence

DIGITS = 3
MOST_DECIMALS = 6


def decimals(value: float) -> int:
    """Decimals that show three significant digits of `value`, two below 0.01, at most six; 0 for 0."""
    if value == 0 or not math.isfinite(value):
        return 0
    digits = DIGITS if abs(value) >= 0.01 else DIGITS - 1
    return min(MOST_DECIMALS, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def decimals_apart(value: float, low: float | None, high: float | None) -> int:
    """Decimals of a ratio: as `decimals`, or as many as show that it, or an interval without 1, is not 1.

    At most six; what is not 1 by less than that has those of `decimals`.
    """
    places = decimals(value)
    ends = [e for e in (low, high) if e is not None]
    outside = ends if ends and (min(ends) > 1 or max(ends) < 1) else []
    for end in (value, *outside):
        found = (p for p in range(places, MOST_DECIMALS + 1) if round(end, p) != 1)
        places = next(found, places) if end != 1 else places
    return places


def number(value: float | None, places: int | None = None) -> str:
    """The value with `places` decimals, by default three significant digits; "–" for None.

    Thousands are set apart by commas.
    """
    if value is None or not math.isfinite(value):
        return "–"
    shown = decimals(value) if places is None else places
    return f"{value:,.{shown}f}".replace("-", "\u2212")


def interval(low: float | None, high: float | None, value: float, places: int | None = None) -> str:
    """`low to high` with the decimals of `value`, or `places`; empty without an interval or a width of it."""
    if low is None or high is None or low == high:
        return ""
    places = decimals(value) if places is None else places
    return f"{number(low, places)} to {number(high, places)}"


def times(ratio: float) -> str:
    """A ratio in words' place: 38×, 2.6×."""
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×"


def nice_ticks(low: float, high: float, count: int = 4) -> Sequence[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that lie in [low, high], about `count` of them.

    Args:
        low: lower end, finite.
        high: upper end, finite; equal ends give one tick.
        count: how many are wanted.
    """
    span = high - low
    if span <= 0:
        return [low]
    raw = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]
