"""What the toy reports of itself after training: oracle, autoencoder and teacher, with floors.

The Fréchet distance is on the oracle's 64 features. Its floor is that of two independent sets of renders of the
same size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline, StableDiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from nitrodistill.evaluation.frechet import GaussianStatistics, frechet_distance
from nitrodistill.evaluation.sharpness import gradient_magnitude
from nitrodistill.toy import scenes
from nitrodistill.toy.oracle import Oracle
from nitrodistill.toy.pipeline import GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from tools.toy.loop import seeded
from tools.toy.text import MAX_TOKENS
from tools.toy.train_vae import decode_raw, encode, psnr

EDGE_QUANTILE = 0.98


def random_captions(count: int, generator: torch.Generator) -> list[str]:
    """Draws `count` captions, with repetition."""
    every = scenes.captions()
    return [every[i] for i in torch.randint(len(every), (count,), generator=generator).tolist()]


def edge(images: Tensor) -> float:
    """Mean over images `(B, 3, H, W)` of the 98th percentile of the gradient's magnitude, interpolated."""
    magnitude = gradient_magnitude(images).flatten(1)
    return magnitude.quantile(EDGE_QUANTILE, dim=1).mean().item()


def oracle_features(oracle: Oracle, images: Tensor) -> Tensor:
    """Features `(B, 64)`, in batches of 512."""
    return torch.cat([oracle.features(part) for part in images.split(512)])


def joint_alignment(oracle: Oracle, images: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Fraction of images that show their caption: `joint` and by attribute."""
    found = oracle.alignment(images, captions)
    found = {"joint": torch.stack(list(found.values())).all(0), **found}
    return {name: right.double().mean().item() for name, right in found.items()}


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scaled latents `(N, 4, 8, 8)` to images `(N, 3, 32, 32)` in [-1, 1], clamped as a pipeline does."""
    parts = (latents / vae.config["scaling_factor"]).split(256)
    return torch.cat([decode_raw(vae, part) for part in parts]).clamp(-1, 1)


@torch.no_grad()
def draw_images(
    pipeline: StableDiffusionPipeline | PixArtSigmaPipeline,
    prompts: Sequence[str],
    generator: torch.Generator,
    batch_size: int = 64,
) -> Tensor:
    """Draws images `(N, 3, 32, 32)` in [-1, 1] with the teacher's own settings."""
    images = []
    # PixArt's pipeline would round 32x32 to one of its own sizes, pad to 300 tokens, and look for the libraries
    # that clean captions.
    settings: dict[str, Any] = {}
    if isinstance(pipeline, PixArtSigmaPipeline):
        settings = {
            "use_resolution_binning": False,
            "max_sequence_length": MAX_TOKENS,
            "clean_caption": False,
        }
    for start in tqdm(range(0, len(prompts), batch_size), "sampling", mininterval=5.0):
        output = pipeline(
            list(prompts[start : start + batch_size]),
            height=scenes.IMAGE_SIZE,
            width=scenes.IMAGE_SIZE,
            num_inference_steps=NUM_INFERENCE_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=generator,
            output_type="pt",
            return_dict=False,
            **settings,
        )
        images.append(torch.as_tensor(output[0]).float().cpu() * 2 - 1)
    return torch.cat(images)


def measure_teacher(
    pipeline: StableDiffusionPipeline | PixArtSigmaPipeline,
    oracle: Oracle,
    seed: int = 0,
    count: int = 2048,
) -> dict[str, dict[str, float]]:
    """Measures oracle, autoencoder and teacher on `count` scenes that no stage was trained on.

    Returns:
        `{"oracle": ..., "vae": ..., "teacher": ...}`: accuracies and alignments as fractions, PSNR in dB, Fréchet
        distances to real renders with the floor beside them, edges as a ratio to the renders'.
    """
    generator = seeded(seed, "measure")
    prompts = random_captions(count, generator)
    real, other = (scenes.render(prompts, generator) for _ in range(2))
    decoded = decode(pipeline.vae, encode(pipeline.vae, real))
    drawn = draw_images(pipeline, prompts, generator)
    reference = GaussianStatistics.of(oracle_features(oracle, other))

    def report(images: Tensor) -> dict[str, float]:
        return {
            **joint_alignment(oracle, images, prompts),
            "frechet_distance": frechet_distance(
                GaussianStatistics.of(oracle_features(oracle, images)), reference
            ),
            "edge_ratio": edge(images) / edge(other),
        }

    return {
        "oracle": report(real),
        "vae": {"psnr_db": psnr(decoded, real), **report(decoded)},
        "teacher": report(drawn),
    }
