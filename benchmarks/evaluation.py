"""What an evaluation of 10,000 pictures costs on the embedded teacher, and whether its memory stays flat.

    python benchmarks/evaluation.py [--samples 10000] [--root runs/evaluation-benchmark] [--processes 2]

First the teacher's latents are drawn into the cache, by several processes and in few steps: that is not part of
the measurement. Then a one-step student (an untrained copy of the teacher: as expensive as a trained one) is drawn
and measured beside teacher and naive teacher, with real renders, the oracle, memorisation against 600 latents,
intervals and cost: all that `nitrodistill evaluate` does by default. Prints a table and writes
benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from nitrodistill import toy
from nitrodistill.demo.demo import shuffled_captions
from nitrodistill.evaluation import EvaluateConfig, help_draw
from nitrodistill.evaluation.student import measure_student
from nitrodistill.sampling import StepPlan
from nitrodistill.teachers import load_teacher

RESULT = Path(__file__).parent / "results" / "evaluation.json"
GOAL_SECONDS = 180.0
TEACHER_STEPS = 4  # what is in the cache does not change what it costs to score it
PERIOD = 0.5  # seconds between two readings of memory


def draw(samples: int, cache: str, rank: int, world_size: int) -> None:
    """One process of those that draw for the teacher."""
    torch.set_num_threads(1)
    help_draw(
        load_teacher("toy"),
        shuffled_captions(),
        EvaluateConfig(num_samples=samples, num_inference_steps=TEACHER_STEPS),
        cache,
        rank=rank,
        world_size=world_size,
        progress=rank == 0,
    )


class Memory(threading.Thread):
    """Reads the process's resident memory until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.readings: list[tuple[float, int]] = []
        self._stopped = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self._stopped.wait(PERIOD):
            self.readings.append((time.perf_counter(), process.memory_info().rss))

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def quarters(self) -> list[float]:
        """The highest reading in each quarter of the time, in MB."""
        start, end = self.readings[0][0], self.readings[-1][0]
        highest = [0.0] * 4
        for when, size in self.readings:
            quarter = min(3, int(4 * (when - start) / max(end - start, 1e-9)))
            highest[quarter] = max(highest[quarter], size / 1e6)
        return [round(value, 1) for value in highest]


def measured(samples: int, cache: Path) -> dict[str, Any]:
    """Times one evaluation with the teacher cached."""
    torch.set_num_threads(1)
    teacher = load_teacher("toy")
    student = teacher.denoiser.copy()
    with torch.no_grad():
        scenes = toy.scenes.render(shuffled_captions(1)[:300] * 2, 1)
        training = teacher.encode_image(scenes)
    memory = Memory()
    memory.start()
    wall, cpu = time.perf_counter(), time.process_time()
    found = measure_student(
        "toy",
        teacher,
        student,
        StepPlan.from_schedule(student.schedule),
        shuffled_captions(),
        EvaluateConfig(num_samples=samples, num_inference_steps=TEACHER_STEPS),
        training_latents=training,
        cache=cache,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory.stop()
    print(found.text())
    return {
        "samples": samples,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "memory_mb_by_quarter": memory.quarters(),
        "metrics": len(found.student),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of an evaluation.")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--root", type=Path, default=Path("runs/evaluation-benchmark"))
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    start = time.perf_counter()
    arguments = [
        (given.samples, str(given.root), k, given.processes) for k in range(given.processes)
    ]
    workers = [context.Process(target=draw, args=args) for args in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a process that draws for the teacher failed")
    drawing = time.perf_counter() - start
    for model in ("student", "naive"):  # of an earlier run: they are part of the measurement
        for folder in given.root.glob(f"{model}-*"):
            shutil.rmtree(folder)
    found = measured(given.samples, given.root)
    found |= {
        "teacher_seconds": round(drawing, 1),
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "torch": torch.__version__,
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    verdict = "met" if found["wall_seconds"] < GOAL_SECONDS else "MISSED"
    print("| samples | wall s | CPU s | highest memory in each quarter, MB | load of the machine |")
    print("|---:|---:|---:|---|---:|")
    print(
        f"| {found['samples']} | {found['wall_seconds']} | {found['cpu_seconds']} | "
        f"{', '.join(map(str, found['memory_mb_by_quarter']))} | {found['load_average']} |"
    )
    print(f"goal of {GOAL_SECONDS:.0f} s: {verdict}")


if __name__ == "__main__":
    main()
