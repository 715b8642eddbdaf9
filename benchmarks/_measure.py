"""Measuring that all benchmarks share: interleaved CPU time, spread, peak memory, tables.

Competitors are timed in one process, one call of each per round, in an order that rotates: a machine that slows
down, or is shared, slows all of them. A ratio is taken per round and then its median and its 20 and 80 percent
quantiles, so that it holds where absolute times do not. On a CPU the clock is the process's CPU time; set one
thread (OMP_NUM_THREADS=1) to make that the time of the work. Peak memory is measured in a forked child, above what
is resident before the call.
"""

from __future__ import annotations

import csv
import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]
R = TypeVar("R", bound=Mapping[str, Any])

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Spread:
    """The median and the 20 and 80 percent quantiles of a sample."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        ordered = sorted(values)
        last = len(ordered) - 1
        return Spread(
            statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)]
        )


@dataclass(frozen=True)
class Samples:
    """The times of one competitor in milliseconds, one per round."""

    milliseconds: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """The spread of the times."""
        return Spread.of(self.milliseconds)

    def speedup_of(self, other: Samples) -> Spread:
        """How many times as long this one took as `other`, round by round."""
        pairs = zip(self.milliseconds, other.milliseconds, strict=True)
        return Spread.of(mine / theirs for mine, theirs in pairs)


def interleave(
    calls: Mapping[str, Call], *, seconds: float = 4.0, least: int = 7
) -> dict[str, Samples]:
    """Times competitors side by side.

    Args:
        calls: name -> what is timed.
        seconds: about how long all rounds may take together.
        least: rounds at the least.

    Returns:
        name -> its times. A short call is repeated within a round until it takes 2 ms.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, round(2.0 / max(_milliseconds(call, 1), 1e-3)))
    once = sum(_milliseconds(call, repeats[name]) * repeats[name] for name, call in calls.items())
    rounds = max(least, round(1e3 * seconds / once))
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(_milliseconds(calls[name], repeats[name]))
    return {name: Samples(tuple(values)) for name, values in times.items()}


def peak_mib(call: Call) -> float | None:
    """Memory that a call needs above what is resident before it, in MiB; None where Linux is not.

    The call runs twice in a forked child: once to fill caches, then with the kernel's high-water
    mark reset. The child starts no threads, so use one.
    """
    if not Path("/proc/self/clear_refs").exists() or torch.get_num_threads() > 1:
        return None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            call()
            os.write(writer, json.dumps(_peak_of(call)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else None


def allocated_mib(call: Call) -> float:
    """The most that torch holds on the CPU during a call above what it holds before, in MiB.

    Of tensors alone, as `torch.cuda.max_memory_allocated`, and so without what the C library keeps.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    assert found.profiler is not None
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events), default=0) / 2**20


def environment() -> dict[str, str]:
    """What the numbers depend on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "cpu": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_json(name: str, rows: Iterable[Any], extra: Mapping[str, object] | None = None) -> Path:
    """Writes dataclass rows and the environment to `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"environment": environment(), **(extra or {}), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def merged(
    committed: Iterable[R],
    rows: Iterable[R],
    names: tuple[str, ...],
    order: Sequence[tuple[Any, ...]],
) -> list[R]:
    """Rows, and those committed that were not made anew, in this order and by seed; what is not in it is dropped.

    Args:
        committed: of before.
        rows: the new ones.
        names: of the entries of a row that say, with its `seed`, what it is of.
        order: their values.
    """
    found = {(*(row[name] for name in names), row["seed"]): row for row in (*committed, *rows)}
    known = [key for key in found if key[:-1] in order]
    return [found[key] for key in sorted(known, key=lambda key: (order.index(key[:-1]), key[-1]))]


def write_csv(rows: Iterable[Mapping[str, Any]], keys: Sequence[str], file: Path) -> None:
    """A line a student and metric: what `keys` say of the student, and the metric's value, interval and floor."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*keys, "metric", "value", "low", "high", "floor"])
        for row in rows:
            for metric, values in row["metrics"]["student"].items():
                writer.writerow([*(row[key] for key in keys), metric, *values])


def as_lines(found: Mapping[str, Any]) -> str:
    """JSON with each of its `rows` on a line, so that a changed row is a changed line."""
    about = json.dumps({key: found[key] for key in found if key != "rows"}, indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in found["rows"])
    return f'{about[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(header), ["---"] * len(list(header)), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def replace_between_markers(path: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- name:begin -->` and `<!-- name:end -->` in a file.

    Raises:
        ValueError: if the file has no such markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    content = path.read_text()
    if begin not in content or end not in content:
        raise ValueError(f"{path} has no markers {begin} and {end}; add them where the table goes.")
    before, rest = content.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def _milliseconds(call: Call, repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        call()
    return 1e3 * (time.process_time() - start) / repeats


def _peak_of(call: Call) -> float:
    # Freed memory that the C library keeps would hide what the call takes again.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
