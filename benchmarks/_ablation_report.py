"""Table, lines, CSV and plots of `loss_ablation.py`, from its rows: one a student and budget."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks._ablation import REFERENCE
from benchmarks._measure import markdown_table
from benchmarks._picture import save_svg
from benchmarks.teachers.__main__ import number, spread
from benchmarks.teachers.compare import METRICS
from nitrodistill.evaluation.report.svg import Point, scatter

BLOCKS = {"alone": False, "adversarial": True}
STEPS, COST = "steps", "cost"
AXES = {"ms": "ms a step", "mib": "MiB a step"}
CSV = (
    "teacher",
    "block",
    "loss",
    "multiple",
    "weight",
    "seed",
    "budget",
    "steps",
    "cpu_seconds",
    "ms",
    "mib",
)
COLUMNS = ("fd_texture", "alignment", "edge_ratio", "diversity")

Rows = Sequence[Mapping[str, Any]]


def chosen(rows: Rows, budget: str, block: str, loss: str, multiple: float = 1.0) -> Rows:
    """The seeds of one student."""
    key = (budget, block, loss, multiple)
    return [r for r in rows if (r["budget"], r["block"], r["loss"], r["multiple"]) == key]


def quality_of(rows: Rows) -> str:
    """The distance that is shown first: to real pictures where there are some."""
    return "fd_real" if "fd_real" in rows[0]["metrics"]["student"] else "fd_teacher"


def kinds(rows: Rows, block: str) -> list[tuple[str, float]]:
    """(loss, multiple) of a block, in the order of the table."""
    return list(dict.fromkeys((r["loss"], r["multiple"]) for r in rows if r["block"] == block))


def losses(rows: Rows, block: str) -> dict[str, int]:
    """Loss -> its number in a block."""
    found = dict.fromkeys(loss for loss, _ in kinds(rows, block))
    return {loss: place for place, loss in enumerate(found, 1)}


def table(rows: Rows) -> str:
    """Markdown: a row a loss and multiple of its weight, after the teacher, naive and the floor."""
    quality = quality_of(rows)
    first, blank = rows[:1], [""] * 5
    lines = [
        ["", "", model, *blank, *(spread(first, model, key) for key in (quality,)), ""]
        + [spread(first, model, key) for key in COLUMNS]
        for model in ("teacher", "naive")
    ]
    for block in BLOCKS:
        places = losses(rows, block)
        for loss, multiple in kinds(rows, block):
            same = chosen(rows, STEPS, block, loss, multiple)
            equal = chosen(rows, COST, block, loss, multiple)
            one = same[0]
            weight = "" if one["weight"] is None else f"{one['weight'] * multiple:.3g}"
            memory = "-" if one["mib"] is None else f"{one['mib']:.0f}"
            again = equal[0]["steps"] == one["steps"]
            at_cost = "the same" if again else spread(equal, "student", quality)
            lines.append(
                [str(places[loss]), block, loss, weight, f"{one['ms']:.0f}", memory]
                + [
                    str(one["steps"]),
                    str(equal[0]["steps"]),
                    spread(same, "student", quality),
                    at_cost,
                ]
                + [spread(same, "student", key) for key in COLUMNS]
            )
    floors = [rows[0]["metrics"]["student"].get(key, [None] * 4)[3] for key in (quality, *COLUMNS)]
    shown = ["-" if floor is None else number(floor) for floor in floors]
    lines.append(["", "", "floor", *blank, shown[0], "", *shown[1:]])
    head = [
        "",
        "",
        "loss",
        "weight",
        "ms a step",
        "MiB",
        "steps",
        "at equal cost",
        METRICS[quality],
    ]
    head += ["at equal cost", *(METRICS[key] for key in COLUMNS)]
    return markdown_table(head, lines)


def against(rows: Rows, budget: str) -> str:
    """Markdown: the distance of each loss over that of smooth L1 at its matched weight, the mean and by seed."""
    quality = quality_of(rows)
    columns = [
        (block, multiple)
        for block in BLOCKS
        for multiple in sorted({multiple for _, multiple in kinds(rows, block)})
    ]
    base = {
        block: {r["seed"]: _value(r, quality) for r in chosen(rows, budget, block, REFERENCE)}
        for block in BLOCKS
    }
    found: dict[str, list[list[float]]] = {}
    for loss in dict.fromkeys(row["loss"] for row in rows):
        found[loss] = [
            [
                _value(r, quality) / base[block][r["seed"]]
                for r in chosen(rows, budget, block, loss, multiple)
                if r["seed"] in base[block]
            ]
            for block, multiple in columns
        ]
    ordered = sorted(found, key=lambda loss: next(statistics.mean(v) for v in found[loss] if v))
    head = [f"{METRICS[quality]} over smooth L1's, at equal {budget}"]
    head += [block if m == 1 else f"{block}, weight x{m:.2g}" for block, m in columns]
    return markdown_table(head, ([loss, *map(_ratios, found[loss])] for loss in ordered))


def _ratios(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else "-"
    return f"{statistics.mean(values):.2f} ({' '.join(f'{v:.2f}' for v in values)})"


def yardstick(rows: Rows) -> str:
    """How much smooth L1 differs from seed to seed, which is what a difference must exceed."""
    quality, parts = quality_of(rows), []
    for block in BLOCKS:
        values = [_value(r, quality) for r in chosen(rows, STEPS, block, REFERENCE)]
        parts.append(f"{block} {', '.join(number(value) for value in values)}")
    return f"Smooth L1 by seed ({METRICS[quality]}, equal steps): {'; '.join(parts)}."


def _value(row: Mapping[str, Any], key: str) -> float:
    return row["metrics"]["student"][key][0]


def draw(rows: Rows, block: str, axis: str, file: Path) -> None:
    """Quality against what a step costs, at equal steps; the numbers are those of the table.

    A point is the mean over the seeds at the matched weight, its bar goes from the lowest of the loss's students
    to the highest, of all seeds and weights; of one student it is the interval.
    """
    quality, points = quality_of(rows), []
    for loss, place in losses(rows, block).items():
        at_one = chosen(rows, STEPS, block, loss)
        students = [
            row["metrics"]["student"][quality]
            for row in rows
            if (row["budget"], row["block"], row["loss"]) == (STEPS, block, loss)
        ]
        values = [value[0] for value in students]
        low, high = students[0][1:3] if len(students) == 1 else (min(values), max(values))
        mean = statistics.mean(_value(row, quality) for row in at_one)
        kind = "teacher" if loss == REFERENCE else "student"
        points.append(Point(at_one[0][axis], mean, str(place), kind, low, high))
    front = [
        not any((q.x, q.y) != (p.x, p.y) and q.x <= p.x and q.y <= p.y for q in points)
        for p in points
    ]
    marked = [replace(p, on_front=is_front) for p, is_front in zip(points, front, strict=True)]
    floor = rows[0]["metrics"]["student"][quality][3]
    save_svg(scatter(marked, AXES[axis], METRICS[quality], floor), file)
