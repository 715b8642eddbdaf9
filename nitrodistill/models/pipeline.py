"""Pipeline: one owner of denoiser, VAE and text encoder, for generation, previews, evaluation, export."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.denoiser import DiffusersDenoiser, Guided, device_of
from nitrodistill.schedules import DiscreteSchedule
from nitrodistill.types import Condition, check_prediction_type

__all__ = ["Pipeline", "fingerprint"]


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
            ValueError: if it is not a diffusers pipeline.
        """
        from diffusers import StableDiffusionPipeline

        folder = Path(path)
        if folder.is_dir() or folder.is_absolute() or str(path).startswith("."):
            if not folder.exists():
                raise FileNotFoundError(
                    f"no teacher at {str(path)!r}; give the directory of a diffusers pipeline (with a "
                    "model_index.json), or its name on the Hub."
                )
            if not (folder / "model_index.json").is_file():
                raise ValueError(
                    f"{str(path)!r} is not a diffusers pipeline: it has no model_index.json. Save one "
                    "there with pipe.save_pretrained(path)."
                )
        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                str(path), torch_dtype=dtype, safety_checker=None, requires_safety_checker=False
            )
        except OSError as error:
            raise FileNotFoundError(
                f"no teacher {str(path)!r}: it is neither a directory here nor a pipeline that can be "
                f"downloaded ({str(error).splitlines()[0]})."
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


def fingerprint(module: nn.Module) -> str:
    """A hex hash of a module's weights (names, shapes, dtypes, bytes): which teacher made a store."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype};".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
