"""Teachers by name: the embedded one, a directory, or a name on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from nitrodistill.checks import check_choice, check_kind
from nitrodistill.models.pipeline import Pipeline
from nitrodistill.models.skeleton import skeleton

WeightsDtype = Literal["bfloat16", "float16", "float32"]

EMBEDDED = ("toy", "toy-dit")
"""The teachers that ship with the package."""


@dataclass(frozen=True)
class TeacherSettings:
    """How a teacher is loaded, and what it draws with.

    Attributes:
        weights_dtype: of all its weights; students are trained in float32 whatever it is.
        variant: of the files of its weights, such as fp16; null takes those without one.
        revision: branch, tag or commit of a teacher on the Hub.
        resolution: of its pictures in pixels, a number or [height, width]; null is what its network was made for.
        negative_prompt: what its guidance leads away from; null is what diffusers takes, mostly the empty prompt.
        vae: directory, or name on the Hub, of another VAE for the same latents, such as an AutoencoderTiny, which
            makes pictures of them (previews, evaluation, losses on pictures), and latents of pictures in encode.
        offload_text: text encoders wait on the CPU while no prompt is encoded.
    """

    weights_dtype: WeightsDtype = "float32"
    variant: str | None = None
    revision: str | None = None
    resolution: int | tuple[int, int] | None = None
    negative_prompt: str | None = None
    vae: str | None = None
    offload_text: bool = False

    def __post_init__(self) -> None:
        check_choice("weights_dtype", self.weights_dtype, get_args(WeightsDtype))
        for name in ("variant", "revision", "negative_prompt", "vae"):
            check_kind(name, getattr(self, name), str | None)
        check_kind("resolution", self.resolution, int | tuple[int, int] | None)
        check_kind("offload_text", self.offload_text, bool)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width), or None."""
        side = self.resolution
        return (side, side) if isinstance(side, int) else side


def load_teacher(name: str, settings: TeacherSettings | None = None) -> Pipeline:
    """Loads a teacher on the CPU.

    Args:
        name: "toy" is the teacher that ships with the package, a small Stable Diffusion, and "toy-dit" its
            sibling, a small PixArt; else a directory with a diffusers pipeline (write `./toy` for a
            directory of that name), or a name on the Hub.
        settings: how; by default in float32, as its folder says.

    Raises:
        FileNotFoundError: if there is no such directory, or no such VAE.
        ValueError: if it is no diffusers pipeline, or a setting does not fit it.
        TypeError: if it is one that is not supported.

    Example:
        >>> nd.load_teacher("toy").resolution
        (32, 32)
    """
    _quiet()
    given = settings or TeacherSettings()
    dtype: torch.dtype = getattr(torch, given.weights_dtype)
    if name not in EMBEDDED:
        pipeline = Pipeline.load(
            name, dtype=dtype, variant=given.variant, revision=given.revision, resolution=given.size
        )
    else:
        from nitrodistill import toy

        if given.variant or given.revision:
            raise ValueError(f"{name!r} ships in one version; leave variant and revision out.")
        pipe: Any = toy.load_pipeline() if name == "toy" else toy.load_dit_pipeline()
        _cast(pipe, dtype)
        pipeline = Pipeline.from_diffusers(
            pipe, check_prompt=toy.check_prompt, resolution=given.size
        )
    if given.negative_prompt is not None:
        pipeline.check_prompt(given.negative_prompt)
    return _set_up(pipeline, given)


def teacher_shapes(name: str, settings: TeacherSettings | None = None) -> Pipeline:
    """A teacher of which the shapes are enough: an embedded one as it is, another from its configs alone.

    Raises:
        FileNotFoundError, ValueError: as `skeleton`.
    """
    given = settings or TeacherSettings()
    if name in EMBEDDED:
        return load_teacher(name, given)
    pipeline = skeleton(name, resolution=given.size, revision=given.revision)
    _cast(pipeline.diffusers, getattr(torch, given.weights_dtype))
    return _set_up(pipeline, given)


def _set_up(pipeline: Pipeline, settings: TeacherSettings) -> Pipeline:
    """What a pipeline takes once it is there."""
    pipeline.negative_prompt = settings.negative_prompt
    pipeline.offload_text = settings.offload_text
    if settings.vae is not None:
        pipeline.use_vae(settings.vae)
    return pipeline


def _cast(pipe: Any, dtype: torch.dtype) -> None:
    """Casts a pipeline's weights; diffusers' own `to` warns of that."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, dtype)


def _quiet() -> None:
    """Switches off the bars that diffusers and transformers draw while they load parts."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
