"""Numbers: digits that mean something, and round ticks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitrodistill.evaluation.report.numbers import (
    decimals_apart,
    interval,
    nice_ticks,
    number,
    times,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (0.9384, "0.938"),
        (9.895, "9.89"),
        (12.06, "12.1"),
        (747.2, "747"),
        (12345.6, "12,346"),
        (0.00251, "0.0025"),
        (-0.5, "\u22120.500"),
    ],
)
def test_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_intervals_have_the_digits_of_their_value() -> None:
    assert interval(9.1, 10.83, 9.895) == "9.10 to 10.83"
    assert interval(None, 1.0, 0.5) == ""
    assert interval(1.0, 1.0, 1.0) == "", "an interval without width says nothing"


def test_times() -> None:
    assert (times(38.4), times(2.55), times(9.96)) == ("38×", "2.5×", "10.0×")


@given(
    low=st.floats(-1e6, 1e6),
    span=st.floats(1e-6, 1e6),
    count=st.integers(1, 8),
)
def test_ticks_are_round_and_inside(low: float, span: float, count: int) -> None:
    ticks = nice_ticks(low, low + span, count)
    margin = 1e-6 * (abs(low) + span)
    assert all(low - margin <= tick <= low + span + margin for tick in ticks)
    assert len(ticks) <= count + 1
    steps = {f"{b - a:.6g}" for a, b in pairwise(ticks) if span > 1e-3 * abs(low)}
    assert len(steps) <= 1
    assert all(
        float(step) == pytest.approx(float(f"{float(step):.0e}"), rel=1e-3) for step in steps
    )


def test_equal_ends_have_one_tick() -> None:
    assert nice_ticks(2.0, 2.0) == [2.0]


@pytest.mark.parametrize(
    ("value", "low", "high", "text", "ends"),
    [
        (1.0, 1.0, 1.0, "1.00", ""),
        (0.9, 0.85, 0.95, "0.900", "0.850 to 0.950"),
        (1.002, 0.999, 1.005, "1.002", "0.999 to 1.005"),
        (1.004, 1.0004, 1.0076, "1.0040", "1.0004 to 1.0076"),
        (0.9996, 0.9993, 0.99999, "0.99960", "0.99930 to 0.99999"),
        (1.02, None, None, "1.02", ""),
        (1 + 1e-9, None, None, "1.00", ""),
    ],
)
def test_a_ratio_near_1_shows_why_it_differs(
    value: float, low: float | None, high: float | None, text: str, ends: str
) -> None:
    places = decimals_apart(value, low, high)
    assert number(value, places) == text
    assert interval(low, high, value, places) == ends
