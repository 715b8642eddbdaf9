"""LADD's recipes for larger teachers, built at their true size on the meta device, and counted on tiny ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nitrodistill.discriminator import LatentDiscriminator
from nitrodistill.method import Cast
from nitrodistill.methods import LADD
from nitrodistill.models import DiffusersDenoiser, Pipeline, add_lora
from nitrodistill.models.noise import noise_of
from nitrodistill.timesteps import Histogram
from nitrodistill.training.config import check_optimizers
from nitrodistill.training.estimate import estimate
from nitrodistill.training.recipe import load_recipe
from tests.pipelines import make_pipeline

RECIPES = Path(__file__).parent.parent / "nitrodistill" / "recipes"


def sd3() -> tuple[Any, Any]:
    """Stable Diffusion 3 medium."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    network = SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=192,
    )
    return network, partial(FlowMatchEulerDiscreteScheduler, shift=3.0)


def flux() -> tuple[Any, Any]:
    """Flux.1 dev: diffusers' defaults, with embedded guidance."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    network = FluxTransformer2DModel(guidance_embeds=True)
    return network, partial(FlowMatchEulerDiscreteScheduler, shift=3.0)


def sdxl() -> tuple[Any, Any]:
    """SDXL's UNet."""
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],  # pyright: ignore[reportArgumentType]
        attention_head_dim=[5, 10, 20],  # pyright: ignore[reportArgumentType]
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return network, partial(EulerDiscreteScheduler, **betas)


def built(name: str, make: Any) -> tuple[Any, LADD, LatentDiscriminator]:
    with torch.device("meta"):
        network, scheduler = make()
    schedule, kind, _ = noise_of(scheduler())
    teacher = DiffusersDenoiser(network, schedule, kind)
    (stage,) = load_recipe(RECIPES / f"{name}.yaml").stages
    student = add_lora(teacher, "student", stage.lora) if stage.lora else teacher.copy()
    method = LADD.build(stage.settings, Cast.of(teacher, student))
    check_optimizers(stage.trainer.optimizers, list(method.trainable()))
    assert method.discriminator is not None
    return stage, method, method.discriminator


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def millions_of_heads(discriminator: LatentDiscriminator) -> list[float]:
    """Of each head, without what conditions it."""
    heads = discriminator.heads.get_submodule("heads")
    return [round(count(part.get_submodule("head")) / 1e6, 2) for part in heads.children()]


def logits(discriminator: LatentDiscriminator, side: int) -> list[tuple[int, ...]]:
    teacher: Any = discriminator.denoiser
    x_t = torch.empty(1, teacher.adapter.channels(), side, side, device="meta")
    condition = teacher.adapter.example_condition(x_t, 77)
    t = teacher.schedule.timesteps(1).to("meta")
    return [tuple(scale.shape) for scale in discriminator(x_t, t, condition)]


def test_ladd_sd3():
    stage, method, discriminator = built("ladd-sd3", sd3)
    assert discriminator.taps.names == tuple(f"transformer_blocks.{i}" for i in range(24))
    assert millions_of_heads(discriminator) == [3.15] * 24
    assert logits(discriminator, 128) == [(1, 33 * 33)] * 24
    assert (discriminator.conditioning, discriminator.pooled) == (
        ("timestep", "text"),
        "pooled_projections",
    )
    assert method.reconstruction is None
    u = torch.linspace(0, 1, 1001)[:-1]
    told = method.plan.at(Histogram(stage.settings.step_probabilities)(u)).t
    shares = [float((told == t).double().mean()) for t in method.plan.timesteps()]
    assert shares == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=2e-3)
    assert float(method.plan.timesteps()[0]) == 1000
    law = method.game.noising.law("real")
    assert float(law(torch.tensor(0.5))) == pytest.approx(torch.sigmoid(torch.tensor(1.0)))


def test_ladd_flux_lora():
    _, method, discriminator = built("ladd-flux-lora", flux)
    blocks = (
        "single_transformer_blocks.9",
        "single_transformer_blocks.23",
        "single_transformer_blocks.37",
    )
    assert discriminator.taps.names == blocks
    assert millions_of_heads(discriminator) == [3.94] * 3
    roles = {name: role.module for name, role in method.trainable().items()}
    assert count(roles["student"]) < 0.01 * count_all(discriminator.denoiser.module)
    assert logits(discriminator, 128) == [(1, 64 * 64)] * 3


def count_all(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_ladd_sdxl():
    _, method, discriminator = built("ladd-sdxl", sdxl)
    assert count(method.student.module) == 2_567_463_684
    assert discriminator.taps.names == ("down_blocks.1", "mid_block", "up_blocks.1")
    assert discriminator.pooled == "text_embeds"
    assert len(logits(discriminator, 128)) == 3
    (step,) = method.plan.steps
    assert (int(step.t), float(step.input.alpha), float(step.input.sigma)) == (399, 0.0, 1.0)
    assert float(step.output.alpha) == pytest.approx(0.6528, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("ladd-sd3", "sd3"),
        ("ladd-flux-lora", "flux-dev"),
        ("ladd-flux2-klein", "flux2-klein"),
        ("ladd-sdxl", "sdxl"),
    ],
)
def test_estimates(name, family):
    """Every loss of a recipe runs on shapes."""
    (stage,) = load_recipe(RECIPES / f"{name}.yaml").stages
    size = (64, 64) if family.startswith("flux") else None
    pipeline = Pipeline.from_diffusers(make_pipeline(family), resolution=size)
    memory = estimate(pipeline, stage, text_length=5)
    assert memory.peak() > memory.resident > 0
    assert set(stage.trainer.optimizers) <= set(memory.roles)
