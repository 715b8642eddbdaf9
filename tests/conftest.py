"""Small real parts that several tests share. One thread: the suite runs in several processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from nitrodistill.data import GenerateConfig, generate
from nitrodistill.models import DiffusersDenoiser, Pipeline
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


PLACE_PROMPTS = [
    "a small red circle on a black background",
    "a large blue ring on a gray background",
]


class Place(NamedTuple):
    """What a user has before training."""

    root: Path
    teacher: Path
    prompts: Path
    pairs: Path
    recipe: Path


@pytest.fixture(scope="session")
def place_made(tiny_diffusers: Any, tiny_scheduler: Any, tmp_path_factory: Any) -> Path:
    """A teacher on the disk and pairs of it, small enough for every test."""
    root = tmp_path_factory.mktemp("place")
    pipe = tiny_diffusers(tiny_scheduler)
    pipe.save_pretrained(root / "teacher")
    config = GenerateConfig(num_pairs=4, num_inference_steps=2, guidance=2.0)
    teacher = Pipeline.from_diffusers(pipe)
    generate(teacher, PLACE_PROMPTS, root / "pairs", config, teacher_name="tiny", progress=False)
    return root


@pytest.fixture
def place(place_made: Path, tmp_path: Path) -> Place:
    """And a recipe for them."""
    prompts, recipe = tmp_path / "prompts.txt", tmp_path / "recipe.yaml"
    prompts.write_text("\n".join(PLACE_PROMPTS))
    optimizer = {"learning_rate": 1e-3}
    stage = {
        "method": "ladd",
        "settings": {"adversarial": "hinge", "updates": "shared"},
        "trainer": {
            "steps": 2,
            "batch_size": 2,
            "optimizers": {
                "student": {**optimizer, "ema_decay": 0.999},
                "discriminator": optimizer,
            },
        },
    }
    data = {
        "teacher": str(place_made / "teacher"),
        "pairs": str(place_made / "pairs"),
        "output": str(tmp_path / "run"),
        "stages": [stage],
    }
    recipe.write_text(yaml.safe_dump(data))
    return Place(tmp_path, place_made / "teacher", prompts, place_made / "pairs", recipe)


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
