"""Measure the fused kernels on this GPU: the one command that an owner of one runs.

    python benchmarks/kernels.py              # correctness suite, then every case; writes results/<gpu>.json
    python benchmarks/kernels.py --adopt      # and lets the kernels that win run by default there
    TRITON_INTERPRET=1 python benchmarks/kernels.py --try    # the same code on a CPU, tiny; no numbers

Per case: forward and backward of eager, torch.compile (default, and max-autotune without CUDA graphs), peers
that are installed, and ours, interleaved over several rounds, with the L2 cache flushed between runs.
Medians with 20% and 80% quantiles, the bytes that must move over the time, that over what a copy reaches on
the same GPU, peak memory, and what a call costs the host.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernel_cases import Case, cases, small
from torch import Tensor

from nitrodistill.kernels import backend, launch, use

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
ROUNDS = 3
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Relative difference of a contestant's loss from ours, above which it does something else."""
FASTER, LEANER = 1.15, 0.8
"""The kill rule: on its shape of record a kernel is this much faster than torch.compile, or takes at most
this share of its memory, or it does not run by default."""


def correctness() -> dict[str, Any]:
    """Run the oracle suite and the GPU tests on the device."""
    oracle = sorted(str(path) for path in (ROOT / "tests/kernels/oracle").glob("[!c]*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider"]
    command += [*oracle, str(ROOT / "tests/kernels/test_gpu.py")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(result.stdout[-3000:])
    return {"passed": result.returncode == 0, "summary": result.stdout.strip().splitlines()[-1]}


def copy_bandwidth() -> float:
    """GB/s of a device-to-device copy of 2 GiB, bytes read plus bytes written."""
    from triton.testing import do_bench

    source = torch.rand(2**29, device="cuda")
    target = torch.empty_like(source)
    milliseconds = do_bench(lambda: target.copy_(source), return_mode="median")
    return 2 * source.numel() * 4 / milliseconds / 1e6


def contestants(case: Case, device: torch.device) -> tuple[list[Tensor], dict[str, Callable]]:
    """The leaves, and name -> loss, with the compiled versions of the eager code."""
    leaves, found = case.build(device)
    if "eager" in found and device.type == "cuda":
        eager = found["eager"]
        torch._dynamo.reset()
        found["compile"] = torch.compile(eager, dynamic=False)
        mode = "max-autotune-no-cudagraphs"
        found["compile, max-autotune"] = torch.compile(eager, dynamic=False, mode=mode)
    return leaves, found


def measure(case: Case, device: torch.device) -> list[dict[str, Any]]:
    """One row per implementation of a case."""
    leaves, found = contestants(case, device)
    failed: dict[str, str] = {}
    expected = found["ours"]().item()
    for name, loss in list(found.items()):
        try:
            value = loss()
            torch.autograd.grad(value, leaves)
            if abs(value.item() - expected) > TOLERANCE[case.dtype] * expected:
                raise ValueError(f"its loss is {value.item():.6g}, ours {expected:.6g}")
        except Exception as error:  # a peer that cannot do this case is a row, not the end
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            del found[name]
    times: dict[str, list[list[float]]] = {name: [] for name in found}
    for _ in range(ROUNDS if device.type == "cuda" else 1):
        for name, loss in found.items():
            times[name].append(_milliseconds(lambda loss=loss: torch.autograd.grad(loss(), leaves)))
    rows = []
    for name, loss in found.items():
        medians = [quantiles[0] for quantiles in times[name]]
        rows.append(
            {
                **_identity(case, name),
                "ms": statistics.median(medians),
                "ms_20": min(quantiles[1] for quantiles in times[name]),
                "ms_80": max(quantiles[2] for quantiles in times[name]),
                "ms_rounds": medians,
                "gb_s": case.minimal_bytes() / statistics.median(medians) / 1e6,
                "peak_bytes": _peak_bytes(loss, leaves),
                "host_us": _host_microseconds(loss, leaves),
            }
        )
    return rows + [{**_identity(case, name), "failed": why} for name, why in failed.items()]


def _identity(case: Case, name: str) -> dict[str, Any]:
    return {
        "operation": case.operation,
        "case": case.name,
        "shape": list(case.shape),
        "dtype": str(case.dtype).removeprefix("torch."),
        "channels_last": case.channels_last,
        "of_record": case.of_record,
        "implementation": name,
    }


def _milliseconds(run: Callable[[], object]) -> list[float]:
    """Median, 20% and 80% quantile."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        run()
        return [1e3 * (time.perf_counter() - start)] * 3
    from triton.testing import do_bench

    return list(do_bench(run, warmup=50, rep=150, quantiles=[0.5, 0.2, 0.8]))


def _peak_bytes(loss: Callable[[], Tensor], leaves: list[Tensor]) -> int:
    """What forward and backward take beyond the inputs."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(loss(), leaves)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _host_microseconds(loss: Callable[[], Tensor], leaves: list[Tensor], calls: int = 100) -> float:
    """What it costs the host to enqueue forward and backward."""
    if not torch.cuda.is_available():
        calls = 1
    best = float("inf")
    for _ in range(3):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            torch.autograd.grad(loss(), leaves)
        best = min(best, (time.perf_counter() - start) / calls)
    return 1e6 * best


def proven(rows: list[dict[str, Any]]) -> list[str]:
    """The operations that the kill rule leaves, decided on all of their shapes of record."""
    verdicts: dict[str, bool] = {}
    for key, group in grouped(rows).items():
        named = {row["implementation"]: row for row in group if "ms" in row}
        others = [row for name, row in named.items() if name.startswith("compile")]
        if not group[0]["of_record"]:
            continue
        ours = named.get("ours")
        wins = bool(ours and others) and (
            min(o["ms"] for o in others) >= FASTER * ours["ms"]
            or ours["peak_bytes"] <= LEANER * min(o["peak_bytes"] for o in others)
        )
        wins = wins and ours["ms"] <= named["eager"]["ms"]
        verdicts[key[0]] = verdicts.get(key[0], True) and wins
    return sorted(name for name, wins in verdicts.items() if wins)


def grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """The rows of every case."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        layout = "channels_last" if row["channels_last"] else "contiguous"
        shape = "x".join(map(str, row["shape"]))
        key = (row["operation"], row["case"], shape, row["dtype"], layout)
        groups.setdefault(key, []).append(row)
    return groups


def markdown(document: dict[str, Any]) -> str:
    """The table of a results file, with every row, those that we lose as well."""
    lines = [
        f"Measured on one {document['gpu']} ({document['architecture']}), torch {document['torch']}, triton "
        f"{document['triton']}, on {document['date']}: forward and backward, median of {ROUNDS} rounds. A copy "
        f"reaches {document['copy_gb_s']:.0f} GB/s. Correctness suite: {document['correctness']['summary']}.",
        "",
        "| operation | case | implementation | ms (20-80%) | x ours | of copy | peak MiB | host us |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, group in grouped(document["rows"]).items():
        ours = next(
            (row["ms"] for row in group if row["implementation"] == "ours" and "ms" in row), None
        )
        for row in sorted(group, key=lambda row: row.get("ms", float("inf"))):
            start = f"| {key[0]} | {' '.join(key[1:])} | {row['implementation']} |"
            if "failed" in row:
                lines.append(f"{start} failed: {row['failed']} | | | | |")
                continue
            ratio = f"{row['ms'] / ours:.2f}" if ours else ""
            lines.append(
                f"{start} {row['ms']:.4f} ({row['ms_20']:.4f}-{row['ms_80']:.4f}) | {ratio} | "
                f"{row['gb_s'] / document['copy_gb_s']:.0%} | {row['peak_bytes'] / 2**20:.1f} | "
                f"{row['host_us']:.0f} |"
            )
    lines.append("")
    lines.append(
        f"By the kill rule these run by default: {', '.join(document['proven']) or 'none'}."
    )
    return "\n".join(lines)


def adopt(document: dict[str, Any], path: Path) -> None:
    """Point the architecture's launch table at the results."""
    table = launch.TABLES / f"{document['architecture']}.json"
    content = json.loads(table.read_text())
    content["results"] = path.relative_to(ROOT).as_posix()
    content["proven"] = document["proven"]
    table.write_text(json.dumps(content, indent=1) + "\n")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure the fused kernels on this GPU.")
    parser.add_argument(
        "--try", dest="trial", action="store_true", help="tiny, on a CPU; no numbers"
    )
    parser.add_argument("--operations", nargs="+", help="only these")
    parser.add_argument("--adopt", action="store_true", help="let what wins run by default here")
    options = parser.parse_args()
    if not options.trial and not torch.cuda.is_available():
        print("torch sees no GPU here; --try runs the same code on a CPU", file=sys.stderr)
        return 2
    if options.trial and not backend.INTERPRETED:
        print("--try needs TRITON_INTERPRET=1 in the environment", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.trial else "cuda")
    chosen = [c for c in cases() if not options.operations or c.operation in options.operations]
    document = description(options.trial)
    rows = []
    with use("triton"):
        for case in chosen:
            print(f"{case.operation}: {case.name} {case.shape} {case.dtype}", flush=True)
            rows += measure(small(case) if options.trial else case, device)
    if options.trial:
        odd = [row for row in rows if "failed" in row]
        print(f"{len(rows) - len(odd)} implementations ran and agree; {len(odd)} do not: {odd}")
        return 1 if odd else 0
    document["rows"] = rows
    document["proven"] = proven(rows)
    print(markdown(document))
    RESULTS.mkdir(exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", document["gpu"].lower()).strip("-")
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {path}")
    if options.adopt and document["correctness"]["passed"]:
        adopt(document, path)
    return 0 if document["correctness"]["passed"] else 1


def description(trial: bool) -> dict[str, Any]:
    """The machine, the software and the two numbers that everything is measured against."""
    import triton

    commit = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return {
        "gpu": "none" if trial else torch.cuda.get_device_name(),
        "architecture": "interpreter"
        if trial
        else launch.architecture(torch.cuda.current_device()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "triton": triton.__version__,
        "host": f"{os.cpu_count()} cores",
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "correctness": {"passed": True, "summary": "not run"} if trial else correctness(),
        "copy_gb_s": 1.0 if trial else copy_bandwidth(),
    }


if __name__ == "__main__":
    sys.exit(main())
