"""Time and memory of DMD2's iteration (one update of the student, r of the critic) against the public order.

    python benchmarks/dmd2_step.py [--rounds 5] [--batch_size 4] [--updates 5 2] [--network unet]
    python benchmarks/dmd2_step.py --device cuda      # SD2.1's UNet at its true size, in bfloat16

The public order, written here from its description: teacher, critic and student are three whole networks; the
student draws anew for each update of the critic and once more for its own; the guided teacher runs once with the
prompt and once without. AdamW is torch's default (one row has the fused one). Ours is `DMD2` with `updates:
shared`, of whole networks and of LoRA roles on one network, and the trainer's fused AdamW. Networks, batch, losses
and clipping are the same; weights are random.

Times are as in `train_step.py`: a round times each once, in an order that rotates, and ratios are taken per round.
Peak memory is that of building it all and two iterations, weights, gradients and moments included. A profile of
our iteration on whole networks says where its time goes. Writes benchmarks/results/dmd2_step_<device>.json.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from _measure import markdown_table, peak_mib, write_json
from torch.profiler import profile
from train_step import Row, Setting, finish, times

from nitrodistill.method import Cast, Draws
from nitrodistill.methods import DMD2, DMD2Config
from nitrodistill.methods.dmd2 import CriticConfig
from nitrodistill.models import LoRAConfig, add_lora
from nitrodistill.prediction import prediction_target
from nitrodistill.sampling import Step, StepPlan, predict_x0
from nitrodistill.types import Batch, Condition

PUBLIC, WHOLE, LORA = "public order", "whole networks", "LoRA roles, rank 64"
FLOORS = {"speedup": 1.2, "memory": 0.7}
GUIDANCE = 3.0


def empty(condition: Condition) -> Condition:
    """What stands for no prompt, of batch size one."""
    first = condition.index([0])
    return Condition({name: torch.zeros_like(value) for name, value in first.tensors.items()})


def ours(setting: Setting, updates: int, lora: bool) -> Callable[[], None]:
    """An iteration by DMD2, as the trainer makes it."""
    assert setting.batch.pairs is not None
    condition, teacher = setting.batch.pairs.condition, setting.teacher
    if lora:
        del setting.student  # no copy of the network is needed
        student, critic = (
            add_lora(teacher, name, LoRAConfig(rank=64)) for name in ("student", "critic")
        )
    else:
        student, critic = setting.student, teacher.copy()
    config = DMD2Config(guidance=GUIDANCE, critic=CriticConfig(updates=updates))
    method = DMD2.build(config, Cast.of(teacher, student, {"critic": critic}, empty(condition)))
    batch = Batch(setting.batch.index, prompts=condition)
    steps = {}
    for name, role in method.trainable().items():
        trained = [p for p in role.module.parameters() if p.requires_grad]
        steps[name] = torch.optim.AdamW(trained, 1e-5, fused=True)

    def call() -> None:
        for number in range(updates):
            active = method.active(number)
            with setting.autocast():
                for _, terms in method.losses(batch, active, Draws(0, number, batch.index)):
                    terms.total.backward()
            for name in active:
                finish(steps[name])

    return call


def public(setting: Setting, updates: int, fused: bool = False) -> Callable[[], None]:
    """An iteration in turns: the student's, then the critic's, each with a pass of the student."""
    assert setting.batch.pairs is not None
    condition, teacher, student = setting.batch.pairs.condition, setting.teacher, setting.student
    critic, size = teacher.copy(), len(setting.batch.index)
    critic.module.requires_grad_(True)
    null = empty(condition).index([0] * size)
    plan, shape = StepPlan.from_schedule(student.schedule).steps[0], teacher.latent_shape()
    networks, how = {"student": student, "critic": critic}, {"fused": True} if fused else {}
    steps = {n: torch.optim.AdamW(d.module.parameters(), 1e-5, **how) for n, d in networks.items()}

    def drawn(draws: Draws) -> torch.Tensor:
        noise = draws.normal("noise", shape, setting.device)
        return predict_x0(student, plan, noise, condition)

    def noised(x0: torch.Tensor, draws: Draws) -> tuple[Step, torch.Tensor, torch.Tensor]:
        t = teacher.schedule.timestep(0.02 + 0.96 * draws.uniform("t")).to(x0.device)
        scales, eps = teacher.schedule(t), draws.normal("eps", shape, setting.device)
        return Step(t, scales, scales), scales.mix(x0, eps), eps

    def call() -> None:
        draws = Draws(0, 0, setting.batch.index)
        with setting.autocast():
            x0 = drawn(draws)
            step, x_t, _ = noised(x0.detach(), draws)
            with torch.no_grad():
                fake = predict_x0(critic, step, x_t, condition)
                conditional = predict_x0(teacher, step, x_t, condition)
                unconditional = predict_x0(teacher, step, x_t, null)
                real = unconditional + GUIDANCE * (conditional - unconditional)
                scale = (x0 - real).abs().mean((1, 2, 3), keepdim=True)
                target = x0 - (fake - real) / scale
            (0.5 * F.mse_loss(x0, target)).backward()
        finish(steps["student"])
        for number in range(updates):
            draws = Draws(0, number + 1, setting.batch.index)
            with setting.autocast():
                with torch.no_grad():
                    x0 = drawn(draws)
                step, x_t, eps = noised(x0, draws)
                target = prediction_target(x0, eps, step.output, "v_prediction")
                F.mse_loss(critic(x_t, step.t, condition), target).backward()
            finish(steps["critic"])

    return call


COMPETITORS: dict[str, Callable[[Setting, int], Callable[[], None]]] = {
    PUBLIC: public,
    f"{PUBLIC}, fused AdamW": partial(public, fused=True),
    WHOLE: partial(ours, lora=False),
    LORA: partial(ours, lora=True),
}


def peak(build: Callable[[], Callable[[], None]], device: str) -> float | None:
    """MiB that building and two iterations need, with all that they hold."""

    def call() -> None:
        iteration = build()
        iteration()
        iteration()

    if device == "cpu":
        return peak_mib(call)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def profiled(call: Callable[[], None], device: str, most: int = 12) -> list[dict[str, Any]]:
    """The operators that take longest by themselves, each with its share of the whole time."""
    with profile() as seen:
        call()
    events = seen.key_averages()
    key = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    print(events.table(sort_by=key, row_limit=8))
    found = sorted(events, key=lambda event: getattr(event, key), reverse=True)
    whole = sum(getattr(event, key) for event in events)
    return [
        {
            "operator": event.key,
            "share": round(getattr(event, key) / whole, 4),
            "calls": event.count,
        }
        for event in found[:most]
    ]


@dataclass(frozen=True)
class StepRow(Row):
    """What was found of one order, with so many updates of the critic to one of the student."""

    updates: int = 0


def measure(
    options: argparse.Namespace, updates: int
) -> tuple[list[StepRow], list[dict[str, Any]]]:
    """A row a competitor; and the profile of ours on whole networks."""
    name, size, device = options.network, options.batch_size, options.device
    make = partial(Setting, name, size, device, device == "cuda", checkpoint=False)
    million = sum(p.numel() for p in make().student.module.parameters()) / 1e6
    peaks = {
        key: peak(lambda build=build: build(make(), updates), device)
        for key, build in COMPETITORS.items()
    }
    calls = {key: build(make(), updates) for key, build in COMPETITORS.items()}
    found = times(calls, options.rounds, device)
    rows = [
        StepRow(
            *(name, key, million, size, one.spread, found[PUBLIC].speedup_of(one)),
            *(peaks[key], None),
            updates=updates,
        )
        for key, one in found.items()
    ]
    return rows, profiled(calls[WHOLE], device)


def table(rows: list[StepRow]) -> str:
    """Markdown; memory beside that of the public order."""
    bases = {row.updates: row.peak_mib for row in rows if row.competitor == PUBLIC}

    def cells(row: StepRow) -> list[str]:
        base = bases[row.updates]
        t, s, memory = row.milliseconds, row.speedup, row.peak_mib
        of_base = "-" if memory is None or not base else f"{memory:.0f} ({memory / base:.2f})"
        speed = f"{s.median:.2f} ({s.low:.2f} to {s.high:.2f})"
        network = f"{row.network}, {row.million_parameters:.0f}M"
        return [network, str(row.updates), row.competitor, f"{t.median:.0f}", speed, of_base]

    head = ["network", "critic's updates", "order", "ms", "speed-up", "peak MiB"]
    return markdown_table(head, map(cells, rows))


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--network", choices=["unet", "dit", "sd21"], default=None)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--updates", type=int, nargs="+", default=[5, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    options.network = options.network or ("unet" if options.device == "cpu" else "sd21")
    found = {updates: measure(options, updates) for updates in options.updates}
    rows = [row for some, _ in found.values() for row in some]
    print(table(rows))
    extra = {
        "load_average": os.getloadavg()[0],
        "floors": FLOORS,
        "profiles": {updates: operators for updates, (_, operators) in found.items()},
    }
    print(f"written to {write_json(f'dmd2_step_{options.device}', rows, extra)}")


if __name__ == "__main__":
    main()
