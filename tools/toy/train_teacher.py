"""Trains the toy's UNet and text encoder together, from scratch, on cached latents.

    loss = || v_theta(x_t, t, c) - v ||^2,  x_t = alpha_t x0 + sigma_t eps,  v = alpha_t eps - sigma_t x0

with zero terminal SNR (Lin et al. 2023), so that one step from pure noise is well defined. t follows a
logit-normal law (mean -0.3, deviation 1) in 80% of the cases and a uniform one in the rest; a tenth of the
captions is dropped for classifier-free guidance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import CLIPTextModel

from nitrodistill.prediction import prediction_target
from nitrodistill.schedules import DiscreteSchedule
from nitrodistill.toy import scenes
from tools.toy.loop import LoopConfig, build, fit, rank_and_size, seeded
from tools.toy.text import TEXT_WIDTH, make_text_encoder, make_tokenizer, tokenize
from tools.toy.train_vae import encode, random_scenes

NUM_TIMESTEPS = 1000
LAW_MEAN, LAW_STD, LAW_UNIFORM = -0.3, 1.0, 0.2
CAPTION_DROPOUT = 0.1


def make_scheduler() -> DDIMScheduler:
    """Returns the teacher's sampler: zero terminal SNR, trailing timesteps, v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        steps_offset=1,
        clip_sample=False,
    )


def make_unet() -> UNet2DConditionModel:
    """Returns an untrained UNet (2,220,820 parameters) on 4x8x8 latents."""
    unet = UNet2DConditionModel.from_config(
        {
            "sample_size": scenes.IMAGE_SIZE // scenes.GRID,
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "block_out_channels": (48, 96),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": TEXT_WIDTH,
            "attention_head_dim": 4,
            "norm_num_groups": 16,
        }
    )
    assert isinstance(unet, UNet2DConditionModel)
    return unet


class Teacher(nn.Module):
    """The two networks that are trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder: CLIPTextModel = make_text_encoder(make_tokenizer())
        self.unet: UNet2DConditionModel = make_unet()

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Returns v `(B, 4, 8, 8)` for latents `(B, 4, 8, 8)`, timesteps `(B,)` and token ids `(B, 12)`."""
        return self.unet(x_t, t, self.text_encoder(tokens)[0], return_dict=False)[0]


@dataclass(frozen=True)
class Latents:
    """A pool of scaled latents `(N, 4, 8, 8)` with the token ids `(N, 12)` of their captions."""

    x0: Tensor
    tokens: Tensor
    no_tokens: Tensor
    schedule: DiscreteSchedule

    def loss(self, teacher: Teacher, batch_size: int, generator: torch.Generator) -> Tensor:
        """Mean squared error of v on a random batch of the pool."""
        pick, dropped, t, x0, eps = draw_batch(self.x0, batch_size, generator)
        scales = self.schedule(t)
        tokens = torch.where(dropped, self.no_tokens, self.tokens[pick])
        target = prediction_target(x0, eps, scales, "v_prediction")
        return mse_loss(teacher(scales.mix(x0, eps), t, tokens), target)


def draw_batch(
    pool: Tensor, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draws a batch of a pool of latents.

    Returns:
        the samples' numbers `(B,)`, which of them lose their captions `(B, 1)`, timesteps `(B,)`, x0 and eps.
    """
    device = pool.device
    pick = torch.randint(len(pool), (batch_size,), generator=generator).to(device)
    dropped = (torch.rand(batch_size, 1, generator=generator) < CAPTION_DROPOUT).to(device)
    t = random_timesteps(batch_size, generator).to(device)
    x0 = pool[pick]
    return pick, dropped, t, x0, torch.randn(x0.shape, generator=generator).to(device)


def random_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Draws timesteps `(count,)`, int64, 0 to 999: logit-normal, one in five uniform."""
    normal = (LAW_MEAN + LAW_STD * torch.randn(count, generator=generator)).sigmoid()
    uniform = torch.rand(count, generator=generator)
    u = torch.where(torch.rand(count, generator=generator) < LAW_UNIFORM, uniform, normal)
    return (u * NUM_TIMESTEPS).long().clamp(max=NUM_TIMESTEPS - 1)


def train_teacher(
    config: LoopConfig, vae: AutoencoderKL, folder: Path, device: torch.device, pool: int = 65_536
) -> Teacher:
    """Trains UNet and text encoder on `pool` latents for each process; resumes from `folder`."""
    teacher = build(Teacher, config.seed, "teacher", device=device)
    return fit(teacher, make_latents(vae, pool, config.seed).loss, config, folder)


def captioned_latents(vae: AutoencoderKL, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Returns latents `(count, 4, 8, 8)` of random scenes, each process's own, and their captions."""
    indices, images = random_scenes(count, seeded(seed, "pool", rank_and_size()[0]), vae.device)
    names = [
        scenes.Attributes(
            *(values[i] for values, i in zip(scenes.ATTRIBUTE_VALUES, row, strict=True))
        )
        for row in indices.tolist()
    ]
    return encode(vae, images), [name.caption() for name in names]


def make_latents(vae: AutoencoderKL, count: int, seed: int) -> Latents:
    """Renders and encodes `count` scenes; each process of a run gets its own."""
    tokenizer = make_tokenizer()
    x0, captions = captioned_latents(vae, count, seed)
    tokens = tokenize(tokenizer, captions)
    return Latents(
        x0=x0,
        tokens=tokens.to(vae.device),
        no_tokens=tokenize(tokenizer, [""]).to(vae.device),
        schedule=DiscreteSchedule.from_scheduler(make_scheduler()),
    )
