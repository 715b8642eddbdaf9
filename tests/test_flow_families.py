"""The families of today at their true size, on the meta device, and DMD2 of LoRA roles on their tiny networks."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from nitrodistill.methods.dmd2 import CriticConfig, DMD2Config
from nitrodistill.models import DiffusersDenoiser, FeatureTaps, LoRAConfig, Pipeline, add_lora
from nitrodistill.models.adapters import PIPELINES
from nitrodistill.models.folders import UnsupportedPipeline
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.models.skeleton import skeleton
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.training import (
    OptimizerConfig,
    Recipe,
    Stage,
    TrainerConfig,
    load_student,
    run_recipe,
)
from nitrodistill.training.estimate import estimate
from nitrodistill.training.recipe import load_recipe
from nitrodistill.types import Condition
from tests import flow_pipelines
from tests.models.families import inputs
from tests.pipelines import make_pipeline

RECIPES = Path(__file__).parent.parent / "nitrodistill" / "recipes"
KLEIN_4B = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
KLEIN_9B = {
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "joint_attention_dim": 12288,
    "guidance_embeds": False,
}
LUMINA_2 = {"cap_feat_dim": 2304}
TRUE_SIZES = [
    # diffusers' defaults are the published config; the counts are those of the published weights
    ("QwenImageTransformer2DModel", {}, 20_430_401_088),
    ("ZImageTransformer2DModel", {}, 6_154_908_736),
    ("Flux2Transformer2DModel", {}, 32_223_281_152),
    ("Flux2Transformer2DModel", KLEIN_4B, 3_875_544_576),
    ("Flux2Transformer2DModel", KLEIN_9B, 9_078_581_248),
    # diffusers' defaults; published rounded alone: 8.9 and 6.8 billion
    ("ChromaTransformer2DModel", {}, 8_899_983_424),
    ("AuraFlowTransformer2DModel", {}, 6_833_439_744),
    # diffusers' defaults but for the width of Gemma 2 2B's text; published rounded alone: 2.6 billion
    ("Lumina2Transformer2DModel", LUMINA_2, 2_609_769_152),
]


def true_size(kind: str, config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return getattr(diffusers, kind)(**config)


@pytest.mark.parametrize(("kind", "config", "parameters"), TRUE_SIZES)
@torch.no_grad()
def test_at_its_true_size(kind, config, parameters):
    """Parameters, a student's LoRA, and a prediction's shape by both at a size that is not square."""
    denoiser = DiffusersDenoiser(true_size(kind, config), RectifiedFlow(1.0), "flow_prediction")
    assert sum(p.numel() for p in denoiser.network.parameters()) == parameters
    x_t = torch.empty(2, denoiser.adapter.channels(), 96, 64, device="meta")
    condition = denoiser.adapter.example_condition(x_t, length=77).index([0, 0])
    t = torch.ones(2, device="meta")
    student = add_lora(denoiser, "student", LoRAConfig(rank=16))
    trained = sum(p.numel() for p in student.module.parameters())
    assert 0 < trained < 0.01 * parameters
    assert student(x_t, t, condition).shape == x_t.shape


@pytest.mark.parametrize(
    ("recipe", "family", "kind", "config", "weights"),
    [
        pytest.param(
            *("dmd-zimage-lora", "z-image", "ZImageTransformer2DModel", {}, 6_154_908_736),
            marks=pytest.mark.soak,
        ),
        ("ladd-flux2-klein", "flux2-klein", "Flux2Transformer2DModel", KLEIN_4B, 3_875_544_576),
        pytest.param(
            *("dmd-zimage-lora", "lumina2", "Lumina2Transformer2DModel", LUMINA_2, 2_609_769_152),
            marks=pytest.mark.soak,
        ),
    ],
)
def test_a_recipe_is_estimated_at_its_true_size(recipe, family, kind, config, weights):
    pipe = make_pipeline(family)
    pipe.transformer = true_size(kind, config)
    pipeline = Pipeline.from_diffusers(pipe, resolution=(256, 256))
    (stage,) = load_recipe(RECIPES / f"{recipe}.yaml").stages
    found = estimate(pipeline, stage, text_length=128)
    assert found.roles["teacher"].weights == 4 * weights  # float32, as previews draw
    assert found.roles["teacher's copy"].weights == 2 * weights  # what trains shares it
    assert found.peak() > found.resident > 2 * weights


@torch.no_grad()
def test_taps_of_lumina_find_the_image_behind_texts_of_unequal_length():
    """As for each sample alone, without padding."""
    denoiser = Pipeline.from_diffusers(make_pipeline("lumina2")).denoiser
    x_t, t, condition = inputs(denoiser, size=(6, 10))
    taps = FeatureTaps(denoiser, "every_block")
    together = taps.features(x_t, t, condition)
    for i, length in enumerate(condition["encoder_attention_mask"].sum(1).tolist()):
        cut = {key: value[i : i + 1, :length] for key, value in condition.tensors.items()}
        alone = taps.features(x_t[i : i + 1], t[i : i + 1], Condition(cut))
        for one, both in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], both[i], rtol=1e-4, atol=1e-5)


LONG = [name for name in flow_pipelines.FAMILIES if name != "aura-flow"]
"""About five seconds of a CPU each."""


@pytest.mark.parametrize(
    "name", ["aura-flow", *(pytest.param(name, marks=pytest.mark.soak) for name in LONG)]
)
def test_dmd2_of_lora_roles_resumes_where_it_was(name, tmp_path):
    pipeline = Pipeline.from_diffusers(make_pipeline(name), resolution=(16, 16))
    pipeline.diffusers.save_pretrained(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a small red circle\na large blue ring\n")
    role = OptimizerConfig(1e-3)
    trainer = TrainerConfig(
        steps=4, batch_size=2, optimizers={"student": role, "critic": role}, checkpoint_every=2
    )
    config = DMD2Config(guidance=2.0, num_inference_steps=2, critic=CriticConfig(updates=1))
    stage = Stage("dmd2", trainer, config, lora=LoRAConfig(rank=2))

    def recipe(folder: str) -> Recipe:
        return Recipe(
            str(tmp_path / "teacher"),
            str(tmp_path / folder),
            [stage],
            prompts=str(tmp_path / "prompts.txt"),
            num_inference_steps=2,  # of the teacher that diagnostics draw with, 25 unless it is said
        )

    assert len(list(run_recipe(recipe("whole"), pipeline))) == 4
    begun = run_recipe(recipe("broken"), pipeline)
    assert len(list(islice(begun, 2))) == 2
    begun.close()
    assert len(list(run_recipe(recipe("broken"), pipeline))) == 2
    whole, broken = (
        fingerprint(load_student(tmp_path / folder, pipeline).denoiser.module)
        for folder in ("whole", "broken")
    )
    assert whole == broken != fingerprint(pipeline.denoiser.module)


def test_a_family_that_diffusers_lacks_is_refused_in_a_sentence(monkeypatch, tmp_path):
    """A family of ours whose class is not there, as in an older diffusers."""
    monkeypatch.setitem(PIPELINES, "LaterPipeline", PIPELINES["AuraFlowPipeline"])
    (tmp_path / "model_index.json").write_text('{"_class_name": "LaterPipeline"}')
    message = r"is a LaterPipeline, which the installed diffusers .* lacks; install a newer one"
    for read in (Pipeline.load, skeleton):
        with pytest.raises(UnsupportedPipeline, match=message):
            read(tmp_path)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("QwenImageTransformer2DModel", {"zero_cond_t": True}, "has zero_cond_t=True"),
        ("ZImageTransformer2DModel", {"siglip_feat_dim": 8}, "takes pictures"),
    ],
)
def test_versions_that_see_pictures_are_refused(kind, config, message):
    with pytest.raises(ValueError, match=message):
        DiffusersDenoiser(true_size(kind, config), RectifiedFlow(1.0), "flow_prediction")
