"""The table of teachers and methods, at equal CPU time.

    python -m benchmarks.teachers [--teachers digits scenes] [--methods regression both] [--seeds 0 1 2]
        [--seconds 60] [--output runs/teachers] [--cache DIR] [--share 1.0]

The teachers that do not ship with the package are trained first, in minutes of one CPU core each, and kept in
`--cache` (by default nitrodistill/teachers in the user's cache directory). Resumable: finished cells are kept, a
killed one goes on. All methods and seeds of a teacher share its pairs and its held-out noises and prompts; the
steps of a method were chosen so that it takes about `--seconds` on this machine (or `times` as long, where a
method says so), and the CPU time that it really took is in its row. Where `--write` is given it writes
benchmarks/results/teachers.json, where the rows of teachers, methods and seeds that were not asked for stay, and
the table in docs/teachers.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure import (
    as_lines,
    environment,
    markdown_table,
    merged,
    replace_between_markers,
)
from benchmarks.teachers import TEACHERS
from benchmarks.teachers.compare import METRICS, RESULT, Place
from benchmarks.teachers.methods import METHODS

ROOT = Path(__file__).parents[2]
RESULTS, DOCS = ROOT / "benchmarks" / "results" / "teachers.json", ROOT / "docs" / "teachers.md"
COLUMNS = ("fd_real", "fd_teacher", "alignment", "edge_ratio", "diversity")


def default_cache() -> Path:
    """nitrodistill/teachers in the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "nitrodistill" / "teachers"


def number(value: float) -> str:
    """Three digits or so."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3f}"


def spread(rows: Sequence[Mapping[str, Any]], model: str, key: str) -> str:
    """Mean ± standard deviation over the seeds; of one seed the interval of its own samples."""
    found = [row["metrics"][model][key] for row in rows if key in row["metrics"].get(model, {})]
    if not found:
        return "-"
    values = [metric[0] for metric in found]
    if len(values) > 1:
        return f"{number(statistics.mean(values))} ± {number(statistics.stdev(values))}"
    value, low, high, _ = found[0]
    return number(value) + ("" if low is None else f" ({number(low)} to {number(high)})")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a block a teacher, a row a method."""
    lines = []
    for teacher in dict.fromkeys(row["teacher"] for row in rows):
        mine = [row for row in rows if row["teacher"] == teacher]
        lines.append(
            [teacher, "its own steps", "", "", *(spread(mine[:1], "teacher", k) for k in COLUMNS)]
        )
        lines.append([teacher, "naive", "", "", *(spread(mine[:1], "naive", k) for k in COLUMNS)])
        for method in dict.fromkeys(row["method"] for row in mine):
            some = [row for row in mine if row["method"] == method]
            seconds = ", ".join(f"{row['cpu_seconds']:.0f}" for row in some)
            cells = [spread(some, "student", key) for key in COLUMNS]
            lines.append([teacher, method, seconds, str(some[0]["steps"]), *cells])
        floors = [mine[0]["metrics"]["student"].get(key, [None] * 4)[3] for key in COLUMNS]
        lines.append([teacher, "floor", "", "", *("-" if f is None else number(f) for f in floors)])
    head = ["teacher", "method", "CPU s", "steps", *(METRICS[key] for key in COLUMNS)]
    return markdown_table(head, lines)


def against(rows: Sequence[Mapping[str, Any]], baseline: str) -> list[str]:
    """A line for each other method: where its FD is below the baseline's, seed by seed."""
    fd = {
        (r["teacher"], r["method"], r["seed"]): r["metrics"]["student"]["fd_real"][0] for r in rows
    }
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != baseline):
        parts = []
        for teacher in dict.fromkeys(row["teacher"] for row in rows):
            ratios = [
                value / fd[teacher, baseline, seed]
                for (name, kind, seed), value in fd.items()
                if (name, kind) == (teacher, method) and (teacher, baseline, seed) in fd
            ]
            if ratios:
                parts.append(f"{teacher} {' '.join(f'{ratio:.2f}' for ratio in ratios)}")
        lines.append(f"FD of {method} over that of {baseline}, by seed: {'; '.join(parts)}.")
    return lines


def with_others(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows, and those committed that were not made anew, in the order of teachers and methods."""
    committed = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    order = list(product(TEACHERS, METHODS))
    return merged(committed, rows, ("teacher", "method"), order)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--seconds",
        type=float,
        nargs="+",
        default=[60.0],
        help="a student; one number, or one a teacher",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/teachers"))
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the teachers' training, for trials"
    )
    parser.add_argument("--finished", action="store_true", help="the table of finished cells alone")
    parser.add_argument("--write", action="store_true", help="results and docs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    all_seconds = options.seconds * (len(options.teachers) if len(options.seconds) == 1 else 1)
    if len(all_seconds) != len(options.teachers):
        parser.error(f"--seconds are {options.seconds}; give one number, or one a teacher")
    for name, seconds in zip(options.teachers, all_seconds, strict=True):
        place = Place.of(TEACHERS[name], options.cache, options.output, share=options.share)
        for seed in options.seeds:
            for method in options.methods:
                times = METHODS[method].get("times", 1)
                about = method.replace(" ", "-"), METHODS[method], seed, times * seconds
                if options.finished and not (place.cell_folder(*about) / RESULT).is_file():
                    continue
                row = {**place.cell(*about), "method": method}
                rows.append(row)
                print(name, method, seed, row["cpu_seconds"], row["metrics"]["student"], flush=True)
    if options.write:
        rows = with_others(rows)
    lines = against(rows, options.methods[0])
    text = "\n\n".join([table(rows), *lines])
    print(text)
    if options.write:
        found = {"environment": environment(), "methods": METHODS, "rows": rows}
        RESULTS.write_text(as_lines(found))
        replace_between_markers(DOCS, "teachers", text)


if __name__ == "__main__":
    main()
