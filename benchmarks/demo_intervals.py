"""How far the demo's numbers spread: runs it with several seeds and states an interval for each length.

    python benchmarks/demo_intervals.py [--seeds 0 1 2 3] [--lengths short full ladd] [--processes 1]
        [--output runs/intervals]

`full` is `nitrodistill demo` as it is (about 10 CPU-minutes a seed), `short` the test suite's (about two), `ladd`
is `nitrodistill demo --method ladd --samples 1024` (about 15).
Resumable: a demo that is done is read from its metrics.json, or with --again evaluated once more; one that was
stopped goes on. Another length or recipe has a folder of its own; after another change of the code give another
--output. A demo uses two cores: with more, let several seeds run at once. Writes
nitrodistill/demo/demo_intervals.json, which the demo and the tests compare with, and the table in
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
from typing import Any

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


def measured(config: DemoConfig, root: Path, again: bool) -> list[Evaluation]:
    """The demo's evaluations: as they are kept, or run as far as it is not done yet."""
    config = replace(config, output=str(folder_of(config, root)))
    kept = [student.results / "metrics.json" for student in students(config)]
    if all(file.is_file() for file in kept) and not again:
        return [Evaluation.load(file) for file in kept]
    return run_demo(config)


def all_measured(
    configs: Sequence[DemoConfig], root: Path, again: bool, processes: int
) -> list[list[Evaluation]]:
    """The demos of all seeds, so many at a time."""
    if processes == 1:
        return [measured(config, root, again) for config in configs]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        return list(pool.map(measured, configs, repeat(root), repeat(again)))


def state(length: Length, seeds: Sequence[int], found: Sequence[Evaluation]) -> dict[str, Any]:
    """An entry of the file: the length, the seeds, what each came to, and the intervals."""
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
    return {**about, "student": student, "values": values}


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a metric, for each length the mean and the interval."""
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
    seeds = [f"seeds {', '.join(map(str, entry['seeds']))}" for entry in entries]
    return "\n".join([*lines, f"| measured on | {' | '.join(seeds)} |"])


def _cell(ends: dict[str, float] | None) -> str:
    return "-" if ends is None else f"{ends['mean']:.3g} ({ends['low']:.3g} to {ends['high']:.3g})"


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
        found = all_measured(configs, options.output, options.again, options.processes)
        length = length_of(LENGTHS[name])
        for of_one in zip(*found, strict=True):
            entry = state(length, options.seeds, of_one)
            entries[(*astuple(length), entry["num_inference_steps"])] = entry
    lengths = [astuple(length_of(config)) for config in LENGTHS.values()]
    ordered = [e for known in lengths for key, e in entries.items() if key[:-1] == known]
    print(table(ordered))
    write(ordered)


if __name__ == "__main__":
    main()
