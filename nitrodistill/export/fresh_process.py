"""The script of the self-test's process: it knows diffusers alone, makes the users' call and keeps what it sees.

Run as `python -c <this file> answer.safetensors '{settings}'`; it imports nothing of nitrodistill.
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

__all__: list[str] = []


class _OtherSize(ValueError):
    """The call draws latents of another shape than the student's."""


def _load(settings: dict[str, Any]) -> Any:
    import diffusers
    import torch

    dtype = getattr(torch, settings["dtype"])
    pipe = diffusers.DiffusionPipeline.from_pretrained(settings["pipeline"], torch_dtype=dtype)
    if settings["lora"] is not None:
        scheduler_class = getattr(diffusers, settings["scheduler"])
        pipe.scheduler = scheduler_class.from_pretrained(settings["lora"], subfolder="scheduler")
        pipe.load_lora_weights(settings["lora"])
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(settings["device"], dtype)


def _draw(pipe: Any, prompts: list[str], shape: list[int] | None, call: dict[str, Any]) -> Any:
    """Calls the pipeline; returns the noise it drew and what went in and out of its VAE."""
    import torch

    randn, decode = torch.randn, pipe.vae.decode
    draws: list[Any] = []
    seen: dict[str, Any] = {}

    def drawing(*args: Any, **kwargs: Any) -> Any:
        draws.append(randn(*args, **kwargs))
        found = list(draws[0].shape[1:])
        if shape is not None and found != shape:
            raise _OtherSize(f"it draws latents of shape {found}, the student's are {shape}")
        return draws[-1]

    def decoding(z: Any, *args: Any, **kwargs: Any) -> Any:
        out = decode(z, *args, **kwargs)
        seen.update(z=z.float().cpu().contiguous(), image=out[0].float().cpu().contiguous())
        return out

    torch.randn, pipe.vae.decode = drawing, decoding
    try:
        pipe(prompts, generator=torch.Generator().manual_seed(0), **call)
    finally:
        torch.randn = randn
        del pipe.vae.decode
    noise = {f"noise.{i}": draw.cpu().contiguous() for i, draw in enumerate(draws)}
    return {**noise, **seen}


def _main(answer: str, settings: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    pipe = _load(settings)
    call = {
        "num_inference_steps": settings["steps"],
        "guidance_scale": settings["guidance"],
    }
    size = {"height": settings["height"], "width": settings["width"]}
    if "use_resolution_binning" in inspect.signature(pipe.__call__).parameters:
        size["use_resolution_binning"] = False
    shape = settings["latent_shape"]
    try:
        found = _draw(pipe, settings["prompts"], shape, call)
    except ValueError:  # or diffusers' own, of a network whose size is none of its resolution bins
        call.update(size)
        found = _draw(pipe, settings["prompts"], shape, call)
    save_file(found, answer, metadata={"call": json.dumps(call)})


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
