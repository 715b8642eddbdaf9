"""Compile every kernel ahead of time, for GPUs that are not here, and hold it to its resource gates.

    python -m tools.kernels.aot                  # all cases, all architectures
    python -m tools.kernels.aot --write FILE     # keep the figures
    python -m tools.kernels.aot --compare FILE   # fail where one is over 10% worse

The launchers run on tensors without storage, at real shapes; instead of being launched, each kernel is
compiled with the signature and the attributes (divisibility, pointer range) that Triton's JIT would have
derived from that call. What the compiler then reports is what would run. Triton must not interpret.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from nitrodistill.files import write_text
from tools.kernels import aot_cases, aot_report
from tools.kernels.aot_report import Figures

ARCHITECTURES = ("gfx90a", "gfx942", "sm_80", "sm_90")


class Build(NamedTuple):
    """One kernel of one case on one architecture."""

    case: str
    architecture: str
    pointer_range: bool

    def key(self, kernel: str) -> str:
        """Its name in the figures."""
        wide = "" if self.pointer_range else "/over_2_gib"
        return f"{self.case}/{kernel}/{self.architecture}{wide}"


def builds(architectures: tuple[str, ...], subset: bool) -> Iterator[Build]:
    """All builds, or for `subset` those of the cases marked for continuous integration."""
    for case in aot_cases.CASES:
        if subset and not case.subset:
            continue
        for architecture in architectures:
            yield Build(case.name, architecture, True)
            if architecture.startswith("gfx") and not subset:
                yield Build(case.name, architecture, False)


def figures(build: Build) -> dict[str, Figures]:
    """Compile the kernels of one build; key -> what the compiler reports."""
    case = next(case for case in aot_cases.CASES if case.name == build.case)
    return {
        build.key(launch.name): aot_report.compile_launch(
            launch, build.architecture, build.pointer_range
        )
        for launch in aot_cases.record(case, build.architecture)
    }


def collect(chosen: list[Build], processes: int) -> dict[str, Figures]:
    """The figures of all chosen builds, sorted by key."""
    if processes == 1:
        parts = [figures(build) for build in chosen]
    else:
        with ProcessPoolExecutor(processes) as pool:
            parts = list(pool.map(figures, chosen, chunksize=4))
    return dict(sorted((key, value) for part in parts for key, value in part.items()))


def failures(found: dict[str, Figures], kept: dict[str, Figures] | None) -> list[str]:
    """One sentence for every gate missed and every figure over 10% worse than the kept one."""
    problems = []
    for key, value in found.items():
        problems += [f"{key}: {reason}" for reason in aot_report.gate(key, value)]
        if kept is None:
            continue
        if key not in kept:
            problems.append(f"{key}: no kept figures; run with --write and commit them")
            continue
        for name in ("registers", "shared_bytes"):
            before, after = kept[key][name], value[name]
            if after > 1.1 * before and after > before + 4:
                problems.append(f"{key}: {name} went from {before} to {after}")
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the exit code is 1 where a gate is missed."""
    parser = argparse.ArgumentParser(description="Compile all kernels and check their resources.")
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--subset", action="store_true", help="only what CI compiles")
    parser.add_argument("--write", type=Path, help="keep the figures in this JSON file")
    parser.add_argument("--compare", type=Path, help="fail where a figure is over 10%% worse")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    chosen = list(builds(tuple(options.architectures), options.subset))
    found = collect(chosen, options.processes)
    kept = json.loads(options.compare.read_text())["figures"] if options.compare else None
    problems = failures(found, kept)
    print(aot_report.table(found))
    if options.write:
        write_text(options.write, aot_report.document(found))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(found)} kernels compiled, {len(problems)} gates missed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
