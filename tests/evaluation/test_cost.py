"""Timing with a clock of our own: what is counted, in which order, after which warm-up."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from nitrodistill.evaluation import EvaluateConfig, cost
from nitrodistill.evaluation.config import SamplePlan
from nitrodistill.evaluation.cost import (
    Timing,
    cost_of,
    count_flops,
    machine,
    measure,
    peak_memory,
)
from nitrodistill.evaluation.models import make_models
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan


class Clock:
    """A clock that tasks move."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, []

    def __call__(self) -> float:
        return self.now

    def task(self, name: str, *seconds: float):
        durations = iter(seconds)

        def run(*device: object) -> None:
            self.log.append(name)
            self.now += next(durations)

        return run


def test_tasks_take_turns_and_the_median_counts() -> None:
    clock = Clock()
    tasks = {"a": clock.task("a", 9, 1, 5, 2), "b": clock.task("b", 7, 3, 3, 4)}
    found = measure(tasks, repeats=3, warmup=1, clock=clock)
    assert clock.log == ["a", "b"] * 4
    assert found == {"a": Timing(2000, 1000, 5000), "b": Timing(3000, 3000, 4000)}


def test_the_device_is_idle_at_both_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(cost, "synchronize", clock.task("sync", *[0.5] * 4))
    found = measure({"a": clock.task("a", 1, 1)}, repeats=1, warmup=1, clock=clock)
    assert clock.log == ["sync", "a", "sync"] * 2
    assert found["a"].median_ms == 1500, (
        "the wait after the task belongs to it, that before does not"
    )


def test_no_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats is 0"):
        measure({}, repeats=0)


def test_operations_of_a_product_and_a_convolution() -> None:
    """2 m n k, and 2 C_in C_out k^2 H W."""
    assert count_flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5
    layer = torch.nn.Conv2d(3, 7, 3, padding=1)
    assert count_flops(lambda: layer(torch.ones(2, 3, 8, 8))) == 2 * 2 * 3 * 7 * 9 * 64


def test_peak_memory_is_what_lives_at_once() -> None:
    held = torch.ones(1000)

    def task() -> None:
        first = held + 1  # 4000 bytes
        second = first * 2  # 8000
        first.view(10, 100).add_(1)  # a view and a change in place take nothing
        del first
        torch.cat([second, second])  # 4000 + 8000
        torch.ones(500)  # 4000 + 2000

    assert peak_memory(task) == 12000
    assert peak_memory(lambda: held.view(2, 500)) == 0


def test_a_gpus_peak_is_read_when_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the calls, with the driver's own replaced: the GPU's are below."""
    log: list[str] = []

    def says(name: str, value: int = 0):
        def call(*device: object) -> int:
            log.append(name)
            return value

        return call

    monkeypatch.setattr(torch.cuda, "synchronize", says("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", says("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", says("held", 100))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", says("most", 175))
    assert peak_memory(says("task"), "cuda") == 75
    assert log == ["wait", "reset", "held", "task", "wait", "most"]


MIB = 1 << 20


def _bytes(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8, device="cuda")


@pytest.mark.gpu
def test_peak_memory_of_a_gpu_is_what_lives_at_once() -> None:
    """What was held before, and an earlier peak, do not count."""
    held = _bytes(64 * MIB)
    _bytes(256 * MIB)

    def task() -> None:
        first, second = _bytes(32 * MIB), _bytes(16 * MIB)
        del first
        _bytes(8 * MIB).copy_(second[: 8 * MIB])

    assert peak_memory(task, "cuda") == 48 * MIB
    assert peak_memory(lambda: held.view(2, -1), "cuda") == 0


@pytest.mark.gpu
def test_the_clock_waits_for_the_gpu_and_the_first_run_does_not_count() -> None:
    """CUDA's own events are the second implementation; a launch alone returns long before."""
    x = torch.randn(4096, 4096, device="cuda")
    turns = iter([50, 10, 10, 10])

    def products(count: int) -> None:
        for _ in range(count):
            torch.mm(x, x, out=y)

    y = torch.empty_like(x)
    products(3)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    products(10)
    end.record()
    end.synchronize()
    expected = start.elapsed_time(end)
    timing = measure({"products": lambda: products(next(turns))}, 3, 1, "cuda")["products"]
    assert timing.median_ms == pytest.approx(expected, rel=0.3)
    assert timing.slowest_ms < 3 * expected, "the warm-up is five times as long"
    assert next(turns, None) is None


@pytest.mark.gpu
def test_the_cost_of_models_on_a_gpu(tiny_diffusers: Any, tiny_scheduler: Any) -> None:
    """On the CPU and on a GPU equally many operations; guidance in more steps costs more of everything."""
    found = {}
    for device in ("cpu", "cuda"):
        teacher = Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler).to(device))
        config = EvaluateConfig(num_samples=4, num_inference_steps=8, cost_repeats=3)
        plan = StepPlan.from_schedule(teacher.denoiser.schedule)
        models = make_models(teacher, teacher.denoiser, plan, config)
        with torch.no_grad():
            found[device] = cost_of(models, SamplePlan.of(["a red ring"], config))
    for model, metrics in found["cuda"].items():
        assert metrics["gflops"].value == pytest.approx(found["cpu"][model]["gflops"].value)
        assert metrics["weights_mb"] == found["cpu"][model]["weights_mb"]
    teacher, student = found["cuda"]["teacher"], found["cuda"]["student"]
    assert teacher["denoise_ms"].value > 3 * student["denoise_ms"].value
    assert teacher["peak_mb"].value >= student["peak_mb"].value > 0


def test_the_machine_has_a_name():
    listed = Path("/proc/cpuinfo")
    name = machine("cpu")
    assert name == platform.machine() or name in listed.read_text()
