"""Which method: all in about equal CPU time, students of 1 and of 4 steps, the same settings on every teacher.

    python -m benchmarks.methods [--teacher toy toy-dit digits scenes classes] [--methods DMD2 consistency]
        [--seconds 120] [--seeds 0 1 2] [--processes 2] [--output runs/methods]
    python -m benchmarks.methods --teacher ./my-pipeline --pairs runs/pairs --features my.features:vectors

A method is one dict (ROSTER), the same for all teachers. Settings and rates are mostly those of the recipes for
`toy`, with taps by depth. Where they are not the defaults of the classes (DMD2: `critic.updates` 2, not 5; flow
map: `robustness` .5, not .75), these have a row of their own. The
number of updates is `--seconds` at the pace of a short trial, so the CPU seconds that are spent differ (column
`CPU s`). The average of a student's weights forgets the teacher in so many updates (`FORGETTING`).

A teacher adds what its methods must be told: its guidance, and the timestep of a one-step student where its
last one is of no use (`benchmarks/teachers`). The students of LADD, DMD2 and feature distillation are trained
for their number of steps; those of consistency and the flow map are one, and progressive distillation passes
through 4 on its way to 1, so that its two rows share one training.

Resumable: finished students are kept, a killed one goes on. Writes results.json and results.csv into `--output`,
and with `--write` benchmarks/results/methods.* and the tables in docs/explanations/which_method.md and the README,
where committed rows of other teachers, methods and seeds stay, if they had as many seconds; new seeds of a method
then have as many updates as its committed ones.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import _parts
from benchmarks._measure import (
    RESULTS,
    as_lines,
    environment,
    markdown_table,
    merged,
    replace_between_markers,
    write_csv,
)
from benchmarks.teachers import TEACHERS
from benchmarks.teachers.__main__ import default_cache, number, spread
from benchmarks.teachers.compare import METRICS, PACE, RESULT, Place
from benchmarks.teachers.given import add_options, places
from benchmarks.teachers.methods import BOTH, DEPTHS, HEADS, METHODS, STUDENT
from nitrodistill.files import write_json
from nitrodistill.progress import progress_bar

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs" / "explanations" / "which_method.md"
COLUMNS = ("fd_real", "fd_teacher", "fd_texture", "alignment", "edge_ratio", "diversity")
CSV = ("teacher", "method", "sampled_in", "seed", "steps", "cpu_seconds")
GAME = {"student": {**STUDENT, "betas": [0.5, 0.999]}, "discriminator": HEADS}

LADD_NITRO: dict[str, Any] = {"method": "ladd", "settings": {"taps": DEPTHS}, "optimizers": GAME}
LADD_PAPER: dict[str, Any] = {
    "method": "ladd",
    "settings": {
        "taps": "every_block",
        "head_width": 96,
        "conditioning": ["timestep"],
        "reconstruction": {},
        "fresh_fraction": 1.0,
        "adversarial": "hinge",
        "discriminator_timesteps": {"logit_normal": {"mean": 1.0, "std": 1.0}},
    },
    "optimizers": GAME,
}
DMD2: dict[str, Any] = {
    "method": "dmd2",
    "settings": {"critic": {"updates": 2}},
    "optimizers": {
        "student": {
            "learning_rate": 5e-4,
            "betas": [0.5, 0.999],
            "lr_decay_from": 0.6,
            "ema_decay": 0.97,
        },
        "critic": {"learning_rate": 1e-3, "betas": [0.9, 0.999], "lr_decay_from": 0.6},
    },
}
DECOUPLED = {**DMD2, "settings": {**DMD2["settings"], "decoupled": {}}, "needs_guidance": True}
PROGRESSIVE: dict[str, Any] = {
    "stages": [
        {
            "method": "progressive",
            "settings": {"num_inference_steps": 8},
            "optimizers": {
                "student": {"learning_rate": 3e-4, "betas": [0.9, 0.999], "lr_decay_from": 0.0}
            },
            "halvings": 4,
            "share": 1 / 6,
        }
    ]
}
"""To 8, 4, 2 and 1 steps; the last two stages are twice as long as the first two."""
AVERAGED = {
    "learning_rate": 4e-4,
    "betas": [0.9, 0.999],
    "lr_decay_from": 0.5,
    "ema_decay": 0.99,
}
CONSISTENCY: dict[str, Any] = {
    "method": "consistency",
    "settings": {},
    "optimizers": {"student": AVERAGED},
}
FLOW_MAP: dict[str, Any] = {
    "method": "flow_map",
    "settings": {"robustness": 0.5},
    "optimizers": {"student": AVERAGED},
}
FEATURE_KD: dict[str, Any] = {
    "method": "feature_kd",
    "settings": {
        "data": "pairs",
        "task": {},
        "features": [[depth, depth] for depth in (0.25, 0.5, 0.75, 1.0)],
        "normalise": True,
    },
    "optimizers": {"student": {**STUDENT, "betas": [0.9, 0.999]}},
    "share": 0.4,
}
"""On the guided teacher, of no fewer blocks: which ones to leave out is another choice for each network."""


class Entry(NamedTuple):
    """A row of the table.

    Attributes:
        name: of the method.
        sampled_in: steps of the student.
        method: as `Place.cell` takes it.
    """

    name: str
    sampled_in: int
    method: dict[str, Any]


def in_steps(method: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The method for a student of so many steps."""
    return {**method, "settings": {**method["settings"], "num_inference_steps": steps}}


def roster() -> Iterator[Entry]:
    """All methods, for 1 and for 4 steps; *defaults* have the settings that their classes have."""
    one_each = {
        "LADD, Nitro's form": LADD_NITRO,
        "LADD, the paper's form": LADD_PAPER,
        "LADD, ours": BOTH,
        "LADD, balanced": METHODS["balanced"],
        "DMD2": DMD2,
        "DMD2, decoupled": DECOUPLED,
        "DMD2, defaults": {**DMD2, "settings": {}},
    }
    both = {
        "progressive": PROGRESSIVE,
        "consistency": CONSISTENCY,
        "flow map": FLOW_MAP,
        "flow map, defaults": {**FLOW_MAP, "settings": {}},
    }
    for steps in (1, 4):
        for name, method in one_each.items():
            yield Entry(name, steps, in_steps(method, steps))
        for name, method in both.items():
            yield Entry(name, steps, method)
        then = {**in_steps(BOTH, steps), "student": "previous", "share": 0.6}
        yield Entry("feature KD, then LADD", steps, {"stages": [FEATURE_KD, then]})


ROSTER = tuple(roster())


def folder_name(entry: Entry) -> str:
    """Of a method's cells; the two rows of one training share it."""
    words = "".join(c if c.isalnum() else "-" for c in entry.name.lower())
    trained_for = entry.method.get("settings", {}).get("num_inference_steps")
    return words if trained_for is None else f"{words}-in-{trained_for}"


def fits(entry: Entry, place: Place) -> bool:
    """Whether the method has anything to do on this teacher."""
    return place.teacher.guidance > 1 or not entry.method.get("needs_guidance")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a block a teacher, a row a method and number of steps."""
    lines = []
    for teacher in dict.fromkeys(row["teacher"] for row in rows):
        mine = [row for row in rows if row["teacher"] == teacher]
        for model in ("teacher", "naive"):
            shown = [spread(mine[:1], model, key) for key in COLUMNS]
            lines.append([teacher, model, "", "", "", *shown])
        for steps, method in dict.fromkeys((row["sampled_in"], row["method"]) for row in mine):
            some = [r for r in mine if (r["sampled_in"], r["method"]) == (steps, method)]
            seconds = ", ".join(f"{row['cpu_seconds']:.0f}" for row in some)
            shown = [spread(some, "student", key) for key in COLUMNS]
            updates = ", ".join(str(count) for count in dict.fromkeys(r["steps"] for r in some))
            lines.append([teacher, method, str(steps), seconds, updates, *shown])
        floors = [mine[0]["metrics"]["student"].get(key, [None] * 4)[3] for key in COLUMNS]
        shown = ["-" if floor is None else number(floor) for floor in floors]
        lines.append([teacher, "floor", "", "", "", *shown])
    head = ["teacher", "method", "steps", "CPU s", "updates", *(METRICS[key] for key in COLUMNS)]
    return markdown_table(head, lines)


def overview(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a method, a column a teacher; FD to held-out in 1 step and in 4 over the teacher's own."""
    teachers = list(dict.fromkeys(row["teacher"] for row in rows))

    def fd(some: Sequence[Mapping[str, Any]], model: str) -> float:
        return statistics.mean(row["metrics"][model]["fd_real"][0] for row in some)

    def cell(method: str, teacher: str) -> str:
        mine = [r for r in rows if (r["method"], r["teacher"]) == (method, teacher)]
        each = [[r for r in mine if r["sampled_in"] == steps] for steps in (1, 4)]
        return " / ".join(
            f"{fd(some, 'student') / fd(some, 'teacher'):.3g}" if some else "-" for some in each
        )

    methods = dict.fromkeys(row["method"] for row in rows)
    lines = [[method, *(cell(method, teacher) for teacher in teachers)] for method in methods]
    first = [[r for r in rows if r["teacher"] == teacher][:1] for teacher in teachers]
    naive = [f"{fd(row, 'naive') / fd(row, 'teacher'):.3g} / -" for row in first]
    return markdown_table(["", *teachers], [["the teacher itself, in one step", *naive], *lines])


def parser() -> argparse.ArgumentParser:
    """The options."""
    names = list(dict.fromkeys(entry.name for entry in ROSTER))
    found = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    add_options(found, list(TEACHERS))
    found.add_argument("--methods", nargs="+", choices=names, default=names)
    found.add_argument("--seconds", type=float, default=120.0, help="of CPU time a student")
    found.add_argument("--finished", action="store_true", help="the table of finished cells alone")
    _parts.add_options(found)
    found.add_argument("--output", type=Path, default=Path("runs/methods"))
    found.add_argument("--cache", type=Path, default=default_cache())
    found.add_argument("--write", action="store_true", help="results and docs")
    return found


Student = tuple[Place, Entry, int]


def part(todo: Sequence[Student], number: int, count: int) -> list[Student]:
    """Each `count`-th training from `number` on, with all seeds and rows, which share steps and students."""
    each = [(place.teacher.name, folder_name(entry)) for place, entry, _ in todo]
    mine = list(dict.fromkeys(each))[number::count]
    return [student for student, training in zip(todo, each, strict=True) if training in mine]


def made(todo: Sequence[Student], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of students, which are trained where they are not there and not only what is finished is wanted."""
    rows = []
    for place, entry, seed in progress_bar(todo, desc="students", unit="student"):
        name = folder_name(entry)
        folder = place.cell_folder(name, entry.method, seed, options.seconds)
        if options.finished and not (folder / RESULT).is_file():
            continue
        found = place.cell(name, entry.method, seed, options.seconds, sampled_in=entry.sampled_in)
        rows.append({**found, "method": entry.name, "sampled_in": entry.sampled_in})
    return rows


def keep_committed_paces(todo: Sequence[Student], options: argparse.Namespace) -> None:
    """Gives new seeds as many steps as the committed ones beside which they will stand have.

    Kept where `Place.steps` looks; what was measured here before stays.
    """
    results = RESULTS / "methods.json"
    committed = json.loads(results.read_text()) if results.is_file() else {}
    if committed.get("seconds") != options.seconds:
        return
    steps = {
        (row["teacher"], row["method"], row["sampled_in"]): row["steps"]
        for row in committed["rows"]
        if row["seed"] not in options.seeds
    }
    for place, entry, _ in todo:
        count = steps.get((place.teacher.name, entry.name, entry.sampled_in))
        pace = place.group(folder_name(entry), entry.method) / PACE
        if count and not pace.is_file():
            pace.parent.mkdir(parents=True, exist_ok=True)
            write_json(pace, {"cpu_seconds_per_step": options.seconds / count})


def with_committed(
    rows: Sequence[dict[str, Any]], before: Mapping[str, Any], seconds: float
) -> list[dict[str, Any]]:
    """The rows, and those of an earlier result that had as many seconds and were not made anew."""
    if before["seconds"] != seconds:
        return list(rows)
    order = [(teacher, one.name, one.sampled_in) for teacher in TEACHERS for one in ROSTER]
    return merged(before["rows"], rows, ("teacher", "method", "sampled_in"), order)


def main() -> None:
    known = parser()
    options = known.parse_args()
    if options.write and not set(options.teacher) <= TEACHERS.keys():
        known.error(f"--write is for {', '.join(TEACHERS)}; yours are in results.json of --output.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    todo = [
        (place, entry, seed)
        for place in places(options, options.cache)
        for entry in ROSTER
        if entry.name in options.methods and fits(entry, place)
        for seed in options.seeds
    ]
    if options.part:
        made(part(todo, *options.part), options)
        return
    if options.write and not options.finished:
        keep_committed_paces(todo, options)
    if options.processes > 1 and not options.finished:
        own = partial(made, part(todo, 0, options.processes), options)
        _parts.side_by_side("benchmarks.methods", options.processes, own)
    rows = made(todo, options)
    results, machine = RESULTS / "methods.json", environment()
    if options.write and results.is_file():
        rows = with_committed(rows, json.loads(results.read_text()), options.seconds)
    found = {"environment": machine, "seconds": options.seconds, "rows": rows}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(as_lines(found))
    write_csv(rows, CSV, options.output / "results.csv")
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    text = table(rows) + (
        f"\n\n{options.seconds:g} CPU seconds a student, seeds {seeds}, of which a row has one for each of "
        "its CPU seconds; one thread of "
        f"{machine['cpu']} (torch {machine['torch']}). Made by `python -m benchmarks.methods`."
    )
    print(text)
    if options.write:
        results.write_text(as_lines(found))
        write_csv(rows, CSV, results.with_suffix(".csv"))
        replace_between_markers(DOCS, "methods", text)
        replace_between_markers(README, "methods", overview(rows))


if __name__ == "__main__":
    main()
