"""Time and memory of a generator update and a discriminator update at equal batch, against the published order.

    python benchmarks/train_step.py [--rounds 7] [--batch_size 4] [--memory_batch_size 16] [--networks unet dit]
    python benchmarks/train_step.py --memory_only --memory_batch_size 48
    python benchmarks/train_step.py --device cuda [--compile]      # SD2.1's UNet at its true size, in bfloat16

The published order, written here from its description: the student runs once for each update; real and generated
latents go through the backbone in passes of their own; the generator's backward pass also computes gradients of
the heads, which are thrown away; AdamW is torch's default. Gradient checkpointing is the student's alone: the
published code puts the discriminator in eval mode for that backward pass, which switches its own off. One row is
that order mended: with the fused AdamW, and with checkpointing of the backbone. Ours is `LADD` with `updates:
shared` and `shared_pass` and the fused AdamW of the trainer. Networks, heads, taps, batch, losses and clipping are
the same; weights are random.

A round times each of them once, in an order that rotates: CPU time of the process on a CPU, the clock between two
waits for the device on a GPU. Ratios are taken per round; the table has their median and 20 and 80 percent
quantiles. Peak memory is what torch allocates for a pair of updates above weights and moments, with and without
gradient checkpointing, at two batch sizes: in the smaller one most of it is the student's gradients, which every
order of passes needs. `--memory_only` measures one larger batch, checkpointed, and no times. Writes
benchmarks/results/train_step_<device>.json, or train_step_memory_<device>.json.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from _measure import Samples, Spread, allocated_mib, markdown_table, write_json
from torch import Tensor, nn

from nitrodistill.diagnostics import logit_statistics
from nitrodistill.method import Cast, Draws
from nitrodistill.methods import LADD
from nitrodistill.methods.ladd.config import LADDConfig, Updates
from nitrodistill.models import DiffusersDenoiser
from nitrodistill.models.denoiser import frozen
from nitrodistill.models.wrappers import unwrapped
from nitrodistill.sampling import predict_x0
from nitrodistill.schedules import DiscreteSchedule
from nitrodistill.types import Batch, Pairs

PUBLISHED, MENDED = "published order", "published order, mended"
FLOORS = {"speedup": 1.2, "memory": 0.8}
TAPS = (0.25, 0.5)


@dataclass(frozen=True)
class Row:
    """What was found of one competitor on one network."""

    network: str
    competitor: str
    million_parameters: float
    batch_size: int
    milliseconds: Spread
    speedup: Spread
    peak_mib: float | None
    checkpointed_peak_mib: float | None
    larger_batch_peak_mib: float | None = None
    larger_batch_checkpointed_peak_mib: float | None = None


def make_network(name: str) -> nn.Module:
    """A network with random weights; `sd21` has the config of Stable Diffusion 2.1's."""
    from diffusers import DiTTransformer2DModel, UNet2DConditionModel

    torch.manual_seed(0)
    if name == "dit":
        return DiTTransformer2DModel(
            num_attention_heads=8, attention_head_dim=64, in_channels=4, out_channels=4,
            num_layers=12, sample_size=16, patch_size=2, num_embeds_ada_norm=1000,
        )  # fmt: skip
    heads, widths = (4, (128, 256, 512))
    if name == "sd21":
        heads, widths = ((5, 10, 20, 20), (320, 640, 1280, 1280))
    cross, deepest = "CrossAttn{}Block2D", "{}Block2D"
    levels = len(widths) - 1
    return UNet2DConditionModel(
        sample_size=64 if name == "sd21" else 16,
        block_out_channels=widths,
        attention_head_dim=heads,
        cross_attention_dim=1024 if name == "sd21" else 256,
        use_linear_projection=True,
        layers_per_block=2,
        down_block_types=[cross.format("Down")] * levels + [deepest.format("Down")],
        up_block_types=[deepest.format("Up")] + [cross.format("Up")] * levels,
    )


class Setting:
    """Teacher, student and data of one network; each competitor trains copies of its own."""

    def __init__(self, name: str, batch_size: int, device: str, bf16: bool, checkpoint: bool):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        schedule = DiscreteSchedule((1 - betas).cumprod(0))
        network = make_network(name).to(device)
        self.teacher = DiffusersDenoiser(network, schedule, "v_prediction")
        self.student = self.teacher.copy()
        self.student.module.train()
        frozen(self.teacher.module)
        if bf16:
            self.teacher.module.to(torch.bfloat16)
        if checkpoint:
            self.student.enable_gradient_checkpointing()
            self.teacher.enable_gradient_checkpointing()
        self.device, self.bf16 = device, bf16
        index = torch.arange(batch_size)
        shape, draws = self.teacher.latent_shape(), Draws(0, 0, index, purpose="pairs")
        x0, noise = (draws.normal(key, shape, device) for key in ("x0", "noise"))
        condition = self.teacher.adapter.example_condition(x0, 77).index([0] * batch_size)
        self.batch = Batch(index, Pairs(x0, noise, condition))
        self.config = LADDConfig(taps=TAPS, adversarial="hinge")

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 around the losses, as with `mixed_precision: bf16`."""
        return torch.autocast(self.device, torch.bfloat16) if self.bf16 else nullcontext()  # type: ignore[return-value]


def optimizers(method: LADD, **how: bool) -> dict[str, torch.optim.AdamW]:
    """Role -> its optimizer."""
    roles = method.trainable()
    return {n: torch.optim.AdamW(r.module.parameters(), 1e-5, **how) for n, r in roles.items()}


def ours(setting: Setting, updates: Updates) -> Callable[[], None]:
    """Both updates by LADD, as the trainer makes them."""
    config = LADDConfig(taps=TAPS, adversarial="hinge", updates=updates)
    method = LADD.build(config, Cast.of(setting.teacher, setting.student))
    steps = optimizers(method, fused=True)

    def call() -> None:
        draws = Draws(0, 1, setting.batch.index)
        losses = method.losses(setting.batch, method.active(0), draws)
        with setting.autocast():
            for _, terms in losses:
                terms.total.backward()
        for step in steps.values():
            finish(step)

    return call


def published(setting: Setting, mended: bool = False) -> Callable[[], None]:
    """Both updates in turns, each with a pass of the student and its own passes of the backbone."""
    if not mended:
        unwrapped(setting.teacher.module).disable_gradient_checkpointing()
    method = LADD.build(setting.config, Cast.of(setting.teacher, setting.student))
    game = method.game
    assert game is not None
    assert setting.batch.pairs is not None
    steps, pairs = optimizers(method, **({"fused": True} if mended else {})), setting.batch.pairs
    z, condition, plan = pairs.x0, pairs.condition, method.plan.steps[0]
    x_t = plan.input.mix(z, pairs.noise)

    def logits(x0: Tensor, draws: Draws, use: str) -> tuple[Tensor, ...]:
        return game.side(x0, condition, draws, use).logits

    def call() -> None:
        draws = Draws(0, 1, setting.batch.index)
        with setting.autocast():
            x0 = predict_x0(setting.student, plan, x_t, condition)
            adversarial = game.adversarial.generator(logits(x0, draws, "generator")).mean()
            (nn.functional.smooth_l1_loss(x0, z) + adversarial).backward()
        finish(steps["student"])
        steps["discriminator"].zero_grad()
        with setting.autocast():
            with torch.no_grad():
                x0 = predict_x0(setting.student, plan, x_t, condition)
            real, fake = logits(z, draws, "real"), logits(x0, draws, "fake")
            game.adversarial.discriminator(real, fake).mean().backward()
            logit_statistics(real, fake)  # what LADD logs too
        finish(steps["discriminator"])

    return call


def finish(step: torch.optim.Optimizer) -> None:
    """Clips and updates."""
    nn.utils.clip_grad_norm_(step.param_groups[0]["params"], 1.0)
    step.step()
    step.zero_grad()


COMPETITORS: dict[str, Callable[[Setting], Callable[[], None]]] = {
    PUBLISHED: published,
    MENDED: partial(published, mended=True),
    "shared": partial(ours, updates="shared"),
    "shared_pass": partial(ours, updates="shared_pass"),
}


def clock(device: str) -> float:
    """Milliseconds: the process's CPU time, or the clock when the device has done its work."""
    if device == "cpu":
        return 1e3 * time.process_time()
    torch.cuda.synchronize()
    return 1e3 * time.perf_counter()


def times(calls: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, Samples]:
    """Name -> a time a round; two calls before do not count."""
    for call in calls.values():
        call()
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            before = clock(device)
            calls[name]()
            found[name].append(clock(device) - before)
    return {name: Samples(tuple(values)) for name, values in found.items()}


def peak(call: Callable[[], None], device: str) -> float:
    """MiB that torch allocates for a call above what is there before it."""
    call()
    if device == "cpu":
        return allocated_mib(call)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one network."""
    device, size = options.device, options.batch_size
    make = partial(Setting, name, size, device, device == "cuda")
    million, calls = 0.0, {}
    for key, build in COMPETITORS.items():
        setting = make(checkpoint=False)
        million = sum(p.numel() for p in setting.student.module.parameters()) / 1e6
        if options.compile:
            setting.student.module.compile()
        calls[key] = build(setting)
    found = times(calls, options.rounds, device)
    del calls
    rows = []
    for key, build in COMPETITORS.items():
        peaks = [
            peak(build(Setting(name, batch, device, device == "cuda", checkpoint)), device)
            for batch in (size, options.memory_batch_size)
            for checkpoint in (False, True)
        ]
        speedup = found[PUBLISHED].speedup_of(found[key])
        rows.append(Row(name, key, million, size, found[key].spread, speedup, *peaks))
    return rows


def measure_memory(options: argparse.Namespace) -> None:
    """Prints and saves the peaks alone, checkpointed, at the larger batch, where activations decide."""
    device, batch = options.device, options.memory_batch_size
    found: dict[str, dict[str, float]] = {}
    for name in options.networks:
        found[name] = {
            key: peak(build(Setting(name, batch, device, device == "cuda", True)), device)
            for key, build in COMPETITORS.items()
        }
    lines = [
        [name, key, f"{value:.0f} ({value / peaks[PUBLISHED]:.2f})"]
        for name, peaks in found.items()
        for key, value in peaks.items()
    ]
    print(markdown_table(["network", "order", f"peak MiB, checkpointed, batch {batch}"], lines))
    print(
        f"written to {write_json(f'train_step_memory_{device}', [], {'batch': batch, 'mib': found})}"
    )


def table(rows: list[Row]) -> str:
    """Markdown; memory beside that of the published order, each with and without checkpointing."""
    first = {row.network: row for row in rows if row.competitor == PUBLISHED}

    def peaks(row: Row) -> tuple[float | None, ...]:
        small = row.peak_mib, row.checkpointed_peak_mib
        return *small, row.larger_batch_peak_mib, row.larger_batch_checkpointed_peak_mib

    def cells(row: Row) -> list[str]:
        t, s, base = row.milliseconds, row.speedup, first[row.network]
        pairs = zip(peaks(row), peaks(base), strict=True)
        memory = ["-" if a is None or not b else f"{a:.0f} ({a / b:.2f})" for a, b in pairs]
        speed = f"{s.median:.2f} ({s.low:.2f} to {s.high:.2f})"
        network = f"{row.network}, {row.million_parameters:.0f}M"
        return [network, row.competitor, f"{t.median:.0f}", speed, *memory]

    sizes = ["", ", checkpointed", ", larger batch", ", larger batch, checkpointed"]
    header = ["network", "order", "ms", "speed-up", *(f"peak MiB{size}" for size in sizes)]
    return markdown_table(header, map(cells, rows))


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--networks", nargs="*", choices=["unet", "dit", "sd21"], default=None)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--memory_batch_size", type=int, default=16, help="of the larger batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="the student by torch.compile")
    parser.add_argument(
        "--memory_only", action="store_true", help="peaks of the larger batch alone"
    )
    options = parser.parse_args()
    options.networks = options.networks or (
        ["unet", "dit"] if options.device == "cpu" else ["sd21"]
    )
    if options.memory_only:
        measure_memory(options)
        return
    if options.device == "cpu":
        torch.set_num_threads(1)
    rows = [row for name in options.networks for row in measure(name, options)]
    print(table(rows))
    load, gpu = os.getloadavg()[0], options.device == "cuda"
    extra = {
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "compiled": options.compile,
        "load_average": load,
        "floors": FLOORS,
    }
    name = f"train_step_{options.device}{'_compiled' if options.compile else ''}"
    print(f"load average {load:.1f}; written to {write_json(name, rows, extra)}")


if __name__ == "__main__":
    main()
