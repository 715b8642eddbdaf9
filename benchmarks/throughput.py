"""What the trainer itself costs: time outside of losses, backward and optimizer, and waiting for data.

    python benchmarks/throughput.py [--steps 60] [--output runs/throughput]

Trains the demo's recipe (LADD on the embedded teacher, batch 48) from a pair store on the disk, through the
code that `nitrodistill train` runs, and takes the time of each part of a step. Work is measured in CPU time of
the thread that trains, so that other work on the machine does not count; waiting for data in wall-clock time,
because a thread that waits uses no CPU. Steps up to the fifth, which warm up, do not count. Checkpoints are
measured apart. Writes benchmarks/results/throughput.json.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from _measure import Spread, write_json

from nitrodistill import toy
from nitrodistill.data import GenerateConfig, generate
from nitrodistill.demo.demo import shuffled_captions
from nitrodistill.demo.recipes import toy_recipe
from nitrodistill.methods import LADD
from nitrodistill.models import Pipeline
from nitrodistill.training import EMA, Trainer
from nitrodistill.training.recipe import Recipe
from nitrodistill.training.roles import TrainedRole
from nitrodistill.training.stages import run_recipe

WARM = 5
INSIDE = ("losses", "backward", "optimizer")
GOALS = {"outside": 0.03, "data_wait": 0.02}

Seconds = dict[str, float]


@dataclass(frozen=True)
class Part:
    """A part of a step, and its share of the step's CPU time."""

    name: str
    share: float


@contextmanager
def watched(spent: Seconds) -> Iterator[None]:
    """Adds up the CPU seconds of the parts of a step in `spent`."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.thread_time() - started

        return call

    def losses(self: LADD, *args: Any) -> Iterator[Any]:
        generator = original(self, *args)
        following = timed("losses", lambda: next(generator, None))
        while (found := following()) is not None:
            yield found

    from accelerate import Accelerator

    original = LADD.losses
    parts = {
        "backward": (Accelerator, "backward"),
        "optimizer": (TrainedRole, "update"),
        "clipping": (TrainedRole, "clip"),
        "averaging": (EMA, "update"),
        "batch": (Trainer, "_batch"),
        "checkpoint": (Trainer, "save"),
    }
    patches = [mock.patch.object(LADD, "losses", losses)]
    for name, (owner, attribute) in parts.items():
        function = timed(name, getattr(owner, attribute))
        patches.append(mock.patch.object(owner, attribute, _method(function)))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return method


def measure(recipe: Recipe, pipeline: Pipeline) -> tuple[list[Part], dict[str, Any]]:
    """Trains, and returns the parts of a step, and what is to be said of all of them."""
    spent: Seconds = defaultdict(float)
    rows: list[Seconds] = []
    waits: list[float] = []
    saves: list[float] = []
    with watched(spent):
        states = run_recipe(recipe, pipeline)
        started = time.thread_time()
        for state in states:
            step = time.thread_time() - started - spent["checkpoint"]
            if spent["checkpoint"]:
                saves.append(spent["checkpoint"])
            if state.step > WARM:
                rows.append({"step": step, **spent})
                waits.append(state.data_seconds / state.seconds)
            spent.clear()
            started = time.thread_time()
    names = dict.fromkeys(
        name for row in rows for name in row if name not in ("step", "checkpoint")
    )
    outside = [1 - sum(row.get(name, 0.0) for name in INSIDE) / row["step"] for row in rows]
    total = sum(row["step"] for row in rows)
    parts = [Part(name, sum(row.get(name, 0.0) for row in rows) / total) for name in names]
    return parts, {
        "steps": len(rows),
        "step_cpu_seconds": asdict(Spread.of(row["step"] for row in rows)),
        "outside": asdict(Spread.of(outside)),
        "outside_in_all": 1 - sum(part.share for part in parts if part.name in INSIDE),
        "data_wait": asdict(Spread.of(waits)),
        "checkpoint_cpu_seconds": sum(saves) / len(saves),
        "goals": GOALS,
    }


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("runs/throughput"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(options.output / "run", ignore_errors=True)
    pipeline = Pipeline.from_diffusers(toy.load_pipeline(), check_prompt=toy.check_prompt)
    config = GenerateConfig(num_pairs=96, num_inference_steps=4)
    pairs = options.output / "pairs"
    captions = shuffled_captions(0)[:96]
    generate(pipeline, captions, pairs, config, teacher_name="toy", progress=False)
    recipe = toy_recipe(str(pairs), str(options.output / "run"), options.steps)
    (stage,) = recipe.stages
    settings = replace(stage.settings, warmup_steps=0)  # both roles in every step
    trainer = replace(stage.trainer, preview_every=0)
    recipe = replace(recipe, stages=[replace(stage, settings=settings, trainer=trainer)])
    parts, found = measure(recipe, pipeline)
    for part in parts:
        print(f"{part.name:>10} {part.share:7.2%} of a step's CPU time")
    outside, wait, step = found["outside"], found["data_wait"], found["step_cpu_seconds"]
    print(
        f"outside of {', '.join(INSIDE)}: {found['outside_in_all']:.2%} in all, "
        f"{outside['median']:.2%} in the median step (goal: under {GOALS['outside']:.0%})"
    )
    print(
        f"waiting for data: {wait['median']:.2%} ({wait['low']:.2%} ... {wait['high']:.2%}) of the "
        f"wall-clock time (goal: under {GOALS['data_wait']:.0%})"
    )
    print(
        f"a step: {step['median']:.3f} s of CPU; a checkpoint: {found['checkpoint_cpu_seconds']:.3f} s"
    )
    print(f"written to {write_json('throughput', parts, found)}")


if __name__ == "__main__":
    main()
