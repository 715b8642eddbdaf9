"""Cost: time, floating-point operations and memory, measured so that they mean something.

Every task is run `warmup` times before the clock starts (allocators, kernel choices, caches). Then the tasks take
turns, so that a slow minute of the machine meets all of them; the device is synchronised before the clock is
read, on both sides; and the median counts, not the mean.

Operations are counted by torch (matrix products, convolutions and attention; elementwise work is not counted).
Peak memory is what a task holds at most beyond what was held before it: on a GPU by the caching allocator,
elsewhere the storages that its operations return, without what lives inside of one operation.
"""

from __future__ import annotations

import platform
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nitrodistill.checks import check_whole
from nitrodistill.evaluation.config import SamplePlan
from nitrodistill.evaluation.drawing import NOISE, noise_draws
from nitrodistill.evaluation.models import Model
from nitrodistill.evaluation.result import Metric
from nitrodistill.method import Draws
from nitrodistill.models.wrappers import role_in, unwrapped


@dataclass(frozen=True)
class Timing:
    """Wall-clock milliseconds of one task: median, fastest and slowest run.

    Example:
        >>> nd.evaluation.measure({"nothing": int}, repeats=3)["nothing"].median_ms < 100
        True
    """

    median_ms: float
    fastest_ms: float
    slowest_ms: float


def measure(
    tasks: Mapping[str, Callable[[], object]],
    repeats: int = 5,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times tasks in turns.

    Args:
        tasks: name -> what to run.
        repeats: measured runs of each, at least 1.
        warmup: runs of each before those.
        device: what has to be idle when the clock is read.
        clock: seconds.

    Raises:
        ValueError: if `repeats` is below 1 or `warmup` below 0.

    Example:
        >>> found = nd.evaluation.measure({"add": lambda: torch.ones(9) + 1}, repeats=2)
        >>> found["add"].fastest_ms > 0
        True
    """
    check_whole("repeats", repeats)
    check_whole("warmup", warmup, 0)
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(warmup + repeats):
        for name, task in tasks.items():
            synchronize(device)
            start = clock()
            task()
            synchronize(device)
            if turn >= warmup:
                times[name].append(1000 * (clock() - start))
    return {
        name: Timing(statistics.median(runs), min(runs), max(runs)) for name, runs in times.items()
    }


def synchronize(device: torch.device | str) -> None:
    """Waits until the device has finished its work; nothing to wait for on the CPU."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def count_flops(task: Callable[[], object]) -> int:
    """The floating-point operations of one run of a task; a multiply-add is two.

    Example:
        >>> nd.evaluation.count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 4))
        48
    """
    with FlopCounterMode(display=False) as counter:
        task()
    return counter.get_total_flops()


def machine(device: torch.device | str) -> str:
    """The name of a GPU, or of the CPU where the system says it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(errors="replace").splitlines() if listed.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine())


def peak_memory(task: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most bytes that one run of a task holds beyond what was held before.

    Example:
        >>> nd.evaluation.peak_memory(lambda: torch.ones(1000)) >= 0
        True
    """
    if torch.device(device).type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        task()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Storages() as storages:
        task()
    return storages.peak


class _Storages(TorchDispatchMode):
    """Adds up the storages that operations return, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {s.data_ptr() for s in _storages((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            key, size = storage.data_ptr(), storage.nbytes()
            if size and key not in self._known and key not in given:
                self._known.add(key)
                self._held += size
                self.peak = max(self.peak, self._held)
                weakref.finalize(storage, self._free, key, size)
        return found

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._held -= size


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def cost_of(models: Mapping[str, Model], samples: SamplePlan) -> dict[str, dict[str, Metric]]:
    """Model -> what a picture costs in it: time, operations and memory, the latent alone or from the prompt on."""
    size, device = samples.config.cost_batch_size, models["teacher"].pipeline.device
    tasks: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        for count, kind in ((size, "batch"), (1, "alone")):
            draws = Draws(samples.config.seed, 0, torch.arange(count), purpose="evaluation")
            prompts = [samples.prompts[i % len(samples.prompts)] for i in range(count)]
            noise = noise_draws(
                samples.config.seed, NOISE, draws.index, model.pipeline.latent_shape
            )
            noise = noise.to(model.pipeline.device)
            tasks[f"{name} {kind}"] = partial(model.whole, prompts, noise, draws)
            if kind == "batch":
                condition = model.pipeline.encode_prompt(prompts)
                tasks[f"{name} latents"] = partial(model.draw, noise, condition, draws)
    times = measure(tasks, samples.config.cost_repeats, device=device)
    found = {}
    for name, model in models.items():
        whole = tasks[f"{name} batch"]
        weights = sum(p.nbytes for p in _parameters(model.denoiser.module))
        found[name] = {
            "denoise_ms": _timed(times[f"{name} latents"], size),
            "pipeline_ms": _timed(times[f"{name} batch"], size),
            "latency_ms": _timed(times[f"{name} alone"], 1),
            "gflops": Metric(count_flops(whole) / size / 1e9, num_samples=size),
            "peak_mb": Metric(peak_memory(whole, device) / 1e6, num_samples=size),
            "weights_mb": Metric(weights / 1e6),
        }
    return found


def _parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """A network's own, or a LoRA role's with those of the network below; not what other roles add to that."""
    network = unwrapped(module).named_parameters()
    yield from (p for name, p in network if ".lora_" not in name)
    if (role := role_in(module)) is not None:
        yield from role.parameters()


def _timed(time: Timing, size: int) -> Metric:
    return Metric(
        time.median_ms / size, time.fastest_ms / size, time.slowest_ms / size, num_samples=size
    )
