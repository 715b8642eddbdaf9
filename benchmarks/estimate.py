"""What `nitrodistill estimate` counts, and what runs of middle size take.

    python benchmarks/estimate.py [--networks sd2 unet pixart sd3 flux] [--batch-sizes 1 4]

LADD with random weights, float32, on the CPU; each setting in a process of its own. Measured is the
resident memory of the process once every role has learnt: what there is between two steps, and the peak
within the next turn of each role over that (`VmHWM` after `/proc/self/clear_refs`, so Linux only). The
allocator is told to give every freed tensor back. The rules were written with "sd2" in view, and mended
with "unet", "pixart" and "sd3" at a batch of 2, which is not measured here; "flux" was never looked at
before. Settings that benchmarks/results/estimate.json holds are kept: remove it to measure anew, about ten
minutes on a core of its own. Prints the table of docs/cli.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _toy import environment

if TYPE_CHECKING:
    from nitrodistill.models import Pipeline

RESULTS = Path(__file__).parent / "results" / "estimate.json"
MIB = 2**20
EMPTY: Any = None


def memory(name: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {name}; this needs Linux.")


def stable_diffusion(**settings: Any) -> Any:
    """A UNet of Stable Diffusion 2's kind in its pipeline, without text encoder."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    with torch.device("cpu"):  # schedulers compute on what they make
        scheduler: Any = DDIMScheduler(
            prediction_type="v_prediction", clip_sample=False, steps_offset=1
        )
    return StableDiffusionPipeline(
        vae=AutoencoderKL(),
        text_encoder=EMPTY,
        tokenizer=EMPTY,
        unet=UNet2DConditionModel(use_linear_projection=True, **settings),
        scheduler=scheduler,
        safety_checker=EMPTY,
        feature_extractor=EMPTY,
        requires_safety_checker=False,
    )


def sd2() -> Any:
    """78 million parameters, four levels, 32x32 latents."""
    return stable_diffusion(
        sample_size=32,
        block_out_channels=(96, 192, 384, 384),
        cross_attention_dim=256,
        attention_head_dim=[2, 4, 8, 8],
    )


def unet() -> Any:
    """Three levels of one layer, 48x48 latents, attention at every level."""
    return stable_diffusion(
        sample_size=48,
        layers_per_block=1,
        block_out_channels=(128, 256, 384),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=512,
        attention_head_dim=[4, 8, 12],
    )


def pixart() -> Any:
    """Twelve blocks of width 512 with a text mask, 1024 tokens."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    network = PixArtTransformer2DModel(
        num_attention_heads=8,
        attention_head_dim=64,
        cross_attention_dim=512,
        num_layers=12,
        caption_channels=1024,
        sample_size=64,
        use_additional_conditions=False,
    )
    with torch.device("cpu"):
        scheduler: Any = DPMSolverMultistepScheduler(beta_end=0.02)
    return PixArtSigmaPipeline(EMPTY, EMPTY, AutoencoderKL(), network, scheduler)


def sd3() -> Any:
    """Eight joint blocks of width 512, 1024 tokens."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    network = SD3Transformer2DModel(
        sample_size=64,
        num_layers=8,
        attention_head_dim=64,
        num_attention_heads=8,
        joint_attention_dim=768,
        caption_projection_dim=512,
        pooled_projection_dim=512,
    )
    parts: dict[str, Any] = dict.fromkeys(
        f"{kind}{end}" for kind in ("text_encoder", "tokenizer") for end in ("", "_2", "_3")
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(
        transformer=network, scheduler=scheduler, vae=AutoencoderKL(latent_channels=16), **parts
    )


def flux() -> Any:
    """Four double and eight single blocks of width 512, 1024 tokens."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )

    network = FluxTransformer2DModel(
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=64,
        num_attention_heads=8,
        joint_attention_dim=1024,
        pooled_projection_dim=512,
        axes_dims_rope=(16, 24, 24),
    )
    scheduler, vae = FlowMatchEulerDiscreteScheduler(), AutoencoderKL(latent_channels=16)
    return FluxPipeline(scheduler, vae, EMPTY, EMPTY, EMPTY, EMPTY, network)


@dataclass(frozen=True)
class Network:
    """A pipeline and LADD's settings that differ.

    Attributes:
        make: builds the pipeline on the current device.
        settings: of `LADDConfig`.
        resolution: where the network does not say; these VAEs make a latent pixel of each.
    """

    make: Callable[[], Any]
    settings: dict[str, Any]
    resolution: tuple[int, int] | None = None


TOKENS: dict[str, Any] = {"head": "token", "taps": (0.25, 0.5)}
NETWORKS = {
    "sd2": Network(sd2, {"updates": "shared"}),
    "unet": Network(unet, {"updates": "shared", "taps": (0.25, 0.5)}),
    "pixart": Network(pixart, {"updates": "alternating", **TOKENS}),
    "sd3": Network(sd3, {"updates": "shared", **TOKENS}),
    "flux": Network(flux, {"updates": "alternating", **TOKENS}, (64, 64)),
}


def run(name: str, checkpointing: bool, batch_size: int) -> dict[str, int]:
    """Counts, then trains every role twice; bytes."""
    import torch

    from nitrodistill.method import Cast, Draws
    from nitrodistill.methods import LADD, LADDConfig
    from nitrodistill.models import Pipeline
    from nitrodistill.models.denoiser import frozen
    from nitrodistill.training import OptimizerConfig, Trainer, TrainerConfig
    from nitrodistill.training.estimate import estimate
    from nitrodistill.training.recipe import Stage
    from nitrodistill.types import Batch, Pairs

    torch.set_num_threads(1)
    network = NETWORKS[name]

    def pipeline(device: str) -> Pipeline:
        with torch.device(device):
            pipe = network.make()
        return Pipeline.from_diffusers(pipe, resolution=network.resolution)

    optimizers = {
        "student": OptimizerConfig(ema_decay=0.999),
        "discriminator": OptimizerConfig(),
    }
    config = TrainerConfig(
        steps=4,
        batch_size=batch_size,
        optimizers=optimizers,
        gradient_checkpointing=checkpointing,
    )
    settings = LADDConfig(**network.settings)
    stage = Stage("ladd", config, settings)
    counted = estimate(pipeline("meta"), stage, text_length=77)

    before = memory("VmRSS")
    teacher = pipeline("cpu")
    text = teacher.denoiser.adapter.example_condition(torch.zeros(1, *teacher.latent_shape), 77)

    def stream(number: int) -> Batch:
        index = torch.arange(batch_size * number, batch_size * (number + 1))
        noise = Draws(0, 0, index).normal("noise", teacher.latent_shape)
        return Batch(index, Pairs(noise, noise, text.index([0] * batch_size)))

    frozen(teacher.denoiser.module)
    if checkpointing:  # the student's gradient goes through the frozen one: as in training.stages
        teacher.denoiser.enable_gradient_checkpointing()
    method = LADD.build(settings, Cast.of(teacher.denoiser, teacher.denoiser.copy()))
    steps, turns = Trainer(method, stream, config).fit(), len(counted.turns)
    for _ in range(turns):
        next(steps)
    resident = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(turns):
        next(steps)
    return {
        "parameters": counted.roles["student"].parameters,
        "counted_resident": counted.resident,
        "measured_resident": resident - before,
        "counted_step": counted.peak() - counted.resident,
        "measured_step": memory("VmHWM") - resident,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: counted, measured, and their ratio."""
    lines = [
        "| network | parameters | checkpointing | batch | between steps, MiB: counted | measured | ratio "
        "| on top within a step, MiB: counted | measured | ratio |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [
            row["network"],
            f"{row['parameters'] / 1e6:.0f} M",
            "yes" if row["checkpointing"] else "no",
            str(row["batch_size"]),
        ]
        for key in ("resident", "step"):
            mine, real = row[f"counted_{key}"], row[f"measured_{key}"]
            cells += [f"{mine / MIB:.0f}", f"{real / MIB:.0f}", f"{mine / real:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    ratios = [row["counted_step"] / row["measured_step"] for row in rows]
    totals = [
        (row["counted_resident"] + row["counted_step"])
        / (row["measured_resident"] + row["measured_step"])
        for row in rows
    ]
    lines.append("")
    lines.append(
        f"Counted / measured: {min(ratios):.2f} to {max(ratios):.2f} of what comes on top within a step, "
        f"{min(totals):.2f} to {max(totals):.2f} of the whole peak."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # this script's own processes
    options = parser.parse_args()
    if options.one:
        name, checkpointing, size = options.one
        print(json.dumps(run(name, checkpointing == "True", int(size))))
        return
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"settings": []}
    for setting in itertools.product(options.networks, (False, True), options.batch_sizes):
        keys = dict(zip(("network", "checkpointing", "batch_size"), setting, strict=True))
        if any(keys.items() <= row.items() for row in found["settings"]):
            continue
        command = [sys.executable, __file__, "--one", *map(str, setting)]
        done = subprocess.run(
            command, env=os.environ | allocator, stdout=subprocess.PIPE, text=True, check=True
        )
        found = {
            "environment": environment(),
            "settings": [*found["settings"], keys | json.loads(done.stdout.splitlines()[-1])],
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found["settings"]))


if __name__ == "__main__":
    main()
