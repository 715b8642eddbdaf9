"""What a step of the demo's recipe costs whatever its batch, and how much of that torch.compile could take away.

    python benchmarks/fixed_cost.py [--batch_sizes 6 12 24 48] [--rounds 9] [--compile]

A step's time is fitted by a line over the batch, `fixed + each * batch_size`; `fixed` is what this measures. The
step is the trainer's, LADD on the embedded teacher with both roles active. Time is CPU time of the process; forms
and batches take turns in each round, in an order that rotates, and the line goes through their medians.

- `eager`: the step as it is.
- `kernels`: its convolutions, matrix products, attention and AdamW alone, forward and backward, recorded from
  one step and called again with the same tensors: no modules, no autograd, no elementwise operations.
  torch.compile calls the same kernels for them, so this is a floor of what it can reach.
- `compiled` (with `--compile`): student, tapped teacher and heads, each by torch.compile with static shapes.
  `loss_difference` is the largest relative one from eager's of a total in the third step, and
  `compile_cpu_seconds` the CPU time of its first three steps, the C++ compiler's included. It starts from an
  empty cache unless TORCHINDUCTOR_CACHE_DIR names another; `compile_cache` says which.

Writes benchmarks/results/fixed_cost.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _measure import Samples, Spread, markdown_table, write_json
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nitrodistill import toy
from nitrodistill.demo import toy_recipe
from nitrodistill.method import Cast, Draws
from nitrodistill.methods import LADD
from nitrodistill.models import Pipeline
from nitrodistill.models.taps import FeatureTaps
from nitrodistill.training import State, Trainer
from nitrodistill.types import Batch, Condition, Pairs

KERNELS = {
    "convolutions": ("aten.convolution.",),
    "convolutions, backward": ("aten.convolution_backward.",),
    "matrix products and attention": ("aten.mm.", "aten.addmm.", "aten._scaled_dot_product"),
    "AdamW": ("aten._fused_adamw_.",),
}
WARM = 3


@dataclass(frozen=True)
class Row:
    """The line of one form of the step, or of some kernels of it, in milliseconds of CPU time."""

    name: str
    fixed: float
    each: float
    milliseconds: dict[int, Spread]
    calls: int | None = None


class CompiledFeatures:
    """`FeatureTaps.features` through torch.compile, which FeatureTaps itself leaves to eager mode.

    The hooks are there before the network is traced, and what lies behind the last tap is dead code of the graph.
    """

    def __init__(self, taps: FeatureTaps) -> None:
        denoiser: Any = taps.denoiser
        found: dict[int, Tensor] = {}
        modules = [denoiser.network.get_submodule(name) for name in taps.names]

        def hook_for(i: int) -> Callable[..., None]:
            def hook(module: object, args: object, output: Any) -> None:
                found[i] = denoiser.adapter.image_part(output, None)

            return hook

        for i, module in enumerate(modules):
            module.register_forward_hook(hook_for(i))

        def run(**arguments: Any) -> tuple[Tensor, ...]:
            found.clear()
            denoiser.network(**arguments, return_dict=False)
            return tuple(found[i] for i in range(len(modules)))

        torch._dynamo.config.recompile_limit = 64  # all batch sizes are graphs of one function
        self._arguments = denoiser.adapter.arguments
        self._run = torch.compile(run, dynamic=False)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        return self._run(**self._arguments(x_t, t.expand(len(x_t)), condition))


def steps(pipeline: Pipeline, batch_size: int, compiled: bool = False) -> Iterator[State]:
    """The trainer's steps on pairs of random latents."""
    teacher = pipeline.denoiser.copy()
    (stage,) = toy_recipe("", "", 10**6, batch_size=batch_size).stages
    student = teacher.copy()
    student.module.train()
    method = LADD.build(replace(stage.settings, warmup_steps=0), Cast.of(teacher, student))
    if compiled:
        discriminator: Any = method.discriminator
        student.module.compile(dynamic=False)
        discriminator.heads.compile(dynamic=False)
        discriminator.taps.features = CompiledFeatures(discriminator.taps)
    condition = pipeline.encode_prompt(["a small red circle on a black background"])
    quiet = {"log_every": 10**6, "diagnose_every": 0, "preview_every": 0, "checkpoint_every": 0}

    def stream(number: int) -> Batch:
        index = number * batch_size + torch.arange(batch_size)
        draws = Draws(0, 0, index, purpose="pairs")
        x0, noise = (draws.normal(name, pipeline.latent_shape) for name in ("x0", "noise"))
        return Batch(index, Pairs(x0, noise, condition.index([0] * batch_size)))

    return Trainer(method, stream, replace(stage.trainer, **quiet)).fit()


class Recorded(TorchDispatchMode):
    """Collects the calls of `KERNELS` by their group."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[Callable[[], object]]] = {name: [] for name in KERNELS}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        for name, beginnings in KERNELS.items():
            if str(func).startswith(beginnings):
                self.calls[name].append(lambda: func(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def kernels(pipeline: Pipeline, batch_size: int) -> dict[str, list[Callable[[], object]]]:
    """Group -> the calls of one step, of a trainer that makes no other."""
    found, trainer = Recorded(), steps(pipeline, batch_size)
    next(trainer)  # the optimizers' state is there
    with found:
        next(trainer)
    return found.calls


@torch.no_grad()
def replay(calls: list[Callable[[], object]]) -> None:
    """Makes the calls again."""
    for call in calls:
        call()


def cpu_seconds() -> float:
    """Of this process and of the children that it waited for."""
    return sum(os.times()[:4])


def measure(calls: dict[tuple[str, int], Callable[[], object]], rounds: int) -> list[Row]:
    """(name, batch size) -> a call; a line for each name."""
    found: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    keys = list(calls)
    for number in range(rounds):
        shift = number % len(keys)
        for key in keys[shift:] + keys[:shift]:
            started = time.process_time()
            calls[key]()
            found[key].append(1e3 * (time.process_time() - started))
    rows = []
    for name in dict.fromkeys(name for name, _ in keys):
        spreads = {
            size: Samples(tuple(times)).spread for (n, size), times in found.items() if n == name
        }
        medians = [spread.median for spread in spreads.values()]
        each, fixed = statistics.linear_regression(list(spreads), medians)
        rows.append(Row(name, fixed, each, spreads))
    return rows


def differences(
    totals: dict[tuple[str, int], list[float]], batch_sizes: list[int]
) -> Iterator[float]:
    """Of the compiled steps' totals from the eager ones', over these."""
    for size in batch_sizes:
        for found, expected in zip(
            totals.get(("compiled", size), ()), totals["eager", size], strict=False
        ):
            yield abs(found - expected) / abs(expected)


def with_floor(rows: list[Row]) -> list[Row]:
    """And the sum of the kernels."""
    parts = [row for row in rows if row.name in KERNELS]
    return [*rows, Row("kernels", sum(r.fixed for r in parts), sum(r.each for r in parts), {})]


def table(rows: list[Row]) -> str:
    """Markdown, beside the eager step."""
    eager = next(row for row in rows if row.name == "eager")
    head = ["", "calls", "fixed, ms", "of eager's", "each sample, ms"]
    cells = []
    for row in rows:
        share = f"{row.fixed / eager.fixed:.0%}"
        cells.append([row.name, f"{row.calls or ''}", f"{row.fixed:.1f}", share, f"{row.each:.2f}"])
    return markdown_table(head, cells)


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch_sizes", type=int, nargs="*", default=[6, 12, 24, 48])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="minutes for each batch size")
    options = parser.parse_args()
    if len(set(options.batch_sizes)) < 2:
        parser.error(f"batch_sizes are {options.batch_sizes}; a line needs two that differ.")
    torch.set_num_threads(1)
    pipeline = Pipeline.from_diffusers(toy.load_pipeline(), check_prompt=toy.check_prompt)
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    totals = dict[tuple[str, int], list[float]]()
    compile_seconds, counts = dict[int, float](), dict[str, int]()
    with TemporaryDirectory() as empty:
        cache = "filled" if os.environ.get("TORCHINDUCTOR_CACHE_DIR") else "empty"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", empty)
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # its children are waited for
        for size in options.batch_sizes:
            for name in ("eager", "compiled") if options.compile else ("eager",):
                started, trainer = cpu_seconds(), steps(pipeline, size, name == "compiled")
                state = [next(trainer) for _ in range(WARM)][-1]
                totals[name, size] = [float(state.last_totals[role]) for role in state.active]
                if name == "compiled":
                    compile_seconds[size] = cpu_seconds() - started
                calls[name, size] = trainer.__next__
            for name, recorded in kernels(pipeline, size).items():
                counts[name] = len(recorded)
                calls[name, size] = lambda recorded=recorded: replay(recorded)
        rows = measure(calls, options.rounds)
    rows = with_floor([replace(row, calls=counts.get(row.name)) for row in rows])
    print(table(rows))
    if compile_seconds:
        print(f"CPU seconds of compiling, by batch size: {compile_seconds}")
    extra = {
        "loss_difference": max(differences(totals, options.batch_sizes), default=None),
        "compile_cpu_seconds": compile_seconds,
        "compile_cache": cache if compile_seconds else None,
        "load_average": os.getloadavg()[0],
    }
    print(f"written to {write_json('fixed_cost', rows, extra)}")


if __name__ == "__main__":
    main()
