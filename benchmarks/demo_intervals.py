"""How far the demo's numbers spread: runs it with several seeds and states an interval for each length.

    python benchmarks/demo_intervals.py [--seeds 0 1 2 3] [--lengths short full ladd] [--processes 1]
        [--output runs/intervals]

`full` is `nitrodistill demo` as it is (about 10 CPU-minutes a seed), `short` the test suite's (about two), `ladd`
is `nitrodistill demo --method ladd --samples 1024` (about 15).
Resumable: a demo that is done is read from its metrics.json, or with --again evaluated once more; one that was
stopped goes on. Another length or recipe has a folder of its own; after another change of the code give another
--output. A demo uses two cores: with more, let several seeds run at once. The wall seconds of its parts are noted
(NAME.seconds.json beside its folder) where it went from start to end in one go, with no other demo beside it.
Writes nitrodistill/demo/demo_intervals.json, which the demo and the tests compare with, and the table in
docs/evaluation_report.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, fields, replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import t as student_t

from nitrodistill.demo.demo import DemoConfig, length_of, run_demo, students
from nitrodistill.demo.expected import FILE, Length
from nitrodistill.evaluation import Evaluation, info
from nitrodistill.evaluation.report.numbers import number

DOCS = Path(__file__).parent.parent / "docs" / "evaluation_report.md"
LENGTHS = {
    "short": DemoConfig(steps=80, samples=192),
    "full": DemoConfig(),
    "ladd": DemoConfig(method="ladd", samples=1024),
}
METRICS = (
    "alignment",
    "fd_real",
    "fd_teacher",
    "fd_latents",
    "fd_texture",
    "edge_ratio",
    "high_frequency_ratio",
    "diversity",
)
ENDS = {
    "look at": "first pictures",
    "2/4": "data",
    "3/4": "training",
    "4/4": "evaluation",
    "The student in": "export",
}
"""What the demo says -> the part that ends there."""
PARTS = (*ENDS.values(), "all")


class Demo(NamedTuple):
    """What a demo came to: an evaluation a student, and the wall seconds of its parts if they are known."""

    found: list[Evaluation]
    seconds: dict[str, float] | None


class Clock:
    """Prints what a demo says, and notes when each part ends."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.ends: dict[str, float] = {}

    def __call__(self, text: str) -> None:
        print(text, flush=True)
        for mark, part in ENDS.items():
            if text.lstrip().startswith(mark):
                self.ends[part] = time.perf_counter() - self.start

    def seconds(self) -> dict[str, float]:
        """Of each part, and of all; the first begins with the demo."""
        ends = [0.0, *self.ends.values()]
        parts = {n: ends[i + 1] - ends[i] for i, n in enumerate(self.ends)} | {"all": ends[-1]}
        return {name: round(value, 1) for name, value in parts.items()}


def prediction(values: Sequence[float], positive: bool) -> dict[str, float]:
    """Mean and 95% prediction interval of one more value; with `positive` of the logarithm."""
    if len(values) < 2:
        raise ValueError(f"there are {len(values)} values; an interval needs at least two seeds.")
    scaled = [math.log(value) for value in values] if positive else list(values)
    mean, count = statistics.mean(scaled), len(scaled)
    quantile = float(student_t.ppf(0.975, count - 1))
    half = quantile * statistics.stdev(scaled) * math.sqrt(1 + 1 / count)
    ends = {"mean": mean, "low": mean - half, "high": mean + half}
    return {name: float(f"{math.exp(x) if positive else x:.4g}") for name, x in ends.items()}


def folder_of(config: DemoConfig, root: Path) -> Path:
    """Where a demo is kept: named after its length and a hash of its recipes."""
    recipes = repr([student.recipe for student in students(replace(config, output=""))])
    digest = hashlib.blake2b(recipes.encode(), digest_size=4).hexdigest()
    return root / "-".join(map(str, (*astuple(length_of(config)), "seed", config.seed, digest)))


def measured(config: DemoConfig, root: Path, again: bool, alone: bool = True) -> Demo:
    """A demo as it is kept, or run as far as it is not done yet; without others beside it its times are noted."""
    folder = folder_of(config, root)
    config, times = replace(config, output=str(folder)), Path(f"{folder}.seconds.json")
    kept = [student.results / "metrics.json" for student in students(config)]
    if all(file.is_file() for file in kept) and not again:
        found = [Evaluation.load(file) for file in kept]
    else:
        whole, clock = not folder.exists(), Clock()
        found = run_demo(config, clock)
        if whole and alone:
            times.write_text(json.dumps(clock.seconds()), encoding="utf-8")
    known = times.is_file()
    return Demo(found, json.loads(times.read_text(encoding="utf-8")) if known else None)


def all_measured(
    configs: Sequence[DemoConfig], root: Path, again: bool, processes: int
) -> list[Demo]:
    """The demos of all seeds, so many at a time."""
    if processes == 1:
        return [measured(config, root, again) for config in configs]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        return list(pool.map(measured, configs, repeat(root), repeat(again), repeat(False)))


def state(
    length: Length,
    seeds: Sequence[int],
    found: Sequence[Evaluation],
    times: Sequence[dict[str, float] | None],
) -> dict[str, Any]:
    """An entry of the file: the length, the seeds, what each came to and took, and the intervals."""
    values = {n: [f.student[n].value for f in found] for n in METRICS if n in found[0].student}
    student = {n: prediction(v, info(n).best == "low") for n, v in values.items()}
    shares = {n: ends for n, ends in student.items() if n == "alignment"}
    for ends in shares.values():
        ends["low"], ends["high"] = max(0.0, ends["low"]), min(1.0, ends["high"])
    teacher = {
        name: statistics.mean(f.models["teacher"][name].value for f in found)
        for name in ("alignment", "fd_real")
    }
    steps = len(found[0].settings["student_timesteps"])
    about = {
        **asdict(length),
        "num_inference_steps": steps,
        "seeds": list(seeds),
        "teacher": teacher,
    }
    seconds = {part: [None if one is None else one.get(part) for one in times] for part in PARTS}
    return {**about, "student": student, "values": values, "seconds": seconds}


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a metric, for each length the mean and the interval; and the times that are known."""
    head = [
        f"{e['method']}, {e['steps']} updates, {e['samples']} samples: in {e['num_inference_steps']}"
        for e in entries
    ]
    lines = [f"| number | {' | '.join(head)} |", "|---|" + "---:|" * len(entries)]
    for name in METRICS:
        cells = [_cell(entry["student"].get(name)) for entry in entries]
        lines.append(f"| {info(name).label} | {' | '.join(cells)} |")
    for name in ("alignment", "fd_real"):
        teacher = [number(entry["teacher"].get(name)) for entry in entries]
        lines.append(f"| {info(name).label}, teacher | {' | '.join(teacher)} |")
    for part in PARTS:
        cells = [_seconds(entry.get("seconds", {}).get(part, [])) for entry in entries]
        if set(cells) != {"-"}:
            lines.append(f"| wall s, {part} | {' | '.join(cells)} |")
    seeds = [f"seeds {', '.join(map(str, entry['seeds']))}" for entry in entries]
    return "\n".join([*lines, f"| measured on | {' | '.join(seeds)} |"])


def _cell(ends: dict[str, float] | None) -> str:
    return "-" if ends is None else f"{ends['mean']:.3g} ({ends['low']:.3g} to {ends['high']:.3g})"


def _seconds(values: Sequence[float | None]) -> str:
    """The median, and the range where there are several."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return "-"
    spread = f" ({known[0]:.0f} to {known[-1]:.0f})" if len(known) > 1 else ""
    return f"{statistics.median(known):.0f}{spread}"


def write(entries: Sequence[dict[str, Any]]) -> None:
    """Replaces the file, and what stands between the markers in the docs."""
    environment = {"torch": torch.__version__, "machine": platform.machine()}
    about = {"environment": {**environment, "date": time.strftime("%Y-%m-%d")}, "lengths": entries}
    FILE.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    begin, end = "<!-- intervals -->", "<!-- end of intervals -->"
    page = DOCS.read_text(encoding="utf-8")
    before, rest = page.split(begin)
    whole = f"{before}{begin}\n\n{table(entries)}\n\n{end}{rest.split(end)[1]}"
    DOCS.write_text(whole, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--again", action="store_true", help="evaluate what is kept once more")
    parser.add_argument("--processes", type=int, default=1, help="demos at a time")
    parser.add_argument("--output", type=Path, default=Path("runs/intervals"))
    options = parser.parse_args()
    if not FILE.is_file():  # the demo reads it too
        FILE.write_text('{"lengths": []}\n', encoding="utf-8")
    entries = {
        (*(e[field.name] for field in fields(Length)), e["num_inference_steps"]): e
        for e in json.loads(FILE.read_text(encoding="utf-8"))["lengths"]
    }
    for name in options.lengths:
        configs = [replace(LENGTHS[name], seed=seed) for seed in options.seeds]
        demos = all_measured(configs, options.output, options.again, options.processes)
        length, times = length_of(LENGTHS[name]), [demo.seconds for demo in demos]
        for of_one in zip(*(demo.found for demo in demos), strict=True):
            entry = state(length, options.seeds, of_one, times)
            entries[(*astuple(length), entry["num_inference_steps"])] = entry
    lengths = [astuple(length_of(config)) for config in LENGTHS.values()]
    ordered = [e for known in lengths for key, e in entries.items() if key[:-1] == known]
    print(table(ordered))
    write(ordered)


if __name__ == "__main__":
    main()
