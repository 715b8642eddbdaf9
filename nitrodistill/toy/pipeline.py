"""The embedded teacher as an ordinary diffusers pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nitrodistill.models.pipeline import without_broken_torchvision
from nitrodistill.toy.manifest import WEIGHTS, verify

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

GUIDANCE_SCALE = 3.0
NUM_INFERENCE_STEPS = 25


def load_pipeline(path: str | Path | None = None) -> StableDiffusionPipeline:
    """Loads the embedded teacher in float32, on the CPU, without a network.

    It draws best with `num_inference_steps=25, guidance_scale=3.0`, 32x32 pixels, prompts as in `scenes.captions`.

    Args:
        path: a folder that `python -m nitrodistill.toy.train` wrote; by default the one in the package.

    Raises:
        FileNotFoundError: if the folder holds no weights.
        ValueError: if a file is damaged.
    """
    without_broken_torchvision()
    from diffusers import StableDiffusionPipeline

    root = WEIGHTS if path is None else Path(path)
    verify(root)
    pipeline = StableDiffusionPipeline.from_pretrained(
        root,
        local_files_only=True,
        safety_checker=None,
        use_safetensors=True,
    )
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.float()  # stored in fp16; each library has its own default for what it loads
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(path: str | Path) -> Path:
    """Writes the embedded teacher as a diffusers folder, for tools that take a path; returns that path.

    Raises:
        FileExistsError: if the folder exists and holds anything.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"{target} exists and is not an empty folder; choose another place for the pipeline"
        )
    load_pipeline().save_pretrained(target, safe_serialization=True)
    return target
