"""The script of the self-test's process: it knows diffusers alone, makes the users' call and keeps what it sees.

Run as `python -c <this file> answer.safetensors '{settings}'`; it imports nothing of nitrodistill.
"""

from __future__ import annotations

import copy
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
    absent = dict.fromkeys(settings["absent"])  # diffusers wants them named
    name = settings["dtype_argument"]
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        settings["pipeline"], **{name: dtype}, **absent
    )
    if settings["lora"] is not None:
        scheduler_class = getattr(diffusers, settings["scheduler"])
        pipe.scheduler = scheduler_class.from_pretrained(settings["lora"], subfolder="scheduler")
        pipe.load_lora_weights(settings["lora"])
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(settings["device"], dtype)


def _wide(shape: list[int]) -> list[int]:
    """Without the frames of a picture that is drawn as a video of one."""
    return [side for side in shape if side > 1]


def _draw(pipe: Any, shape: list[int] | None, call: dict[str, Any]) -> Any:
    """Calls the pipeline; returns the noise it drew, the latents at the end (`z`) and the picture they became.

    That is what went in and out of its VAE; without one, what its scheduler's last step made and its answer.
    """
    import torch

    vae, randn = getattr(pipe, "vae", None), torch.randn
    place, name = (pipe.scheduler, "step") if vae is None else (vae, "decode")
    function = getattr(place, name)
    draws: list[Any] = []
    seen: dict[str, Any] = {}

    def drawing(*args: Any, **kwargs: Any) -> Any:
        draws.append(randn(*args, **kwargs))
        found = list(draws[0].shape[1:])
        if shape is not None and _wide(found) != _wide(shape):
            raise _OtherSize(f"it draws latents of shape {found}, the student's are {shape}")
        return draws[-1]

    def watching(z: Any, *args: Any, **kwargs: Any) -> Any:
        out = function(z, *args, **kwargs)
        seen.update({"z": out[0]} if vae is None else {"z": z, "image": out[0]})
        return out

    torch.randn = drawing
    setattr(place, name, watching)
    more = {} if vae is not None else {"output_type": "np"}
    try:
        # a copy: Z-Image's pipeline changes the list of prompts that it is given
        answer = pipe(generator=torch.Generator().manual_seed(0), **more, **copy.deepcopy(call))
    finally:
        torch.randn = randn
        delattr(place, name)
    if vae is None:
        seen["image"] = torch.from_numpy(answer.images).permute(0, 3, 1, 2) * 2 - 1
    kept = {f"noise.{i}": draw for i, draw in enumerate(draws)}
    kept |= {key: value.float() for key, value in seen.items()}
    return {key: value.cpu().contiguous() for key, value in kept.items()}


def _main(answer: str, settings: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    pipe = _load(settings)
    known, asked = inspect.signature(pipe.__call__).parameters, settings["asked"]
    call = {"num_inference_steps": settings["steps"], **settings["call"]}
    if "guidance_scale" in known:
        call["guidance_scale"] = settings["guidance"]
    size = {"height": settings["height"], "width": settings["width"]}
    if "use_resolution_binning" in known:
        size["use_resolution_binning"] = False
    shape = settings["latent_shape"]
    try:
        found = _draw(pipe, shape, {**asked, **call})
    except ValueError:  # or diffusers' own, of a network whose size is none of its resolution bins
        if "height" not in known:
            raise
        call.update(size)
        found = _draw(pipe, shape, {**asked, **call})
    save_file(found, answer, metadata={"call": json.dumps(call)})


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
