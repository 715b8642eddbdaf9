"""The pair store against three .pth files a sample (as Nitro's scripts write), and webdataset.

    python benchmarks/pair_store.py                 all, fifteen minutes; writes results/ and docs/pair_store.md
    python benchmarks/pair_store.py 512             one part: 512 or 1024 (pixels), or memory; the others stay
    python benchmarks/pair_store.py tables          only prints and writes what was measured before
    python benchmarks/pair_store.py --quick         small sizes; writes nothing

The samples, the formats and their readers are those of `pair_store_formats.py`. Writing is timed in CPU time
of this process and in wall time, the data forced to the disk only by the store (.pth files and webdataset do
not). Reading is shuffled and from the page cache: in this process itself for CPU time, and with 1 and 4
workers for samples a second, counted from the arrival of the first batch. Workers are processes of torch's
DataLoader, or threads. Competitors take turns; a ratio is taken within a round, then the median and the 20
and 80 percent quantiles over the rounds. Memory is that of writing, and of reading in a random order, a
million tiny samples.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import _measure as measure
import torch
from pair_store_formats import BATCH, FORMATS, KEPT, LARGE, READERS, Samples, Synthetic

from nitrodistill.data import BatchStream, PairStore
from nitrodistill.data import statistics as store_statistics

DOCS = Path(__file__).parents[1] / "docs" / "pair_store.md"
WORKERS = (1, 4)
PTH = "three .pth"
SIZES = {"512": Samples(0).latent, "1024": LARGE}


def compare(root: Path, samples: Samples, rounds: int) -> dict[str, Any]:
    """Writes and reads every format; see the head of this file."""
    return {
        "samples": samples.count,
        "rounds": rounds,
        "cores": len(os.sched_getaffinity(0)),
        "environment": measure.environment(),
        "written": written(root, samples),
        "read": read(root, samples.count, rounds),
        "int8_error": store_statistics(PairStore.open(root / "store, int8")).int8_error,
    }


def written(root: Path, samples: Samples) -> dict[str, dict[str, float]]:
    """Format -> bytes, and CPU and wall milliseconds of writing, for each sample."""
    for i in range(samples.count):  # drawn before they are written
        samples.text(i), samples.pair(i)
    found = {}
    for name, write in FORMATS.items():
        write(root / "first" / name, Samples(2))  # imports, first calls
        cpu, wall = time.process_time(), time.perf_counter()
        write(root / name, samples)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        files = [p.stat().st_size for p in (root / name).rglob("*") if p.is_file()]
        each = 1e3 / samples.count
        found[name] = {
            "bytes": sum(files) / samples.count,
            "cpu_ms": cpu * each,
            "wall_ms": wall * each,
        }
        print(f"wrote: {name}, {found[name]['bytes'] / 1024:.1f} KiB a sample", flush=True)
    return found


def read(root: Path, count: int, rounds: int) -> list[dict[str, Any]]:
    """For each reader the CPU milliseconds a sample, and samples a second by number of workers, of every round."""
    found = {
        key: {"cpu_ms": [], **{str(workers): [] for workers in WORKERS}}  # type: ignore[var-annotated]
        for key in READERS
    }
    keys = list(READERS)
    for epoch in range(rounds + 1):
        turn = epoch % len(keys)
        for key in keys[turn:] + keys[:turn]:
            for workers in (0, *WORKERS):
                wall, cpu = _time(READERS[key](root / key[0], workers, epoch), count)
                if epoch and workers:  # round 0 fills the page cache
                    found[key][str(workers)].append(1 / wall)
                elif epoch:
                    found[key]["cpu_ms"].append(1e3 * cpu)
        print(f"round {epoch} of {rounds}", flush=True)
    return [{"format": name, "by": by, **values} for (name, by), values in found.items()]


def _time(batches: Iterable[Any], count: int) -> tuple[float, float]:
    """Wall and CPU seconds of this process for each sample behind the first batch."""
    gc.collect()
    reading = iter(batches)
    first = len(next(reading)[0])
    wall, cpu, seen = time.perf_counter(), time.process_time(), 0
    for batch in reading:
        seen += len(batch[0])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if first + seen < count - BATCH:
        raise RuntimeError(f"{first + seen} of {count} samples were read.")
    return wall / seen, cpu / seen


def memory(root: Path, count: int) -> dict[str, Any]:
    """Anonymous and whole resident memory (MiB) while tiny samples are written, and read in a random order."""
    folder = root / "many"
    samples = Samples(count, latent=(1, 4, 4), width=16, longest=8)
    points: list[tuple[str, float, float]] = []
    every = max(1, count // 10)
    start = time.perf_counter()

    def note(what: str) -> None:
        points.append((what, *(measure._status(n) / 1024 for n in ("RssAnon", "VmRSS"))))
        print(points[-1], f"{time.perf_counter() - start:.0f} s", flush=True)

    for i in range(KEPT):  # those that are kept are memory of the benchmark
        samples.text(i), samples.pair(i)
    work = Synthetic(folder, samples, shard_size=4096, prompts=10_000, batch=256)
    work.prepare()
    for k in work.prompt_files:
        work.write_prompts(k)
    done = 0
    note("before writing")
    for k in work.shards:
        work.write_pairs(k)
        before, done = done, work.samples(k).stop
        if before // every < done // every:
            note(f"written {done:,}")
    work.finish()
    note("finished")
    del work
    stream = BatchStream(PairStore.open(folder), seed=0, batch_size=256)
    for i in range(count // 256):
        stream(i)
        if (i + 1) * 256 // every > i * 256 // every:
            note(f"read {(i + 1) * 256:,}")
    return {"points": points, "environment": measure.environment()}


def text(found: dict[str, Any]) -> str:
    """The part of `docs/pair_store.md` that this script writes."""
    parts = []
    for pixels in SIZES:
        if pixels in found:
            part = found[pixels]
            about = ", ".join(f"{k} {v}" for k, v in part["environment"].items())
            parts += [
                f"At {pixels} pixels, {part['samples']} samples, {part['rounds']} rounds, on {part['cores']} "
                f"cores: {about}.",
                _written_table(part["written"]),
                _read_table(part["read"]),
            ]
            [(mean, most)] = part["int8_error"].values()
            parts.append(
                f"int8 embeddings of standard normal values: relative error {mean:.2%} in the mean, {most:.2%} at "
                "most."
            )
    if "memory" in found:
        points = [(what, f"{a:.0f}", f"{b:.0f}") for what, a, b in found["memory"]["points"]]
        header = ("tiny samples", "anonymous MiB", "resident MiB")
        parts.append(measure.markdown_table(header, points))
    return "\n\n".join(parts)


def _written_table(rows: dict[str, dict[str, float]]) -> str:
    header = ("format", "KiB a sample", "fewer bytes", "write CPU ms", "write ms")
    body = [
        (
            name,
            f"{row['bytes'] / 1024:.0f}",
            f"{rows[PTH]['bytes'] / row['bytes']:.2f}x",
            f"{row['cpu_ms']:.2f}",
            f"{row['wall_ms']:.2f}",
        )
        for name, row in rows.items()
    ]
    return measure.markdown_table(header, body)


def _read_table(rows: list[dict[str, Any]]) -> str:
    header = ["format", "workers are", "CPU ms", "of .pth"]
    for workers in WORKERS:
        header += [
            f"samples/s, {workers} worker{'s' * (workers > 1)}", "of .pth in processes", "in threads"
        ]  # fmt: skip
    theirs = {row["by"]: row for row in rows if row["format"] == PTH}
    body = []
    for row in rows:
        cells = [
            row["format"],
            row["by"],
            f"{statistics.median(row['cpu_ms']):.2f}",
            _times(theirs[row["by"]]["cpu_ms"], row["cpu_ms"]),
        ]
        for workers in map(str, WORKERS):
            cells.append(f"{statistics.median(row[workers]):.0f}")
            cells += [_times(row[workers], theirs[by][workers]) for by in ("processes", "threads")]
        body.append(cells)
    return measure.markdown_table(header, body)


def _times(above: list[float], below: list[float]) -> str:
    ratio = measure.Spread.of(a / b for a, b in zip(above, below, strict=True))
    return f"{ratio.median:.1f}x ({ratio.low:.1f}-{ratio.high:.1f})"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = (*SIZES, "memory")
    parser.add_argument("part", nargs="?", choices=(*parts, "tables"), help="only this one")
    parser.add_argument("--quick", action="store_true", help="small sizes; write nothing")
    parser.add_argument("--samples", type=int, default=512, help="for bytes and throughput")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--many", type=int, default=1_000_000, help="tiny samples")
    parser.add_argument("--folder", default=None, help="where to write; needs 3 GB for 512 samples")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    count, rounds, many = options.samples, options.rounds, options.many
    if options.quick:
        count, rounds, many = 64, 2, 20_000
    found: dict[str, Any] = {}
    for part in parts:
        if options.part not in (None, part):
            continue
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            root = Path(name)
            if part == "memory":
                found[part] = memory(root, many)
            else:
                found[part] = compare(root, Samples(count, latent=SIZES[part]), rounds)
    results = measure.RESULTS / "pair_store.json"
    if results.exists() and not options.quick:  # parts that were measured before, or meanwhile
        found = json.loads(results.read_text()) | found
    print(text(found))
    if not options.quick:
        results.write_text(json.dumps(found, indent=1) + "\n")
        measure.replace_between_markers(DOCS, "pair-store-benchmark", text(found))


if __name__ == "__main__":
    main()
