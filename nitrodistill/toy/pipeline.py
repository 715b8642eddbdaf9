"""The embedded teachers as ordinary diffusers pipelines: a small Stable Diffusion, and a small PixArt.

The second shares autoencoder and tokenizer with the first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitrodistill.files import complete_folder
from nitrodistill.models.pipeline import fingerprint, without_broken_torchvision
from nitrodistill.toy.manifest import DIT_WEIGHTS, STUDENT_WEIGHTS, WEIGHTS, verify

if TYPE_CHECKING:
    from diffusers import PixArtSigmaPipeline, StableDiffusionPipeline

AUTOENCODER = "autoencoder.json"
"""In a folder of weights without an autoencoder: the fingerprint of the one that they belong to."""

GUIDANCE_SCALE = 3.0
NUM_INFERENCE_STEPS = 25


def load_pipeline(path: str | Path | None = None) -> StableDiffusionPipeline:
    """Loads the embedded teacher in float32, on the CPU, without a network.

    It draws best with `num_inference_steps=25, guidance_scale=3.0`, 32x32 pixels, prompts as in `scenes.captions`.

    Args:
        path: a folder that the repository's `python -m tools.toy.train` wrote; by default the one in the package.

    Raises:
        FileNotFoundError: if the folder holds no weights.
        ValueError: if a file is damaged.

    Example:
        >>> type(nd.toy.load_pipeline()).__name__
        'StableDiffusionPipeline'
    """
    without_broken_torchvision()
    from diffusers import StableDiffusionPipeline

    root = WEIGHTS if path is None else Path(path)
    verify(root)
    pipeline = StableDiffusionPipeline.from_pretrained(
        root, local_files_only=True, safety_checker=None, use_safetensors=True
    )
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.float()  # stored in fp16; each library has its own default for what it loads
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_student_pipeline() -> StableDiffusionPipeline:
    """The embedded teacher with the UNet of a student that draws in one step, in float32 on the CPU.

    It was distilled from that teacher by the recipe dmd2-toy-gan; in the repository, `python -m tools.toy.student`
    ships it and writes what it is measured to be. It draws with `num_inference_steps=1, guidance_scale=0`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged.

    Example:
        >>> from nitrodistill import toy
        >>> toy.load_student_pipeline().unet.config.in_channels
        4
    """
    verify(STUDENT_WEIGHTS)
    pipeline = load_pipeline()
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(STUDENT_WEIGHTS, local_files_only=True)
    pipeline.unet = unet.float().eval()  # pyright: ignore[reportAttributeAccessIssue]
    return pipeline


def load_dit_pipeline() -> PixArtSigmaPipeline:
    """Loads the embedded transformer teacher in float32, on the CPU, without a network.

    It draws best with `num_inference_steps=25, guidance_scale=3.0`, 32x32 pixels (and
    `use_resolution_binning=False`, because PixArt's list of sizes has none so small), prompts as in
    `scenes.captions`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or the autoencoder is not the one that it was trained on.

    Example:
        >>> type(nd.toy.load_dit_pipeline()).__name__
        'PixArtSigmaPipeline'
    """
    without_broken_torchvision()
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )
    from transformers import CLIPTokenizer, T5EncoderModel

    verify(WEIGHTS)
    verify(DIT_WEIGHTS)
    vae = AutoencoderKL.from_pretrained(WEIGHTS, subfolder="vae", local_files_only=True).float()
    if json.loads((DIT_WEIGHTS / AUTOENCODER).read_text())["fingerprint"] != fingerprint(vae):
        raise ValueError(
            f"the transformer in {DIT_WEIGHTS} was trained on another autoencoder than the one in {WEIGHTS}; "
            "reinstall nitrodistill, or train both in its repository: `python -m tools.toy.train --network dit`"
        )
    parts = {
        "transformer": PixArtTransformer2DModel.from_pretrained(
            DIT_WEIGHTS, subfolder="transformer", local_files_only=True
        ),
        "text_encoder": T5EncoderModel.from_pretrained(
            DIT_WEIGHTS / "text_encoder", local_files_only=True
        ),
    }
    scheduler: Any = DPMSolverMultistepScheduler.from_pretrained(DIT_WEIGHTS / "scheduler")
    pipeline = PixArtSigmaPipeline(
        vae=vae,
        tokenizer=CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer", local_files_only=True),
        scheduler=scheduler,
        **{name: part.float().eval() for name, part in parts.items()},
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(path: str | Path) -> Path:
    """Writes the embedded teacher as a diffusers folder, for tools that take a path; returns that path.

    Raises:
        FileExistsError: if the folder exists and holds anything.

    Example:
        >>> nd.toy.save_pipeline("toy").name
        'toy'
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"{target} exists and is not an empty folder; choose another place for the pipeline"
        )
    load_pipeline().save_pretrained(target, safe_serialization=True)
    complete_folder(target)
    return target
