"""Pipeline: one owner of denoiser, VAE and text encoder, for generation, previews, evaluation, export."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.denoiser import DiffusersDenoiser, Guided, device_of
from nitrodistill.schedules import DiscreteSchedule
from nitrodistill.types import Condition, check_prediction_type

__all__ = ["Pipeline", "fingerprint", "without_broken_torchvision"]


class Pipeline:
    """A diffusers text-to-image pipeline, taken apart into what distillation needs.

    Build one with `Pipeline.load(path)` or `Pipeline.from_diffusers(pipe)`.

    Attributes:
        diffusers: the diffusers pipeline itself; its modules are shared, not copied.
        denoiser: its network, with the schedule and prediction type of its scheduler.
        check_prompt: raises ValueError for a prompt that the text encoder does not know.
    """

    def __init__(
        self,
        diffusers: Any,
        denoiser: DiffusersDenoiser,
        check_prompt: Callable[[str], None] | None = None,
    ) -> None:
        self.diffusers: Any = diffusers
        self.denoiser: DiffusersDenoiser = denoiser
        self.check_prompt: Callable[[str], None] = check_prompt or (lambda prompt: None)

    @classmethod
    def from_diffusers(
        cls, pipe: Any, check_prompt: Callable[[str], None] | None = None
    ) -> Pipeline:
        """Wraps a loaded diffusers pipeline; nothing is copied.

        Raises:
            TypeError: if it is not a StableDiffusionPipeline.
        """
        if type(pipe).__name__ != "StableDiffusionPipeline":
            raise TypeError(
                f"{type(pipe).__name__} is not a supported pipeline; StableDiffusionPipeline is."
            )
        schedule = DiscreteSchedule.from_scheduler(pipe.scheduler)
        prediction_type = check_prediction_type(pipe.scheduler.config.prediction_type)
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            module.requires_grad_(False).eval()
        return cls(pipe, DiffusersDenoiser(pipe.unet, schedule, prediction_type), check_prompt)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Pipeline:
        """Loads a diffusers pipeline from a directory, or by its name on the Hub.

        Args:
            path: a directory with a `model_index.json`, or a Hub name such as `"user/model"`.
            device: where it goes.
            dtype: of the weights.

        Raises:
            FileNotFoundError: if a directory is not there.
            ValueError: if it is not a Stable Diffusion pipeline, or is damaged.
        """
        from safetensors import SafetensorError

        without_broken_torchvision()
        from diffusers import StableDiffusionPipeline

        local = _check_local(path)
        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                str(path),
                torch_dtype=dtype,
                safety_checker=None,
                requires_safety_checker=False,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:160]
            if local:
                raise ValueError(
                    f"the pipeline {str(path)!r} cannot be loaded: a part is missing or damaged, or has no "
                    f"safetensors ({reason}). Save it anew with pipe.save_pretrained(path)."
                ) from error
            raise FileNotFoundError(
                f"no teacher {str(path)!r}: there is no such directory here, and no pipeline of that name "
                f"can be downloaded ({reason})."
            ) from error
        return cls.from_diffusers(pipe.to(device))

    @property
    def scheduler(self) -> Any:
        """The diffusers scheduler."""
        return self.diffusers.scheduler

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return device_of(self.denoiser.module)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one latent."""
        return self.denoiser.latent_shape()

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Encodes prompts; sample i of the Condition is prompt i.

        Raises:
            ValueError: if a prompt holds words that the text encoder does not know.
        """
        for prompt in prompts:
            self.check_prompt(prompt)
        text, _ = self.diffusers.encode_prompt(
            list(prompts), self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return Condition({"encoder_hidden_states": text})

    @torch.no_grad()
    def null_condition(self) -> Condition:
        """The encoding of the empty prompt, of batch size one: guidance's unconditional side."""
        text, _ = self.diffusers.encode_prompt(
            [""], self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return Condition({"encoder_hidden_states": text})

    def guided(self, scale: float) -> Guided:
        """The denoiser with classifier-free guidance; scale 1 is none."""
        return Guided(self.denoiser, scale, self.null_condition())

    def decode(self, latents: Tensor, batch_size: int = 64) -> Tensor:
        """Decodes latents `(B, C, H, W)` to images `(B, 3, 8H, 8W)` (or the VAE's factor).

        Returns:
            float32, clamped to [-1, 1]. Gradients flow where autograd is on.
        """
        vae = self.diffusers.vae
        dtype = next(vae.parameters()).dtype
        scaled = latents.to(self.device, dtype) / vae.config.scaling_factor
        layout = torch.channels_last if scaled.device.type == "cpu" else torch.preserve_format
        parts = [
            vae.decode(part.contiguous(memory_format=layout), return_dict=False)[0]
            for part in scaled.split(batch_size)
        ]
        return torch.cat(parts).float().clamp(-1, 1).contiguous()

    @torch.no_grad()
    def encode_image(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Encodes images `(B, 3, H, W)` in [-1, 1] to scaled latents (the posterior's mean)."""
        vae = self.diffusers.vae
        dtype = next(vae.parameters()).dtype
        parts = [
            vae.encode(part.to(self.device, dtype)).latent_dist.mean
            for part in images.split(batch_size)
        ]
        return torch.cat(parts).float() * vae.config.scaling_factor


def _check_local(path: str | Path) -> bool:
    """Whether `path` is a pipeline on this machine (else a name on the Hub), checked before it is loaded."""
    folder, text = Path(path), str(path)
    if not folder.exists():
        if (
            folder.is_absolute()
            or text.startswith(".")
            or text.count("/") != 1
            or folder.parent.is_dir()
        ):
            raise FileNotFoundError(
                f"no teacher at {text!r}; give the directory of a diffusers pipeline (with a "
                "model_index.json), or its name on the Hub (user/model)."
            )
        return False
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"{text!r} is not a diffusers pipeline: it has no model_index.json. Save one there with "
            "pipe.save_pretrained(path)."
        )
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    kind = found.get("_class_name") if isinstance(found, dict) else None
    if kind != "StableDiffusionPipeline":
        raise ValueError(
            f"{text!r} is not a pipeline that can be distilled yet: its model_index.json says "
            f"{kind!r}, and StableDiffusionPipeline is supported."
        )
    return True


def without_broken_torchvision() -> None:
    """Hides a torchvision that cannot be imported from libraries that would fail with it.

    A CPU torch beside another build's torchvision raises "operator torchvision::nms does not exist" at
    import, and transformers takes the whole pipeline down with it. Nothing but LPIPS needs torchvision here.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:  # there is none: nobody tries
        return
    except Exception:  # whatever a broken binary raises
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]


def fingerprint(module: nn.Module) -> str:
    """A hex hash of a module's weights (names, shapes, dtypes, bytes): which teacher made a store."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype};".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
