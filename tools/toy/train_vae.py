"""Trains the toy's autoencoder: 32x32 pictures to 4x8x8 latents.

    loss = L1 + 2 MSE + L1 of the image gradients + 1e-3 KL,  z = mean + 0.05 n,  n ~ N(0, I)

Encoder and decoder are trained together: freezing an encoder early loses the small shapes for good. The
posterior has a fixed deviation of 0.05. After training, a channel-wise affine map is folded into `quant_conv`
and its inverse into `post_quant_conv`, so that every latent channel has zero mean and the deviation
1 / scaling_factor; pictures are unchanged by this.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from nitrodistill.toy import scenes
from tools.toy.loop import LoopConfig, build, fit, seeded

LATENT_NOISE = 0.05
KL_WEIGHT = 1e-3


def make_vae() -> AutoencoderKL:
    """Returns an untrained autoencoder (224,835 parameters)."""
    vae = AutoencoderKL.from_config(
        {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "block_out_channels": (12, 32, 32),
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "mid_block_add_attention": False,
            "sample_size": scenes.IMAGE_SIZE,
        }
    )
    assert isinstance(vae, AutoencoderKL)
    return vae


def train_vae(config: LoopConfig, folder: Path, device: torch.device) -> AutoencoderKL:
    """Trains the autoencoder and normalises its latents; resumes from `folder`."""
    vae = build(make_vae, config.seed, "vae", device=device)
    vae = fit(vae, _loss, config, folder)
    return normalise_latents(vae, config.seed)


def _loss(vae: AutoencoderKL, batch_size: int, generator: torch.Generator) -> Tensor:
    images = random_scenes(batch_size, generator, vae.device)[1]
    mean = vae.encode(images, return_dict=False)[0].mean
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    error = decode_raw(vae, mean + LATENT_NOISE * noise) - images
    across, down = error.diff(dim=-1).abs().mean(), error.diff(dim=-2).abs().mean()
    divergence = 0.5 * mean.square().mean()  # up to a constant: the deviation is fixed
    return error.abs().mean() + 2 * error.square().mean() + across + down + KL_WEIGHT * divergence


def random_scenes(
    count: int, generator: torch.Generator, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Returns attribute indices `(count, 4)` on the CPU and their renders `(count, 3, 32, 32)` on the device."""
    every = scenes.attribute_indices(scenes.captions())
    indices = every[torch.randint(len(every), (count,), generator=generator)]
    return indices, scenes.render(indices, generator, device)


def decode_raw(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Unscaled latents `(B, 4, 8, 8)` to images `(B, 3, 32, 32)`, not clamped."""
    # diffusers declares FloatTensor and takes any Tensor.
    return vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch_size: int = 256) -> Tensor:
    """Returns scaled latent means `(N, 4, 8, 8)` of images `(N, 3, 32, 32)`: what the UNet is trained on."""
    parts = [vae.encode(part, return_dict=False)[0].mean for part in images.split(batch_size)]
    return torch.cat(parts) * vae.config["scaling_factor"]


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, seed: int, count: int = 4096) -> AutoencoderKL:
    """Folds the latents' channel means and relative deviations into the 1x1 convolutions beside them."""
    vae.register_to_config(scaling_factor=1.0)
    latents = encode(vae, random_scenes(count, seeded(seed, "statistics"), vae.device)[1])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    overall = deviation.square().mean().sqrt()
    gain = overall / deviation
    before, after = vae.quant_conv, vae.post_quant_conv
    assert before is not None
    assert before.bias is not None
    assert after is not None
    assert after.bias is not None
    half = len(mean)
    before.weight[:half] *= gain[:, None, None, None]
    before.bias[:half] = (before.bias[:half] - mean) * gain
    before.weight[half:] = 0
    before.bias[half:] = 2 * (LATENT_NOISE * gain).log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight /= gain[None, :, None, None]
    vae.register_to_config(scaling_factor=round(1 / overall.item(), 4))
    return vae


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal to noise ratio in dB of images in [-1, 1]."""
    return 10 * math.log10(4 / (first - second).square().mean().item())
