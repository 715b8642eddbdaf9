"""`nitrodistill demo`: the whole road on the embedded teacher.

Distil the teacher that ships with this package, captioned 32x32 scenes in 25 steps, on the CPU, in a few minutes.
DMD2 trains a student of four steps and one of one step, without pairs; with --method ladd the teacher makes pairs
of noise and latent, and LADD trains a student of one step on them. Teacher, naive one-step teacher and student are
measured side by side, and each student is written as a diffusers pipeline. Open report.html in the folder;
metrics.json has its numbers. A killed demo goes on where it stopped.

example:
  nitrodistill demo
  nitrodistill demo --output runs/small --steps 100 --samples 256
  nitrodistill demo --method ladd --output runs/ladd
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nitrodistill.cli.arguments import Parser, parse, read_config
from nitrodistill.cli.terminal import results, say
from nitrodistill.demo import DemoConfig, run_demo


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill demo --help`."""
    given = parse(Parser("demo", __doc__, DemoConfig), argv)
    config = read_config(given, DemoConfig)
    found = run_demo(config, partial(say, lines=True), progress=not given.quiet)
    results(output=config.output, students=[one.models for one in found])
    return 0
