"""Pipeline: one owner of denoiser, VAE and text encoder, for generation, previews, evaluation, export."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nitrodistill.checks import check_kind, check_tensor
from nitrodistill.files import blake2
from nitrodistill.models.adapters import (
    PIPELINES,
    Adapter,
    PipelineAdapter,
    adapter_for,
    pipeline_adapter_for,
)
from nitrodistill.models.autoencoder import (
    decode_latents,
    encode_images,
    image_channels,
    latent_channels,
    load_vae,
    pixels_a_latent,
)
from nitrodistill.models.denoiser import DiffusersDenoiser, device_of, dtype_of, frozen
from nitrodistill.models.folders import (
    UnsupportedPipeline,
    absent_parts,
    check_installed,
    check_local,
    dtype_argument,
    only_variant,
)
from nitrodistill.models.guidance import EmbeddedGuidance, Guided
from nitrodistill.models.noise import clamp_of, noise_of
from nitrodistill.models.weights import fingerprint
from nitrodistill.models.wrappers import unwrapped
from nitrodistill.types import Condition, Denoiser


class Pipeline:
    """A diffusers text-to-image pipeline, taken apart into what distillation needs.

    Build one with `Pipeline.load(path)` or `Pipeline.from_diffusers(pipe)`.

    Args:
        diffusers: the diffusers pipeline; its modules are shared, not copied.
        denoiser: its network, with the schedule and prediction type of its scheduler.
        adapter: how it encodes prompts; by default its family's.
        resolution: (height, width) of its pictures in pixels; by default what the network was made for.
        check_prompt: raises ValueError for a prompt that the text encoder does not know; by default for what
            is no class of a class-conditional network.

    Attributes:
        diffusers: the diffusers pipeline itself.
        denoiser: its network.
        adapter: how it encodes prompts.
        latent_shape: `(C, H, W)` of one latent.
        check_prompt: see above.
        negative_prompt: what guidance leads away from where its caller names nothing; None, the default, is what
            diffusers takes. May be set.
        other_vae: a VAE of the same latents in the place of the pipeline's own, such as a small AutoencoderTiny
            for pictures while training; None, the default, is none. Set it with `use_vae`.
        offload_text: text encoders wait on the CPU while no prompt is encoded. May be set.

    Raises:
        TypeError: if its class is not one of `models.adapters.PIPELINES` and there is no adapter.
        ValueError: if the resolution is not divisible by what the VAE and the network need.

    Example:
        >>> pipeline = nd.Pipeline.from_diffusers(teacher.diffusers)
        >>> pipeline.resolution, pipeline.latent_shape
        ((32, 32), (4, 8, 8))
    """

    def __init__(
        self,
        diffusers: Any,
        denoiser: DiffusersDenoiser,
        check_prompt: Callable[[str], None] | None = None,
        *,
        adapter: PipelineAdapter | None = None,
        resolution: tuple[int, int] | None = None,
    ) -> None:
        check_kind(
            "denoiser", denoiser, DiffusersDenoiser, "; Pipeline.from_diffusers(pipe) makes it"
        )
        self.diffusers: Any = diffusers
        self.denoiser: DiffusersDenoiser = denoiser
        self.adapter: PipelineAdapter = adapter or pipeline_adapter_for(diffusers)
        self.check_prompt: Callable[[str], None] = check_prompt or partial(
            self.adapter.check, diffusers
        )
        self.latent_shape: tuple[int, int, int] = denoiser.latent_shape()
        if resolution is not None:
            self.latent_shape = _latent_shape(diffusers, denoiser.adapter, resolution)
            self.denoiser = copy.copy(denoiser)  # whom training on prompts alone asks for it
            self.denoiser.size = self.latent_shape[1:]
        self.negative_prompt: str | None = None
        self.other_vae: Any = None
        self.offload_text: bool = False

    @classmethod
    def from_diffusers(
        cls,
        pipe: Any,
        check_prompt: Callable[[str], None] | None = None,
        *,
        resolution: tuple[int, int] | None = None,
    ) -> Pipeline:
        """Wraps a loaded diffusers pipeline; nothing is copied, and all of it is frozen.

        Args:
            pipe: of one of the classes in `models.adapters.PIPELINES`.
            check_prompt: raises ValueError for a prompt that the text encoder does not know.
            resolution: (height, width) of its pictures in pixels; by default what the network was made for.

        Raises:
            TypeError: if its class is not one of the families.
            ValueError: if the resolution is not divisible by what the VAE and the network need, network or VAE
                is missing, a part is offloaded, its pictures are neither grey nor RGB, or its scheduler's options
                are not understood (`noise_of`).
        """
        adapter = pipeline_adapter_for(pipe)
        _check_parts(pipe, adapter)
        network = getattr(pipe, adapter.network)  # compiled perhaps: that is what is called
        of_network = adapter_for(unwrapped(network))
        _, height, width = _latent_shape(pipe, of_network, resolution)
        channels = _image_channels(pipe, of_network)
        if channels not in (1, 3):
            raise ValueError(
                f"this {type(pipe).__name__} draws {channels} channels; pictures are grey (1) or RGB (3)."
            )
        tokens = (height // of_network.patch) * (width // of_network.patch)
        schedule, prediction_type, preconditioning = noise_of(
            pipe.scheduler, of_network.timestep_scale, tokens, adapter.shift_mu(pipe, tokens)
        )
        for module in pipe.components.values():
            if isinstance(module, nn.Module):
                frozen(module)
        denoiser = DiffusersDenoiser(
            network,
            schedule,
            prediction_type,
            adapter=of_network,
            preconditioning=preconditioning,
            clamp=clamp_of(pipe.scheduler),
        )
        return cls(pipe, denoiser, check_prompt, adapter=adapter, resolution=resolution)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        variant: str | None = None,
        revision: str | None = None,
        resolution: tuple[int, int] | None = None,
    ) -> Pipeline:
        """Loads a diffusers pipeline from a directory, or by its name on the Hub.

        Args:
            path: a directory with a `model_index.json`, or a Hub name such as `"user/model"`.
            device: where it goes.
            dtype: of the weights.
            variant: of the weights' files, such as "fp16"; None takes those without one, or the only one there is.
            revision: branch, tag or commit of a pipeline on the Hub.
            resolution: (height, width) of its pictures in pixels; by default what the network was made for.

        Raises:
            FileNotFoundError: if a directory is not there.
            ValueError: if it is a pipeline of no known family, lacks a part, is damaged, has its weights in
                several variants only, or the resolution is not divisible by what its VAE and network need.
        """
        from safetensors import SafetensorError

        local = check_local(path, revision)
        without_broken_torchvision()
        from diffusers import DiffusionPipeline

        try:
            index: Any = DiffusionPipeline.load_config(str(path), revision=revision)
            kind = index.get("_class_name")
            check_installed(path, kind)
            if local and variant is None:
                variant = only_variant(Path(path) / PIPELINES[kind].network)
            pipe = DiffusionPipeline.from_pretrained(
                str(path),
                **{dtype_argument(): dtype},
                use_safetensors=True,
                variant=variant,
                revision=revision,
                **absent_parts(path, index),
                **PIPELINES[kind].load_arguments,
            )
        except UnsupportedPipeline:
            raise
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:160]
            if local:
                raise ValueError(
                    f"the pipeline {str(path)!r} cannot be loaded: a part is missing or damaged, or has no "
                    f"safetensors ({reason}). Save it anew with pipe.save_pretrained(path)."
                ) from error
            raise FileNotFoundError(
                f"no teacher {str(path)!r}: there is no such directory here, and no pipeline of that name "
                f"can be downloaded ({reason}). If it has its weights in a variant such as fp16 only, say "
                "variant: fp16."
            ) from error
        return cls.from_diffusers(pipe.to(device), resolution=resolution)

    def __repr__(self) -> str:
        height, width = self.resolution
        name = type(self.diffusers).__name__
        return f"Pipeline({name}, {height}x{width} pixels, latents {self.latent_shape}, {self.denoiser})"

    @property
    def scheduler(self) -> Any:
        """The diffusers scheduler."""
        return self.diffusers.scheduler

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return device_of(self.denoiser.module)

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) of the pictures in pixels."""
        pixels = _pixels(self.diffusers)
        return self.latent_shape[1] * pixels, self.latent_shape[2] * pixels

    def text_fingerprint(self) -> str:
        """A hex hash of the text encoders, however many there are; empty without any."""
        parts = self.diffusers.components.items()
        found = {n: fingerprint(p) for n, p in parts if _encodes_text(n) and p is not None}
        return blake2(f"{sorted(found.items())}").hex() if found else ""

    @property
    def vae(self) -> Any:
        """What turns latents into pictures: `other_vae` or the pipeline's own; None for pipelines without one."""
        return _vae(self.diffusers) if self.other_vae is None else self.other_vae

    def vae_fingerprint(self) -> str:
        """A hex hash of the VAE; empty without one."""
        return "" if self.vae is None else fingerprint(self.vae)

    def use_vae(self, path: str | Path) -> None:
        """Takes another VAE for the same latents in the place of the pipeline's own.

        Args:
            path: directory, or name on the Hub, of an autoencoder of diffusers.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if its latents are of another shape, or the pipeline has no VAE.
        """
        own = _vae(self.diffusers)
        if own is None:
            raise ValueError("this pipeline draws pixels and has no VAE; leave vae out.")
        other = frozen(load_vae(path, dtype_argument(), dtype_of(own)))
        mine, others = ((latent_channels(vae), pixels_a_latent(vae)) for vae in (own, other))
        if mine != others:
            raise ValueError(
                f"the VAE {str(path)!r} has {others[0]} channels and {others[1]} pixels a latent, and this "
                f"pipeline's {mine[0]} and {mine[1]}; take one that was made for this pipeline's latents."
            )
        self.other_vae = other.to(self.device)

    def to(self, device: torch.device | str, *, but: str = "") -> Pipeline:
        """Moves all to a device, but for the part `but`, and text encoders with `offload_text`; returns itself."""
        for name, part in self.diffusers.components.items():
            stays = name == but or (self.offload_text and _encodes_text(name))
            if isinstance(part, nn.Module) and not stays:
                part.to(device)
        if self.other_vae is not None:
            self.other_vae.to(device)
        return self

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Within the `with` block text encoders are on the pipeline's device: with `offload_text`, else always.

        `encode_prompt` does it for itself; around many calls of it they move once.
        """
        parts = [
            p for n, p in self.diffusers.components.items() if _encodes_text(n) and p is not None
        ]
        away = self.offload_text and any(device_of(part) != self.device for part in parts)
        for part in parts if away else ():
            part.to(self.device)
        try:
            yield
        finally:
            for part in parts if away else ():
                part.to("cpu")

    @torch.no_grad()
    def encode_prompt(self, prompts: str | Sequence[str]) -> Condition:
        """Encodes prompts, or one; sample i of the Condition is prompt i.

        Raises:
            ValueError: if they are no texts, or one holds words that the text encoder does not know.
        """
        texts = as_texts([prompts] if isinstance(prompts, str) else prompts)
        for text in texts:
            self.check_prompt(text)
        with self.encoding():
            return self.adapter.encode(self.diffusers, texts, self.resolution)

    @torch.no_grad()
    def null_condition(self, negative_prompt: str | None = None) -> Condition:
        """Guidance's unconditional side, of batch size one.

        Args:
            negative_prompt: what not to draw; None is the pipeline's own `negative_prompt`, and without that what
                diffusers takes by default, the empty prompt (or zeros, where an SDXL pipeline is set to that).
        """
        check_kind("negative_prompt", negative_prompt, str | None)
        negative = self.negative_prompt if negative_prompt is None else negative_prompt
        with self.encoding():
            return self.adapter.null(self.diffusers, negative, self.resolution)

    def guided(
        self,
        scale: float,
        negative_prompt: str | None = None,
        *,
        rescale: float | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> Denoiser:
        """The denoiser with classifier-free guidance; scale 1 is none. See `Guided`.

        A network that embeds guidance (Flux-dev) is given the scale instead, unless there is a negative prompt.
        `rescale` None is what the pipeline of diffusers does by default: Qwen-Image's and Lumina 2's draw the norm
        back, a token or a row at a time; others do nothing.
        """
        negative = self.negative_prompt if negative_prompt is None else negative_prompt
        if self.denoiser.adapter.embeds_guidance and negative is None:
            return EmbeddedGuidance(self.denoiser, scale)
        if scale == 1:
            return self.denoiser
        null = self.null_condition(negative)
        by = self.adapter.rescale_by
        if rescale is None:
            rescale = float(by is not None)
        by = by or "deviation"
        return Guided(self.denoiser, scale, null, rescale=rescale, rescale_by=by, interval=interval)

    def decode(self, latents: Tensor, batch_size: int = 64) -> Tensor:
        """Decodes latents `(B, C, H, W)` to images `(B, 3, 8H, 8W)` (or the VAE's factor; pixels, without one).

        Returns:
            float32, clamped to [-1, 1]; grey ones have three equal channels. Gradients flow where autograd is on.
        """
        _check_maps("latents", latents)
        if self.vae is None:
            images = latents.float().clamp(-1, 1)
        else:
            images = decode_latents(self.vae, latents.to(self.device), batch_size)
        return images.repeat(1, 3, 1, 1) if images.shape[1] == 1 else images

    @torch.no_grad()
    def encode_image(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Encodes images `(B, 3, H, W)` in [-1, 1] to scaled latents (the posterior's mean).

        Pipelines that draw grey are given the luma (ITU-R BT.601).
        """
        _check_maps("images", images)
        if _image_channels(self.diffusers, self.denoiser.adapter) == 1:
            luma = images.new_tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
            images = (images * luma).sum(1, keepdim=True)
        if self.vae is None:
            return images.float()
        return encode_images(self.vae, images.to(self.device), batch_size)


def as_texts(prompts: Sequence[str]) -> list[str]:
    """Prompts as a list, from a list, an array, or the column of a table.

    Raises:
        ValueError: if it is one text or none, or holds anything else.
    """
    values = np.asarray(prompts, dtype=object)
    if values.ndim != 1 or not len(values) or not all(isinstance(p, str) for p in values):
        raise ValueError(f"prompts is {prompts!r:.80}; give a list of at least one text.")
    return values.tolist()


def _check_maps(name: str, value: Tensor) -> None:
    check_tensor(name, value)
    if value.ndim != 4:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be (B, C, H, W).")


def _check_parts(pipe: Any, adapter: PipelineAdapter) -> None:
    """Refuses a pipeline without network or VAE, and one that keeps its weights elsewhere."""
    for name, part in pipe.components.items():
        if part is None and name in (adapter.network, "vae"):
            raise ValueError(
                f"this {type(pipe).__name__} has no {name}, and distillation needs it; load it with the pipeline."
            )
        if isinstance(part, nn.Module) and any(map(_is_offloaded, part.modules())):
            raise ValueError(
                f"the {name} of this {type(pipe).__name__} is offloaded, so its weights are not where they are "
                "used; load the pipeline without offloading, and move it with pipe.to(device)."
            )


def _is_offloaded(module: nn.Module) -> bool:
    """Whether hooks of Accelerate or diffusers bring a module's weights when it is called."""
    known = vars(module)
    hook, registry = known.get("_hf_hook"), known.get("_diffusers_hook")
    return (
        type(hook).__name__ == "CpuOffload"
        or bool(getattr(hook, "offload", False))
        or (registry is not None and registry.get_hook("group_offloading") is not None)
    )


def _encodes_text(name: str) -> bool:
    """Whether a pipeline's part of this name is a text encoder."""
    return name.startswith("text_encoder")


def _vae(pipe: Any) -> Any:
    return pipe.components.get("vae")


def _image_channels(pipe: Any, adapter: Adapter) -> int:
    return adapter.channels() if _vae(pipe) is None else image_channels(pipe.vae)


def _pixels(pipe: Any) -> int:
    return 1 if _vae(pipe) is None else pixels_a_latent(pipe.vae)


def _latent_shape(
    pipe: Any, adapter: Adapter, resolution: tuple[int, int] | None
) -> tuple[int, int, int]:
    if resolution is None:
        return adapter.latent_shape()
    pixels = _pixels(pipe)
    step = pixels * adapter.multiple
    if any(side < step or side % step for side in resolution):
        raise ValueError(
            f"resolution is {resolution[0]}x{resolution[1]}; height and width must be divisible by {step} "
            f"(the VAE's {pixels} times the network's {adapter.multiple})."
        )
    return adapter.channels(), resolution[0] // pixels, resolution[1] // pixels


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
