"""The two published recipes, built at their true size on the meta device: no weights, only shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nitrodistill.method import Cast
from nitrodistill.methods import LADD
from nitrodistill.models import DiffusersDenoiser
from nitrodistill.schedules import DiscreteSchedule
from nitrodistill.training.config import OptimizerConfig, check_optimizers
from nitrodistill.training.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parent.parent / "nitrodistill" / "recipes"


def sd21() -> DiffusersDenoiser:
    from diffusers import DDIMScheduler, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            attention_head_dim=[5, 10, 20, 20],  # pyright: ignore[reportArgumentType]
            use_linear_projection=True,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    return DiffusersDenoiser(unet, DiscreteSchedule.from_scheduler(scheduler), "epsilon")


def pixart_sigma() -> DiffusersDenoiser:
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    with torch.device("meta"):
        transformer = PixArtTransformer2DModel(
            sample_size=64, caption_channels=4096, use_additional_conditions=False
        )
    scheduler = DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    return DiffusersDenoiser(transformer, DiscreteSchedule.from_scheduler(scheduler), "epsilon")


def built(name: str, teacher: DiffusersDenoiser) -> tuple[Recipe, LADD]:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    cast = Cast.of(teacher, teacher.copy())
    return recipe, LADD.build(recipe.stages[0].settings, cast)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def logits(method: LADD, length: int) -> list[tuple[int, ...]]:
    """Shapes of the logits of one latent of 512 pixels."""
    assert method.discriminator is not None
    teacher: Any = method.discriminator.denoiser
    x_t = torch.empty(1, 4, 64, 64, device="meta")
    condition = teacher.adapter.example_condition(x_t, length)
    scales = method.discriminator(x_t, torch.zeros((), dtype=torch.long, device="meta"), condition)
    return [tuple(scale.shape) for scale in scales]


def test_nitro_sd21():
    recipe, method = built("nitro-sd21", sd21())
    roles = {name: role.module for name, role in method.trainable().items()}
    assert count(roles["student"]) == 865_910_724
    heads = roles["discriminator"].get_submodule("heads")
    assert [round(count(head) / 1e6, 2) for head in heads.children()] == [0.41, 1.64, 6.56]
    assert logits(method, 77) == [(1, 17**2), (1, 9**2), (1, 5**2)]
    (step,) = method.plan.steps
    assert (int(step.t), float(step.input.alpha), float(step.input.sigma)) == (999, 0.0, 1.0)
    assert float(step.output.alpha) == pytest.approx(0.06826, abs=1e-5)
    assert float(step.output.sigma / step.output.alpha) == pytest.approx(14.6, abs=0.05)
    check_settings(recipe, method)


def test_nitro_pixart_sigma():
    recipe, method = built("nitro-pixart-sigma", pixart_sigma())
    roles = {name: role.module for name, role in method.trainable().items()}
    assert count(roles["student"]) == 610_856_096
    heads = roles["discriminator"].get_submodule("heads")
    assert [count(head) for head in heads.children()] == [10 * 1152**2 + 7 * 1152 + 1] * 5
    assert logits(method, 300) == [(1, 32 * 32)] * 5
    (step,) = method.plan.steps
    assert (int(step.t), float(step.input.alpha), float(step.input.sigma)) == (400, 0.0, 1.0)
    assert float(step.output.alpha) == pytest.approx(0.4400, abs=1e-4)
    assert float(step.output.sigma) == pytest.approx(0.8980, abs=1e-4)
    check_settings(recipe, method)


def check_settings(recipe: Recipe, method: LADD) -> None:
    """What both scripts have in common: reference B1, items 3, 4 and 6."""
    (stage,) = recipe.stages
    check_optimizers(stage.trainer.optimizers, list(method.trainable()))
    published = OptimizerConfig(
        1e-6,
        (0.9, 0.999),
        weight_decay=0.01,
        eps=1e-8,
        lr_warmup_updates=0,
        lr_decay_from=1.0,
        max_grad_norm=1.0,
        ema_decay=0.0,
    )
    assert all(config == published for config in stage.trainer.optimizers.values())
    assert stage.trainer.batch_size * stage.trainer.accumulation == 384
    assert [method.active(step) for step in range(3)] == [
        ("student",),
        ("discriminator",),
        ("student",),
    ]
    assert stage.settings.misaligned_negatives
    schedule = method.student.schedule
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    assert method.game is not None
    for use in ("generator", "real", "fake"):
        t = schedule.timestep(method.game.noising.law(use)(u))
        assert (int(t.min()), int(t.max())) == (0, 749)
    assert method.reconstruction is not None
    beta = method.reconstruction.per_sample(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    assert float(beta) == 0.5  # smooth L1 with beta 1 turns at 1: 0.5 there
