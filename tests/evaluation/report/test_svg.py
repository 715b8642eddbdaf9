"""Charts: points where the numbers are, whatever is drawn is told, and text stays text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from nitrodistill.evaluation.report.svg import Mark, Point, line_chart, scatter, strip


def numbers_of(element: Any, *names: str) -> list[float]:
    return [float(element.attributes[name]) for name in names]


def test_a_curve_goes_through_its_points(read_page: Callable[[str], Any]) -> None:
    drawn = read_page(line_chart([(0, 1.0), (50, 3.0), (100, math.nan), (200, 2.0)], "loss"))
    (curve,) = drawn.all("polyline")
    points = [tuple(map(float, p.split(","))) for p in curve.attributes["points"].split()]
    assert len(points) == 3, "what is not finite is left out"
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0) / (x2 - x0) == pytest.approx(50 / 200, abs=1e-2)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(1 / 2, abs=1e-2), "up is more"
    (svg,) = drawn.all("svg")
    assert svg.attributes["aria-label"] == (
        "loss over step 0 to 200: from 1.00 to 2.00, lowest 1.00, highest 3.00"
    )


def test_long_curves_are_thinned_to_means(read_page: Callable[[str], Any]) -> None:
    drawn = read_page(line_chart([(x, x % 2) for x in range(10_000)], "noise"))
    points = drawn.all("polyline")[0].attributes["points"].split()
    assert 200 < len(points) <= 240
    heights = {point.split(",")[1] for point in points}
    assert len(heights) <= 2, "a mean of zeros and ones"


@pytest.mark.parametrize("points", [[], [(0, math.inf)]])
def test_nothing_to_draw(points: list[tuple[float, float]]) -> None:
    assert line_chart(points, "loss") == ""


def test_a_constant_is_a_flat_line(read_page: Callable[[str], Any]) -> None:
    drawn = read_page(line_chart([(0, 2.0), (1, 2.0)], "loss"))
    ends = [p.split(",")[1] for p in drawn.all("polyline")[0].attributes["points"].split()]
    assert ends[0] == ends[1]


def test_marks_on_a_strip_keep_their_order(read_page: Callable[[str], Any]) -> None:
    marks = [Mark(3.0, "floor"), Mark(700.0, "naive"), Mark(10.0, "student", 9.0, 11.0)]
    drawn = read_page(strip(marks, logarithmic=True))
    naive, student = (numbers_of(dot, "cx")[0] for dot in drawn.all("circle"))
    (floor,) = [
        numbers_of(line, "x1")[0]
        for line in drawn.all("line")
        if "tick" in line.attributes["class"]
    ]
    share = math.log(10 / 3) / math.log(700 / 3)
    assert (student - floor) / (naive - floor) == pytest.approx(share, abs=1e-2)
    (whisker,) = [line for line in drawn.all("line") if "whisker" in line.attributes["class"]]
    left, right = numbers_of(whisker, "x1", "x2")
    assert left < student < right
    assert strip([Mark(0.0, "student")], logarithmic=True) == ""


def test_a_scatter_has_factors_as_lengths(read_page: Callable[[str], Any]) -> None:
    points = [
        Point(1.0, 100.0, "fast", on_front=True),
        Point(10.0, 10.0, "good", y_low=8.0, y_high=13.0, on_front=True),
        Point(100.0, 100.0, "poor"),
    ]
    drawn = read_page(scatter(points, "ms", "distance", floor=5.0))
    (a, b, c) = (numbers_of(dot, "cx", "cy") for dot in drawn.all("circle"))
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert a[1] == c[1] < b[1], "lower is less"
    (front,) = [line for line in drawn.all("line") if line.attributes["class"] == "front"]
    assert numbers_of(front, "x1", "y1", "x2", "y2") == [*a, *b]
    assert drawn.all("svg")[0].attributes["aria-label"] == (
        "distance against ms: fast at 1.00 and 100; good at 10.0 and 10.0; poor at 100 and 100"
    )
    assert "floor" in {e.text for e in drawn.all("text")}


def test_a_scatter_without_points_above_0_is_refused() -> None:
    for points in ([], [Point(0.0, 1.0, "free")]):
        with pytest.raises(ValueError, match="above 0"):
            scatter(points, "ms", "distance")


def test_labels_are_escaped(read_page: Callable[[str], Any], hostile: str) -> None:
    for drawn in (
        line_chart([(0, 1.0), (1, 2.0)], hostile),
        scatter([Point(1.0, 1.0, hostile)], hostile, hostile),
    ):
        assert {e.tag for e in read_page(drawn).elements} <= {
            "svg",
            "line",
            "text",
            "circle",
            "polyline",
        }
        assert not re.search(r"<(script|img)", drawn)
