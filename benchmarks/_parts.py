"""Students trained side by side: `--processes N` runs the command again with `--part K N`, K from 1 to N - 1."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many processes, and which of them this one is."""
    parser.add_argument("--processes", type=int, default=1, help="students trained side by side")
    parser.add_argument(
        "--part", type=int, nargs=2, metavar=("K", "N"), help="each N-th from K alone"
    )


def side_by_side(module: str, processes: int, own: Callable[[], object]) -> None:
    """Runs the other parts of this command beside `own`, which is part 0; returns when all are done."""
    again = [sys.executable, "-m", module, *sys.argv[1:], "--part"]
    others = [subprocess.Popen([*again, str(k), str(processes)]) for k in range(1, processes)]
    own()
    codes = [other.wait() for other in others]
    if any(codes):
        raise SystemExit("a process failed; what is above says why.")
