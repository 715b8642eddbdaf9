"""Table, lines, CSV and plots of `loss_ablation.py`, from its rows: one a student and budget."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
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
        for place, (loss, multiple) in enumerate(kinds(rows, block), 1):
            same = chosen(rows, STEPS, block, loss, multiple)
            equal = chosen(rows, COST, block, loss, multiple)
            one = same[0]
            weight = "" if one["weight"] is None else f"{one['weight'] * multiple:.3g}"
            memory = "-" if one["mib"] is None else f"{one['mib']:.0f}"
            again = equal[0]["steps"] == one["steps"]
            at_cost = "the same" if again else spread(equal, "student", quality)
            lines.append(
                [str(place), block, loss, weight, f"{one['ms']:.0f}", memory]
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


def against(rows: Rows, budget: str) -> list[str]:
    """A line a block: the distance of each loss over that of smooth L1, by seed, the least first."""
    quality, lines = quality_of(rows), []
    for block in BLOCKS:
        base = {r["seed"]: _value(r, quality) for r in chosen(rows, budget, block, REFERENCE)}
        ratios = {}
        for loss, multiple in kinds(rows, block):
            found = chosen(rows, budget, block, loss, multiple)
            name = loss if multiple == 1 else f"{loss} x{multiple:g}"
            values = [_value(r, quality) / base[r["seed"]] for r in found if r["seed"] in base]
            if values:
                ratios[name] = values
        ordered = sorted(ratios.items(), key=lambda item: statistics.mean(item[1]))
        parts = [f"{name} {' '.join(f'{v:.2f}' for v in values)}" for name, values in ordered]
        where = f"{block}, at equal {budget}"
        lines.append(f"{METRICS[quality]} over that of smooth L1, {where}: {', '.join(parts)}.")
    return lines


def yardstick(rows: Rows) -> str:
    """How much smooth L1 differs from seed to seed, which is what a difference must exceed."""
    quality, parts = quality_of(rows), []
    for block in BLOCKS:
        values = [_value(r, quality) for r in chosen(rows, STEPS, block, REFERENCE)]
        parts.append(f"{block} {', '.join(number(value) for value in values)}")
    return f"Smooth L1 by seed ({METRICS[quality]}, equal steps): {'; '.join(parts)}."


def _value(row: Mapping[str, Any], key: str) -> float:
    return row["metrics"]["student"][key][0]


def draw(rows: Rows, block: str, file: Path) -> None:
    """Quality against the milliseconds of a step, at equal steps; the numbers are those of the table."""
    quality, points = quality_of(rows), []
    for place, (loss, multiple) in enumerate(kinds(rows, block), 1):
        found = chosen(rows, STEPS, block, loss, multiple)
        values = [row["metrics"]["student"][quality] for row in found]
        low, high = values[0][1:3] if len(values) == 1 else (None, None)
        mean = statistics.mean(value[0] for value in values)
        kind = "teacher" if loss == REFERENCE else "student"
        points.append(Point(found[0]["ms"], mean, str(place), kind, low, high))
    front = [
        not any((q.x, q.y) != (p.x, p.y) and q.x <= p.x and q.y <= p.y for q in points)
        for p in points
    ]
    marked = [
        Point(p.x, p.y, p.label, p.kind, p.y_low, p.y_high, is_front)
        for p, is_front in zip(points, front, strict=True)
    ]
    floor = rows[0]["metrics"]["student"][quality][3]
    save_svg(scatter(marked, "ms a step", METRICS[quality], floor), file)


def write_csv(rows: Rows, file: Path) -> None:
    """One line a student and metric."""
    keys = ("teacher", "block", "loss", "multiple", "weight", "seed", "budget", "steps")
    keys += ("cpu_seconds", "ms", "mib")
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*keys, "metric", "value", "low", "high", "floor"])
        for row in rows:
            for metric, values in row["metrics"]["student"].items():
                writer.writerow([*(row[key] for key in keys), metric, *values])
