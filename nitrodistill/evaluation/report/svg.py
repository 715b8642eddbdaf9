"""Charts as inline SVG: no library, no script, colours from the page's style sheet, a text for every picture.

Each function returns an `<svg>` element that scales with its column. Lines and letters take their colour from
classes (`student`, `teacher`, `naive`, `axis`, `floor`), so that one drawing serves a light and a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from markupsafe import Markup

from nitrodistill.evaluation.report.numbers import nice_ticks, number

MOST_POINTS = 240


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot.

    Attributes:
        x: horizontal, above 0.
        y: vertical, above 0.
        label: written next to it.
        kind: class of its colour.
        y_low: lower end of the interval of y, or None.
        y_high: upper end.
        on_front: whether nothing is better in both.
    """

    x: float
    y: float
    label: str
    kind: str = "student"
    y_low: float | None = None
    y_high: float | None = None
    on_front: bool = False


@dataclass(frozen=True)
class Mark:
    """A value on a strip.

    Attributes:
        value: where.
        kind: class of its colour and shape.
        low: lower end of its interval, or None.
        high: upper end.
    """

    value: float
    kind: str
    low: float | None = None
    high: float | None = None


def line_chart(
    points: Sequence[tuple[float, float]],
    title: str,
    x_name: str = "step",
    events: Mapping[float, str] | None = None,
) -> Markup:
    """A curve in a small frame with its last value marked; 320 by 150 units.

    Long curves are thinned to 240 points, each the mean of its stretch.

    Args:
        points: (x, y), sorted by x; y that are not finite are left out. Without any there is no chart.
        title: what it is, for the alternative text.
        x_name: what x counts.
        events: x -> what happens there: a dashed line, if it is within the curve.
    """
    kept = _thinned([(x, y) for x, y in points if math.isfinite(y)])
    if not kept:
        return Markup("")
    width, height, left, right, top, bottom = 320, 150, 42, 10, 10, 22
    xs, ys = [x for x, _ in kept], [y for _, y in kept]
    low, high = min(ys), max(ys)
    pad = 0.06 * (high - low) or max(1e-9, 0.1 * abs(high))
    to_x = _scale(xs[0], xs[-1], left, width - right)
    to_y = _scale(low - pad, high + pad, height - bottom, top)
    parts = []
    for tick in nice_ticks(low, high, 3):
        parts += [
            _line("grid", left, to_y(tick), width - right, to_y(tick)),
            _text("axis end", left - 6, to_y(tick) + 4, number(tick, _places(low, high))),
        ]
    for x, anchor in ((xs[0], "start"), (xs[-1], "end"))[: len(set(xs))]:
        parts.append(_text(f"axis {anchor}", to_x(x), height - 6, number(x, 0)))
    within = {x: what for x, what in (events or {}).items() if xs[0] < x < xs[-1]}
    for x, what in within.items():
        anchor = "end" if to_x(x) > width / 2 else "start"
        parts.append(_line("floor dashed", to_x(x), top, to_x(x), height - bottom))
        parts.append(
            _text(f"axis {anchor}", to_x(x) + (-4 if anchor == "end" else 4), top + 8, what)
        )
    path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in kept)
    parts.append(f'<polyline class="student line" points="{path}"/>')
    parts.append(_dot("student fill", to_x(xs[-1]), to_y(ys[-1]), 3))
    says = (
        f"{title} over {x_name} {number(xs[0], 0)} to {number(xs[-1], 0)}: from {number(ys[0])} to "
        f"{number(ys[-1])}, lowest {number(low)}, highest {number(high)}"
    ) + "".join(f"; {what} at {number(x, 0)}" for x, what in within.items())
    return _svg(width, height, says, parts)


def strip(
    marks: Sequence[Mark], logarithmic: bool, low: float | None = None, high: float | None = None
) -> Markup:
    """Values on one line with their intervals, to be read next to their numbers; 160 by 22 units.

    It has no alternative text, as it repeats the numbers of its row.

    Args:
        marks: what is marked, drawn in this order.
        logarithmic: whether equal factors are equal lengths; values of 0 or less sit at the left end.
        low: value at the left end; by default the least.
        high: value at the right end; by default the greatest.
    """
    width, height, edge, middle = 160, 22, 7, 11
    ends = [e for m in marks for e in (m.value, m.low, m.high) if e is not None]
    ends = [e for e in ends if e > 0] if logarithmic else ends
    if not ends:
        return Markup("")
    least = min(ends) if low is None else min(low, *ends)
    most = max(ends) if high is None else max(high, *ends)
    to_x = (_log_scale if logarithmic else _scale)(least, most, edge, width - edge)
    parts = [_line("grid", edge, middle, width - edge, middle)]
    for mark in marks:
        at = to_x(mark.value)
        if mark.low is not None and mark.high is not None:
            parts.append(
                _line(f"{mark.kind} whisker", to_x(mark.low), middle, to_x(mark.high), middle)
            )
        parts.append(
            _line(f"{mark.kind} tick", at, 3, at, 19)
            if mark.kind in ("teacher", "floor")
            else _dot(f"{mark.kind} dot", at, middle, 4.5)
        )
    inside = "".join(parts)
    return Markup(
        f'<svg class="strip" viewBox="0 0 {width} {height}" aria-hidden="true">{inside}</svg>'
    )


def scatter(
    points: Sequence[Point], x_name: str, y_name: str, floor: float | None = None
) -> Markup:
    """Points on two logarithmic axes, those that nothing beats joined by a line; 640 by 400 units.

    Args:
        points: at least one; x and y above 0.
        x_name: title of the horizontal axis.
        y_name: title of the vertical one.
        floor: a dashed line at this y: what equals differ by.

    Raises:
        ValueError: if there is no point, or a value is not above 0.
    """
    if not points or any(not (p.x > 0 and p.y > 0) for p in points):
        raise ValueError("a plot with logarithmic axes needs points above 0, and at least one.")
    width, height, left, right, top, bottom = 640, 400, 60, 24, 28, 54
    floors = [floor] if floor is not None and floor > 0 else []
    ys = [e for p in points for e in (p.y, p.y_low, p.y_high) if e is not None and e > 0] + floors
    x_low, x_high = min(p.x for p in points) / 1.6, max(p.x for p in points) * 2.4
    y_low, y_high = min(ys) / 1.35, max(ys) * 1.35
    base, far = height - bottom, width - right
    to_x, to_y = _log_scale(x_low, x_high, left, far), _log_scale(y_low, y_high, base, top)
    parts = [_line("frame", left, base, far, base)]
    for tick in _log_ticks(x_low, x_high):
        parts.append(_line("grid", to_x(tick), top, to_x(tick), base))
        parts.append(_text("axis middle", to_x(tick), base + 18, f"{tick:g}"))
    for tick in _log_ticks(y_low, y_high):
        parts.append(_line("grid", left, to_y(tick), far, to_y(tick)))
        parts.append(_text("axis end", left - 8, to_y(tick) + 4, f"{tick:g}"))
    parts.append(_text("axis name end", far, height - 12, f"{x_name} →"))
    parts.append(_text("axis name", 0, 14, f"↑ {y_name}"))
    for value in floors:
        parts.append(_line("floor dashed", left, to_y(value), far, to_y(value)))
        parts.append(_text("axis end", far, to_y(value) - 5, "floor"))
    for a, b in pairwise(sorted((p for p in points if p.on_front), key=lambda p: p.x)):
        parts.append(_line("front", to_x(a.x), to_y(a.y), to_x(b.x), to_y(b.y)))
    for p in points:
        parts += _point(p, to_x(p.x), to_y)
    says = "; ".join(f"{p.label} at {number(p.x)} and {number(p.y)}" for p in points)
    return _svg(width, height, f"{y_name} against {x_name}: {says}", parts)


def _point(point: Point, x: float, to_y: Callable[[float], float]) -> list[str]:
    parts = [_dot(f"{point.kind} dot", x, to_y(point.y), 6)]
    if point.y_low is not None and point.y_high is not None and point.y_low > 0:
        whisker = _line(f"{point.kind} whisker", x, to_y(point.y_low), x, to_y(point.y_high))
        parts.insert(0, whisker)
    return [*parts, _text("axis point", x + 12, to_y(point.y) + 4.5, point.label)]


def _svg(width: float, height: float, says: str, parts: Sequence[str]) -> Markup:
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(says)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(kind: str, x: float, y: float, radius: float) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def _text(kind: str, x: float, y: float, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low
    return lambda value: start + (end - start) * ((value - low) / span if span > 0 else 0.5)


def _log_scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    linear = _scale(math.log(low), math.log(high), start, end)
    return lambda value: linear(math.log(max(value, low)))


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]; powers alone over three decades."""
    wide = math.log10(high / low) > 2.5
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in ((1,) if wide else (1, 2, 5))]
    return [tick for tick in ticks if low <= tick <= high]


def _places(low: float, high: float) -> int:
    ticks = nice_ticks(low, high, 3)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return points
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]
