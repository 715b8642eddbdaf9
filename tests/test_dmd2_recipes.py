"""The recipes of DMD2: each fits a network of its family; its losses are computed, and counted by `estimate`."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nitrodistill.method import Draws
from nitrodistill.methods.dmd2 import DMD2, DMD2Config, RegressionConfig
from nitrodistill.models import Pipeline
from nitrodistill.models.skeleton import shapes_of
from nitrodistill.teachers import load_teacher
from nitrodistill.training.config import check_optimizers
from nitrodistill.training.estimate import estimate
from nitrodistill.training.networks import stage_cast
from nitrodistill.training.recipe import Recipe, Stage, load_recipe
from nitrodistill.training.stages import build_on_shapes, check_stages
from nitrodistill.types import Batch, Latents, Pairs
from tests.pipelines import make_pipeline

RECIPES = Path(__file__).parent.parent / "nitrodistill" / "recipes"
COUNTED = ("dmd2-sdxl-lora", "dmd2-imagenet64-edm")
FAMILIES = {
    "dmd2-sd15": "sd15",
    "dmd2-sdxl-1step": "sdxl",
    "dmd2-sdxl-4step": "sdxl",
    "dmd2-sdxl-lora": "sdxl",
    "dmd2-imagenet64-edm": "edm",
    "dmd2-sd3": "sd3",
    "dmd2-flux-lora": "flux-dev",
    "decoupled-dmd-lora": "sd3",
    "dmd-decoupled-qwen-image-lora": "qwen-image",
    "dmd-zimage-lora": "z-image",
    "dmd2-toy": "toy",
    "dmd2-toy-4step": "toy",
    "dmd2-toy-gan": "toy",
    "dmd2-toy-gan-4step": "toy",
}


@functools.cache
def teacher(family: str) -> Pipeline:
    if family == "toy":
        return load_teacher("toy")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = make_pipeline(family)
    return Pipeline.from_diffusers(pipe)


def small(stage: Stage) -> Stage:
    """The stage with LoRA of rank 2, and without weights that must be downloaded."""
    if stage.lora is not None:
        stage = dataclasses.replace(stage, lora=dataclasses.replace(stage.lora, rank=2))
    if stage.method == "ladd":
        settings = dataclasses.replace(stage.settings, reconstruction={"smooth_l1": 1.0})
        stage = dataclasses.replace(stage, settings=settings)
    return stage


@pytest.fixture(params=FAMILIES)
def case(request) -> tuple[str, Recipe, Pipeline]:
    recipe, pipeline = (
        load_recipe(RECIPES / f"{request.param}.yaml"),
        teacher(FAMILIES[request.param]),
    )
    stages = [small(stage) for stage in recipe.stages]
    return request.param, dataclasses.replace(recipe, stages=stages), pipeline


def test_there_is_a_case_for_each():
    found = {p.stem for p in RECIPES.glob("*.yaml") if "dmd" in p.stem}
    assert found == set(FAMILIES)


def test_it_fits_its_family_and_is_counted(case):
    name, recipe, pipeline = case
    check_stages(recipe, pipeline)
    for stage in recipe.stages:
        assert stage.trainer.evaluate_every > 0
        assert stage.trainer.best_metric == "fd_teacher"
    if name in COUNTED:
        stage = recipe.stages[-1]
        stage = dataclasses.replace(stage, trainer=dataclasses.replace(stage.trainer, steps=2))
        memory = estimate(pipeline, stage, text_length=8)
        method, _ = build_on_shapes(stage, shapes_of(pipeline))
        assert set(memory.roles) >= set(method.trainable())
        assert memory.peak() > 0
        assert set(memory.turns) == {tuple(method.active(s)) for s in (0, 1)}
        assert len(memory.turns) == 2
        if stage.lora is not None:
            for role in method.trainable():
                assert memory.roles[role].weights < memory.roles["teacher"].weights


def test_its_losses_are_finite_and_reach_their_roles(case):
    _, recipe, pipeline = case
    whole = pipeline.denoiser.copy()
    empty = pipeline.null_condition() if pipeline.adapter.has_null else None
    stage = recipe.stages[-1]
    cast = stage_cast(stage, lambda: whole, whole, empty, None)
    method = DMD2.build(stage.settings, cast)
    check_optimizers(stage.trainer.optimizers, list(method.trainable()))
    roles = {name: role.module for name, role in method.trainable().items()}
    for (
        weight
    ) in method.critic.module.parameters():  # a critic that is the teacher asks for nothing
        weight.data += 0.05
    batch = _batch(whole, 2)
    for step in (0, 1):
        active = method.active(step)
        for role, terms in method.losses(batch, active, Draws(1, step, batch.index)):
            assert terms.total.isfinite()
            terms.total.backward()
            # LoRA's B is zero at first, so that A has no gradient yet
            grads = [p.grad for p in roles[role].parameters() if p.grad is not None]
            assert sum(float(g.abs().sum()) for g in grads) > 0, role


def _batch(denoiser: Any, size: int) -> Batch:
    index = torch.arange(size)
    draws = Draws(3, 0, index)

    def like(name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point() or name == "mask":
            return value.expand(size, *value.shape[1:])
        return draws.normal(name, value.shape[1:])

    x_t = torch.zeros(1, *denoiser.latent_shape())
    example = denoiser.adapter.example_condition(x_t, 5)
    text = dataclasses.replace(
        example, tensors={n: like(n, v) for n, v in example.tensors.items()}, prompt_ids=index
    )
    x0, noise = (draws.normal(name, x_t.shape[1:]) for name in ("x0", "eps"))
    return Batch(index, Pairs(x0, noise, text), Latents(noise.flip(0), text), text)


@pytest.mark.parametrize(
    ("name", "part"), [("dmd2-sdxl-4step", "real"), ("dmd2-sdxl-lora", "prompts")]
)
def test_a_recipe_without_its_data_is_told(name, part):
    recipe = dataclasses.replace(load_recipe(RECIPES / f"{name}.yaml"), **{part: None})
    with pytest.raises(ValueError, match=f"method 'dmd2' reads {part}, which the recipe does not"):
        check_stages(recipe, teacher("sdxl"))


def test_regression_without_pairs_is_told():
    recipe = load_recipe(RECIPES / "dmd2-toy.yaml")
    settings = dataclasses.replace(recipe.stages[0].settings, regression=RegressionConfig())
    stages = [dataclasses.replace(recipe.stages[0], settings=settings)]
    with pytest.raises(ValueError, match="reads pairs, which the recipe does not give"):
        check_stages(dataclasses.replace(recipe, stages=stages), teacher("toy"))


def published(name: str, number: int = -1) -> tuple[DMD2Config, Stage]:
    stage = load_recipe(RECIPES / f"{name}.yaml").stages[number]
    return stage.settings, stage


@pytest.mark.parametrize(
    ("name", "number", "rate", "batch", "updates", "guidance", "gan", "steps"),
    [
        ("dmd2-sd15", 0, 1e-5, 2048, 10, 1.75, None, 39000),
        ("dmd2-sd15", 1, 5e-7, 2048, 10, 1.75, 1e-3, 2000),
        ("dmd2-sdxl-1step", 1, 5e-7, 128, 5, 8, 5e-3, 24000),
        ("dmd2-sdxl-4step", 0, 5e-7, 128, 5, 8, 5e-3, 19000),
        ("dmd2-sdxl-lora", 0, 5e-5, 128, 5, 8, 5e-3, 16000),
        ("dmd2-imagenet64-edm", 0, 2e-6, 280, 5, 1, 3e-3, 200000),
    ],
)
def test_the_published_settings(name, number, rate, batch, updates, guidance, gan, steps):
    """reference B3's table."""
    settings, stage = published(name, number)
    trainer = stage.trainer
    for optimizer in trainer.optimizers.values():
        assert optimizer.learning_rate == rate
        assert optimizer.betas == (0.9, 0.999)
        assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.01, 10.0)
        told = steps // updates >= 500  # else it would not end, which the recipe says
        assert optimizer.lr_warmup_updates == (500 if told else 0)
        assert optimizer.ema_decay == 0
    assert trainer.batch_size * trainer.accumulation == batch
    assert trainer.steps == steps
    assert (settings.critic.updates, settings.guidance) == (updates, guidance)
    assert settings.updates == "shared"
    assert settings.timesteps == {"uniform": {"ranges": [[0.02, 0.98]]}}
    assert settings.normaliser_floor == 0
    if gan is None:
        assert settings.gan is None
    else:
        assert settings.gan is not None
        assert (settings.gan.weight, settings.gan.critic_weight) == (gan, 1e-2)
        assert settings.gan.features == "critic"


@pytest.mark.parametrize("name", [n for n in FAMILIES if "toy" not in n])
def test_each_says_what_is_published_what_is_proven_and_what_awaits_a_run(name: str):
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    head = text[: text.index("\nteacher:")].replace("\n# ", " ")
    assert re.search("[Pp]ublished|our settings", head)
    for words in ("Proven here: ", "Awaits an owner's run"):
        assert words in head
    named = re.findall(r"\(([a-z0-9-]+)\.yaml\)", head)
    assert set(named) <= {path.stem for path in RECIPES.glob("*.yaml")}


def test_the_published_grids():
    sdxl = shapes_of(teacher("sdxl"))
    for name, grid in (
        ("dmd2-sdxl-4step", [999, 749, 499, 249]),
        ("dmd2-sdxl-1step", [399]),
    ):
        method, _ = build_on_shapes(published(name)[1], sdxl)
        assert method.plan.timesteps().tolist() == grid
        assert float(method.plan.steps[0].input.alpha) == 0
