"""What `nitrodistill estimate` counts, beside what a run of middle size takes.

    python benchmarks/estimate.py

LADD on a UNet of Stable Diffusion 2's kind with 78 million parameters, random weights, 32x32 latents, float32, on
the CPU; each setting in a process of its own, two steps. Measured is the resident memory of the process: what
there is between two steps, and the peak within the second one over that (`VmHWM` after `/proc/self/clear_refs`,
so Linux only). The allocator is told to give every freed tensor back. Writes benchmarks/results/estimate.json and
prints a table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo_quality import environment

RESULTS = Path(__file__).parent / "results" / "estimate.json"
MIB = 2**20
BATCH = 4
SETTINGS = {"plain": False, "gradient checkpointing": True}


def memory(name: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {name}; this needs Linux.")


def run(checkpointing: bool) -> dict[str, int]:
    """Counts, then trains two steps; bytes."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    from nitrodistill.method import Draws
    from nitrodistill.methods import LADD, LADDConfig
    from nitrodistill.models import Pipeline
    from nitrodistill.training import OptimizerConfig, Trainer, TrainerConfig
    from nitrodistill.training.estimate import estimate
    from nitrodistill.training.recipe import Stage
    from nitrodistill.types import Batch

    torch.set_num_threads(1)

    scheduler: Any = DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, steps_offset=1
    )

    def pipeline(device: str) -> Pipeline:
        with torch.device(device):
            vae = AutoencoderKL()
            unet = UNet2DConditionModel(
                sample_size=32,
                block_out_channels=(96, 192, 384, 384),
                cross_attention_dim=256,
                attention_head_dim=[2, 4, 8, 8],  # pyright: ignore[reportArgumentType]
                use_linear_projection=True,
            )
        empty: Any = None
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=empty,
            tokenizer=empty,
            unet=unet,
            scheduler=scheduler,
            safety_checker=empty,
            feature_extractor=empty,
            requires_safety_checker=False,
        )
        return Pipeline.from_diffusers(pipe)

    optimizers = {name: OptimizerConfig() for name in ("student", "discriminator")}
    config = TrainerConfig(
        steps=2, batch_size=BATCH, optimizers=optimizers, gradient_checkpointing=checkpointing
    )
    stage = Stage(LADDConfig(updates="shared"), config)
    counted = estimate(pipeline("meta"), stage, text_length=77)

    before = memory("VmRSS")
    teacher = pipeline("cpu")
    text = teacher.denoiser.adapter.example_condition(torch.zeros(1, *teacher.latent_shape), 77)

    def stream(number: int) -> Batch:
        index = torch.arange(BATCH * number, BATCH * (number + 1))
        noise = Draws(0, 0, index).normal("noise", teacher.latent_shape)
        return Batch(index, noise, noise, text.index([0] * BATCH))

    method = LADD.from_config(stage.method, teacher.denoiser, teacher.denoiser.copy())
    steps = Trainer(method, stream, config).fit()
    next(steps)
    resident = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    next(steps)
    return {
        "parameters": counted.roles["student"].parameters,
        "counted_resident": counted.resident,
        "measured_resident": resident - before,
        "counted_step": counted.peak() - counted.resident,
        "measured_step": memory("VmHWM") - resident,
    }


def table(rows: dict[str, dict[str, int]]) -> str:
    """Markdown: counted and measured, in MiB."""
    lines = [
        "| setting | what | counted, MiB | measured, MiB | counted / measured |",
        "|---|---|---:|---:|---:|",
    ]
    for name, row in rows.items():
        for key, what in (
            ("resident", "weights, moments, averages"),
            ("step", "gradients or activations"),
        ):
            mine, real = row[f"counted_{key}"], row[f"measured_{key}"]
            lines.append(
                f"| {name} | {what} | {mine / MIB:.0f} | {real / MIB:.0f} | {mine / real:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(run(SETTINGS[sys.argv[1]])))
        return
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    rows: dict[str, dict[str, int]] = {}
    for name in SETTINGS:
        command = [sys.executable, __file__, name]
        done = subprocess.run(
            command, env=os.environ | allocator, stdout=subprocess.PIPE, text=True, check=True
        )
        rows[name] = json.loads(done.stdout.splitlines()[-1])
    RESULTS.parent.mkdir(exist_ok=True)
    found = {"environment": environment(), "batch_size": BATCH, "settings": rows}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
