"""Does a fresh process that knows diffusers alone draw what the student in memory draws?

The process makes the very call that users make, with a seed, and keeps what it sees on the way: the noise that
was drawn, the latents that reached the VAE and the picture that left it. The student then follows its plan from
the same noise. So pipelines that pack their latents, or resize their pictures, need nothing of their own here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from nitrodistill.export.scheduler import TOLERANCE, relative_error
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.models.denoiser import dtype_of, evaluating
from nitrodistill.models.folders import dtype_argument
from nitrodistill.sampling import StepPlan, sample


@dataclass(frozen=True)
class SelfTest:
    """What a self-test found.

    Attributes:
        call: the keyword arguments of the call that was made, for the card.
        errors: largest differences of latents, and of the pictures that equal latents give, over the larger of 1
            and their largest value.
        tolerance: what was allowed.
    """

    call: Mapping[str, Any]
    errors: Mapping[str, float]
    tolerance: float


def self_test(
    folder: str | Path,
    pipeline: Pipeline,
    denoiser: DiffusersDenoiser,
    plan: StepPlan,
    prompts: Sequence[str],
    lora: Path | None = None,
    guidance: float = 0,
) -> SelfTest:
    """Compares a folder, as a fresh process reads it, with the student in memory.

    Args:
        folder: a diffusers pipeline, on disk or by its name on the Hub (then from the local cache).
        pipeline: the teacher's pipeline, for prompts and pictures.
        denoiser: the student.
        plan: how it samples.
        prompts: what is drawn.
        lora: a folder with LoRA weights and a scheduler that go on top.
        guidance: the call's `guidance_scale`.

    Raises:
        RuntimeError: if the process fails, or draws something else.
    """
    settings = {
        "pipeline": str(folder.resolve()) if isinstance(folder, Path) else folder,
        "lora": None if lora is None else str(lora.resolve()),
        "scheduler": None if lora is None else _scheduler_class(lora),
        "dtype": str(dtype_of(denoiser.network)).removeprefix("torch."),
        "dtype_argument": dtype_argument(),
        "device": str(pipeline.device),
        "steps": len(plan),
        "guidance": guidance,
        "asked": pipeline.adapter.call(pipeline.diffusers, list(prompts)),
        "call": dict(pipeline.adapter.call_settings),
        "absent": absent_parts(pipeline.diffusers),
        "latent_shape": list(pipeline.latent_shape),
        "height": pipeline.resolution[0],
        "width": pipeline.resolution[1],
    }
    found, call = _fresh_process(settings)
    draws = [found[f"noise.{i}"].to(pipeline.device) for i in range(len(found) - 2)]
    first = draws[0].reshape(-1, *pipeline.latent_shape)  # Qwen-Image draws a video of one frame
    # later draws are packed where latents are
    noise = [first, *(denoiser.adapter.unpacked(draw, first) for draw in draws[1:])]
    with torch.no_grad(), evaluating(denoiser.module):
        condition = pipeline.encode_prompt(prompts)
        x0 = sample(denoiser, plan, noise[0], condition, lambda i: noise[i])
        vae = pipeline.diffusers.components.get("vae")
        if vae is None:
            image = pipeline.decode(found["z"])[:, : x0.shape[1]]
            seen = {"z": x0.float().cpu(), "image": image.cpu()}
        else:
            with _decoding_instead(vae, found["z"]) as seen:
                pipeline.decode(x0, batch_size=len(x0))
    errors = {
        "latents": relative_error(found["z"], seen["z"]),
        "images": relative_error(found["image"], seen["image"]),
    }
    parts = [part for part in pipeline.diffusers.components.values() if isinstance(part, nn.Module)]
    rounding = max(torch.finfo(dtype_of(part)).eps for part in (denoiser.network, *parts))
    tolerance = max(TOLERANCE, 8 * rounding)
    if not max(errors.values()) <= tolerance:
        raise RuntimeError(
            f"the exported pipeline does not draw what the student draws (latents off by "
            f"{errors['latents']:.2g}, pictures by {errors['images']:.2g}, allowed {tolerance:.2g}); "
            "nothing was written. Check that plan and prediction type are those of the training."
        )
    return SelfTest(call, errors, tolerance)


def absent_parts(pipe: Any) -> list[str]:
    """The parts that a pipeline lacks and diffusers would miss when it is loaded, unless they are named."""
    found = [name for name, part in pipe.components.items() if part is None]
    return [name for name in found if name not in pipe._optional_components]


@contextmanager
def _decoding_instead(vae: Any, other: Tensor) -> Iterator[dict[str, Tensor]]:
    """Keeps what goes into a VAE's decoder (`z`) and what comes out (`image`) of it for `other`.

    So latents and VAE are compared each for itself: an untrained or half precision decoder may make much of a
    rounding of its input.
    """
    decode, seen = vae.decode, {}

    def decoding(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = decode(other.to(z.device, z.dtype), *args, **kwargs)
        seen.update(z=z.float().cpu(), image=out[0].float().cpu())
        return out

    vae.decode = decoding
    try:
        yield seen
    finally:
        del vae.decode  # the class's own comes back


def _scheduler_class(folder: Path) -> str:
    config = folder / "scheduler" / "scheduler_config.json"
    return json.loads(config.read_text(encoding="utf-8"))["_class_name"]


def _fresh_process(settings: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the process saw, and the arguments of the call it made."""
    script = Path(__file__).with_name("fresh_process.py").read_text(encoding="utf-8")
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch, "answer.safetensors")
        run = subprocess.run(
            [sys.executable, "-c", script, str(answer), json.dumps(settings)],
            env=environment,
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            last = run.stderr.strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(
                f"the exported pipeline does not load and run in a fresh process ({last[0]}); "
                "nothing was written."
            )
        with safe_open(answer, "pt") as file:
            call = json.loads(file.metadata()["call"])
        return load_file(answer), call
