"""When does DMD2 collapse? The critic's pace against the student's, on the digits' teacher, in equal CPU time.

    python -m benchmarks.teachers.pace [--seconds 24] [--seed 0] [--output runs/teachers] [--cache DIR] [--write]

A row is DMD2 on prompts alone with so many critic updates to one of the student, and these rates; *pace* is the
student's rate over the critic's times the updates. Two more rows try other things at the slowest critic's pace.
*Signal* is the log's `student/signal`, the true part of what the critic says, over the first 100 steps but for the
first 20, and over the last 60; *variety* that of the last 60; the alarms are the run's own, with a window of 50
steps, as the runs are short. In the last row a student of the slow critic goes on, after two thirds of the time
and for as long again, with five updates. Resumable.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure import environment, markdown_table, replace_between_markers
from benchmarks.teachers import TEACHERS
from benchmarks.teachers.__main__ import ROOT, default_cache, number
from benchmarks.teachers.compare import RESULT, Place, trained
from benchmarks.teachers.methods import MATCHING
from nitrodistill.training.run import load_student

HIGH = {"normaliser_floor": 0.5, "timesteps": {"uniform": {"ranges": [[0.3, 0.98]]}}}
PACES: dict[str, tuple[int, float, float, dict[str, Any]]] = {
    "5 updates (the default)": (5, 5e-4, 1e-3, {}),
    "5 updates, equal rates": (5, 1e-3, 1e-3, {}),
    "2 updates": (2, 5e-4, 1e-3, {}),
    "1 update": (1, 5e-4, 1e-3, {}),
    "1 update, slow student": (1, 1e-4, 1e-3, {}),
    "1 update, drawn to the student (IDA, .97)": (1, 5e-4, 1e-3, {"critic": {"follow": 0.97}}),
    "1 update, floor .5, matched above u = .3": (1, 5e-4, 1e-3, HIGH),
}
SHORT = {"log_every": 5, "alarm_window": 50}
FROM, TO = "1 update", "5 updates (the default)"


def method_of(updates: int, student: float, critic: float, settings: Any) -> dict[str, Any]:
    """A method of the comparison."""
    rates = MATCHING["optimizers"]
    return {
        **MATCHING,
        "settings": {**settings, "critic": {**settings.get("critic", {}), "updates": updates}},
        "optimizers": {
            "student": {**rates["student"], "learning_rate": student},
            "critic": {**rates["critic"], "learning_rate": critic},
        },
        "trainer": SHORT,
    }


def read(run: Path, stage: int = 0) -> dict[str, Any]:
    """What the log of a run's stage says."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    mine = [line for line in lines if line.get("stage") == stage]
    numbers = [line for line in mine if "student/signal" in line]
    early = [line["student/signal"] for line in numbers if 20 < line["step"] <= 100]
    return {
        "signal_early": statistics.mean(early) if early else None,
        "signal": statistics.mean(line["student/signal"] for line in numbers[-12:]),
        "variety": statistics.mean(line["x0/variety"] for line in numbers[-12:]),
        "steps": numbers[-1]["step"],
        "alarms": [f"{line['alarm']} ({line['step']})" for line in mine if "alarm" in line],
    }


def recovered(place: Place, seconds: float, seed: int) -> dict[str, Any]:
    """The collapsed student and its critic, which go on with the default's number of updates."""
    parts = []
    for name in (FROM, TO):
        method = method_of(*PACES[name])
        steps = place.steps(method, seconds, place.group(name, method))
        folder = place.folder / "recovered" / f"{seconds:g}-seconds" / f"seed-{seed}"
        parts.append(place.recipe(method, steps, seed, folder / "run"))
    first, second = (part.stages[0] for part in parts)
    # a collapsed student, not the end of its schedule: its rates stay where they are
    flat = {
        n: dataclasses.replace(o, lr_decay_from=1.0) for n, o in first.trainer.optimizers.items()
    }
    first = dataclasses.replace(first, trainer=dataclasses.replace(first.trainer, optimizers=flat))
    stages = (first, dataclasses.replace(second, student="previous"))
    trained(dataclasses.replace(parts[0], stages=stages), place.pipeline)
    run = folder / "run"
    student = load_student(run, place.pipeline)
    found = place.measure(student.denoiser, student.plan)
    return {"fd": found.models["student"]["fd_real"].value, **read(run, stage=1)}


def line(name: str, pace: str, row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    early = "-" if row["signal_early"] is None else f"{row['signal_early']:.2f}"
    values = [f"{row['signal']:.2f}", f"{row['variety']:.2f}", number(row["fd"])]
    alarms = ", ".join(row["alarms"]) or "none"
    return [name, pace, str(row["steps"]), early, *values, alarms]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/teachers"))
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--finished", action="store_true", help="the table of finished cells alone")
    parser.add_argument("--write", action="store_true", help="results and docs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    place = Place.of(TEACHERS["digits"], options.cache, options.output)
    rows: dict[str, dict[str, Any]] = {}
    table = []
    for name, (updates, student, critic, settings) in PACES.items():
        method = method_of(updates, student, critic, settings)
        folder = place.cell_folder(name, method, options.seed, options.seconds)
        if options.finished and not (folder / RESULT).is_file():
            continue
        cell = place.cell(name, method, options.seed, options.seconds)
        rows[name] = {"fd": cell["metrics"]["student"]["fd_real"][0], **read(folder / "run")}
        table.append(line(name, f"{student / critic / updates:.2g}", rows[name]))
        print(table[-1], flush=True)
    rows["recovered"] = recovered(place, round(2 / 3 * options.seconds), options.seed)
    table.append(line(f"{FROM}, then {TO}", "", rows["recovered"]))
    head = ["critic", "pace", "steps", "signal, early", "signal", "variety", "FD", "alarms (step)"]
    text = markdown_table(head, table)
    print(text)
    if options.write:
        found = {"environment": environment(), "seconds": options.seconds, "rows": rows}
        (ROOT / "benchmarks" / "results" / "pace.json").write_text(
            json.dumps(found, indent=1) + "\n"
        )
        replace_between_markers(ROOT / "docs" / "dmd2.md", "pace", text)


if __name__ == "__main__":
    main()
