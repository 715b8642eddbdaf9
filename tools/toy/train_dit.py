"""Trains the toy's second teacher, a small PixArt: a diffusion transformer and a T5 encoder, on the same latents.

    loss = || eps_theta(x_t, t, c) - eps ||^2,  x_t = alpha_t x0 + sigma_t eps

The noise schedule is PixArt's (linear betas, 1e-4 to 0.02), which does not end at zero SNR, and so is the
network's output: epsilon and, in a second half of the channels, a variance. No loss is put on the variance,
because the samplers of PixArt's pipelines drop it. Text goes in with its mask. Timesteps and the share of
dropped captions are the UNet's (`train_teacher`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import CLIPTokenizer, T5Config, T5EncoderModel

from nitrodistill.schedules import DiscreteSchedule
from nitrodistill.toy import scenes
from tools.toy.loop import LoopConfig, build, fit
from tools.toy.text import END, MAX_TOKENS, TEXT_WIDTH, make_tokenizer
from tools.toy.train_teacher import captioned_latents, draw_batch

LATENT_CHANNELS = 4


def make_dit_scheduler() -> DPMSolverMultistepScheduler:
    """Returns PixArt-Sigma's own sampler: DPM-Solver++ of second order on 1000 linear betas."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_order=2,
    )


def make_dit() -> PixArtTransformer2DModel:
    """Returns an untrained transformer (856,736 parameters) on 4x8x8 latents, in 16 tokens of 2x2."""
    transformer = PixArtTransformer2DModel.from_config(
        {
            "sample_size": scenes.IMAGE_SIZE // scenes.GRID,
            "patch_size": 2,
            "in_channels": LATENT_CHANNELS,
            "out_channels": 2 * LATENT_CHANNELS,
            "num_layers": 5,
            "num_attention_heads": 4,
            "attention_head_dim": 24,
            "cross_attention_dim": 96,
            "caption_channels": TEXT_WIDTH,
            "use_additional_conditions": False,
        }
    )
    assert isinstance(transformer, PixArtTransformer2DModel)
    return transformer


def make_t5(tokenizer: CLIPTokenizer) -> T5EncoderModel:
    """Returns an untrained T5 encoder (two layers of width 64) for the tokenizer's vocabulary."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=TEXT_WIDTH // 4,
            d_ff=2 * TEXT_WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.get_vocab()[END],
            eos_token_id=tokenizer.get_vocab()[END],
        )
    )


def tokenize_with_mask(tokenizer: CLIPTokenizer, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Returns token ids and mask, each `(B, 12)`, int64, padded as `PixArtSigmaPipeline` pads them."""
    encoded = tokenizer(
        prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    return torch.as_tensor(encoded["input_ids"]), torch.as_tensor(encoded["attention_mask"])


class DiTTeacher(nn.Module):
    """The two networks that are trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder: T5EncoderModel = make_t5(make_tokenizer())
        self.transformer: PixArtTransformer2DModel = make_dit()

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns epsilon `(B, 4, 8, 8)` for latents, timesteps `(B,)`, token ids and mask `(B, 12)`."""
        text = self.text_encoder(tokens, attention_mask=mask)[0]
        out = self.transformer(
            x_t,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=t,
            added_cond_kwargs={},
            return_dict=False,
        )[0]
        return out[:, :LATENT_CHANNELS]


@dataclass(frozen=True)
class MaskedLatents:
    """A pool of scaled latents `(N, 4, 8, 8)` with token ids and masks `(N, 12)` of their captions.

    `no_text` holds ids and mask of the empty caption, each `(1, 12)`.
    """

    x0: Tensor
    tokens: Tensor
    mask: Tensor
    no_text: tuple[Tensor, Tensor]
    schedule: DiscreteSchedule

    def loss(self, teacher: DiTTeacher, batch_size: int, generator: torch.Generator) -> Tensor:
        """Mean squared error of epsilon on a random batch of the pool."""
        pick, dropped, t, x0, eps = draw_batch(self.x0, batch_size, generator)
        tokens = torch.where(dropped, self.no_text[0], self.tokens[pick])
        mask = torch.where(dropped, self.no_text[1], self.mask[pick])
        return mse_loss(teacher(self.schedule(t).mix(x0, eps), t, tokens, mask), eps)


def train_dit(
    config: LoopConfig, vae: AutoencoderKL, folder: Path, device: torch.device, pool: int = 65_536
) -> DiTTeacher:
    """Trains transformer and text encoder on `pool` latents for each process; resumes from `folder`."""
    teacher = build(DiTTeacher, config.seed, "dit", device=device)
    return fit(teacher, make_masked_latents(vae, pool, config.seed).loss, config, folder)


def make_masked_latents(vae: AutoencoderKL, count: int, seed: int) -> MaskedLatents:
    """Renders and encodes `count` scenes; each process of a run gets its own."""
    x0, captions = captioned_latents(vae, count, seed)
    tokenizer = make_tokenizer()
    tokens, mask = tokenize_with_mask(tokenizer, captions)
    no_tokens, no_mask = tokenize_with_mask(tokenizer, [""])
    return MaskedLatents(
        x0=x0,
        tokens=tokens.to(vae.device),
        mask=mask.to(vae.device),
        no_text=(no_tokens.to(vae.device), no_mask.to(vae.device)),
        schedule=DiscreteSchedule.from_scheduler(make_dit_scheduler()),
    )
