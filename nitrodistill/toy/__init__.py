"""The embedded teachers: whole text-conditioned latent diffusion pipelines that ship with the package.

32x32 scenes with captions (`scenes`), an autoencoder, a CLIP text encoder with its tokenizer and a UNet, all
of them diffusers' and transformers' own classes, 2.5 million parameters, and an oracle that reads the pictures.
Beside it a small PixArt (transformer and T5 encoder, 0.95 million parameters) on the same autoencoder.
In the repository, `python -m tools.toy.train` makes the weights from scratch.
"""

from __future__ import annotations

from nitrodistill.toy import scenes
from nitrodistill.toy.oracle import Oracle, load_oracle, oracle_maps
from nitrodistill.toy.pipeline import (
    GUIDANCE_SCALE,
    NUM_INFERENCE_STEPS,
    load_dit_pipeline,
    load_pipeline,
    load_student_pipeline,
    save_pipeline,
)
from nitrodistill.toy.scenes import Attributes, check_prompt

__all__ = [
    "GUIDANCE_SCALE",
    "NUM_INFERENCE_STEPS",
    "Attributes",
    "Oracle",
    "check_prompt",
    "load_dit_pipeline",
    "load_oracle",
    "load_pipeline",
    "load_student_pipeline",
    "oracle_maps",
    "save_pipeline",
    "scenes",
]
