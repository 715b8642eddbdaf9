"""Find the launch options of this GPU's architecture and write its table.

    python -m tools.kernels.tune                      # all operations, prints the table
    python -m tools.kernels.tune --output FILE.json   # and writes it

Every option is halved and doubled in turn, at the shapes of record, as long as that makes a forward and
backward pass faster. The table goes to `nitrodistill/kernels/tables/<architecture>.json`; a pull request
that adds one is welcome, with the results of `benchmarks/kernels.py`, without which nothing in it runs by
default.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch

from nitrodistill.files import write_text
from nitrodistill.kernels import launch
from nitrodistill.kernels.backend import use
from nitrodistill.kernels.launch import Options
from tools.kernels.steps import OPERATIONS, step

SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "x0_loss": ((64, 16, 128, 128),),
    "lpips_head": ((8, 64, 512, 512), (8, 512, 64, 64)),
    "dmd": ((16, 16, 128, 128),),
    "ssim": ((8, 3, 512, 512),),
    "laplacian": ((16, 4, 128, 128),),
}
LIMITS = {"warps": (1, 8), "wide_warps": (1, 8)}
"""Least and most of an option; the others are sizes of tiles, from 1 to 2^20."""
MARGIN = 0.98
"""A change is kept where it takes at most this share of the time; less is noise."""


def search(options: Options, time_of: Callable[[Options], float]) -> tuple[dict[str, int], float]:
    """Coordinate descent from `options`: the best found, and its time.

    Args:
        options: where to start.
        time_of: the time of a choice; infinite where it does not run.
    """
    best, time = dict(options), time_of(options)
    for name in options:
        for change in (lambda value: value * 2, lambda value: value // 2):
            while True:
                trial = {**best, name: change(best[name])}
                low, high = LIMITS.get(name, (1, 2**20))
                if not low <= trial[name] <= high:
                    break
                found = time_of(trial)
                if found > MARGIN * time:
                    break
                best, time = trial, found
    return best, time


def milliseconds(operation: str, options: Options) -> float:
    """Milliseconds of a forward and backward pass at the shapes of record; infinite if it fails."""
    from triton.testing import do_bench

    table = launch.table(launch.architecture(torch.cuda.current_device()))
    before, table[operation] = table[operation], options
    try:
        with use("triton"):
            runs = [step(operation, shape, "cuda", torch.bfloat16) for shape in SHAPES[operation]]
            return sum(cast(float, do_bench(run, return_mode="median")) for run in runs)
    except Exception as error:  # a tile too large for this chip fails in many ways
        print(f"  {operation} {dict(options)}: {type(error).__name__}", file=sys.stderr)
        return float("inf")
    finally:
        table[operation] = before


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Tune the kernels' launch options on this GPU.")
    parser.add_argument("--operations", nargs="+", default=OPERATIONS, choices=OPERATIONS)
    parser.add_argument("--output", type=Path, help="write the table to this JSON file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tuning needs a GPU, and torch sees none here", file=sys.stderr)
        return 2
    architecture = launch.architecture(torch.cuda.current_device())
    table = dict(launch.table(architecture))
    for operation in options.operations:
        best, time = search(table[operation], partial(milliseconds, operation))
        print(f"{operation}: {time:.3f} ms with {best}")
        table[operation] = best
    document = {"architecture": architecture, "results": None, "proven": [], "launch": table}
    text = json.dumps(document, indent=1) + "\n"
    print(text)
    if options.output:
        write_text(options.output, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
