"""Small real parts that several tests share. One thread: the suite runs in several processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nitrodistill.models import DiffusersDenoiser
from nitrodistill.schedules import DiscreteSchedule, ZeroTerminalSNR
from nitrodistill.types import Condition

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def tiny_scheduler() -> Any:
    """DDIM, v-prediction, Stable Diffusion's betas at zero terminal SNR."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
    )
    return ZeroTerminalSNR()(scheduler)


@pytest.fixture
def tiny_denoiser(tiny_scheduler: Any) -> DiffusersDenoiser:
    """A random UNet of Stable Diffusion's kind with 2 levels, on 4x8x8 latents, width 16 text."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=4,
        )
    schedule = DiscreteSchedule.from_scheduler(tiny_scheduler)
    return DiffusersDenoiser(unet.eval(), schedule, "v_prediction")


@pytest.fixture
def tiny_condition(generator: torch.Generator) -> Condition:
    """Three samples of five tokens."""
    return Condition({"encoder_hidden_states": torch.randn(3, 5, 16, generator=generator)})


@pytest.fixture(scope="session")
def tiny_diffusers() -> Callable[[Any], Any]:
    """`tiny_diffusers(scheduler)`: a whole StableDiffusionPipeline of random weights, 16x16 pixels."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from tools.toy.text import MAX_TOKENS, make_tokenizer

    tokenizer = make_tokenizer()

    def make(scheduler: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            unet = UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(8, 16),
                layers_per_block=1,
                norm_num_groups=4,
                attention_head_dim=2,
                cross_attention_dim=16,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            )
            vae = AutoencoderKL(
                block_out_channels=(4, 8),
                norm_num_groups=4,
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4,
                sample_size=16,
            )
            text_encoder = CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=16,
                    intermediate_size=32,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    max_position_embeddings=MAX_TOKENS,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            )
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


_run = subprocess.run


def run_here(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
    """Runs the script of the fresh process in this one."""
    if command[:2] != [sys.executable, "-c"]:
        return _run(command, **settings)
    script, *arguments = command[2:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", *arguments])
        exec(script, {"__name__": "__main__"})
    return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test of exports starts no process: a fresh one costs seconds."""
    from nitrodistill.export import self_test as testing

    monkeypatch.setattr(testing.subprocess, "run", run_here)
