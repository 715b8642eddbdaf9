"""The recipes for smaller students, built at their true size on the meta device: no weights, only shapes."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from nitrodistill.export import check_export
from nitrodistill.method import Cast
from nitrodistill.methods import FeatureKD, find_method
from nitrodistill.models import DiffusersDenoiser, Pipeline, prune
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.teachers import load_teacher
from nitrodistill.training.config import check_optimizers
from nitrodistill.training.recipe import load_recipe
from nitrodistill.training.stages import build_on_shapes
from tests.models.families import FAMILIES
from tests.models.test_pruning import published
from tests.test_nitro_recipes import count, pixart_sigma

RECIPES = Path(__file__).parent.parent / "nitrodistill" / "recipes"


def teacher_of(name: str) -> DiffusersDenoiser:
    if name == "pixart":
        return pixart_sigma()
    return DiffusersDenoiser(published(name), FAMILIES["sd15"].make()[0].schedule, "epsilon")


@pytest.mark.parametrize(
    ("name", "teacher", "parameters", "pairs", "weights", "steps", "batch"),
    [
        ("bk-sdm-small", "sd15", 482_346_884, 8, (1, 1, 1), 50_000, 256),
        ("bk-sdm-tiny", "sd15", 323_384_964, 6, (1, 1, 1), 50_000, 256),
        ("small-sd", "sd15", 579_384_964, 9, (1, 0.5, 0.5), 50_000, 32),
        ("tiny-sd", "sd15", 323_384_964, 6, (1, 0.5, 0.5), 50_000, 32),
        ("ssd-1b", "sdxl", 1_331_334_404, 26, (1, 0.5, 0.5), 251_000, 128),
        ("vega", "sdxl", 745_225_604, 26, (1, 0.5, 0.5), 251_000, 128),
        ("dit-depth", "pixart", None, 7, (1, 1, 1), 50_000, 256),
    ],
)
def test_the_published_students(name, teacher, parameters, pairs, weights, steps, batch):
    recipe, whole = load_recipe(RECIPES / f"{name}.yaml"), teacher_of(teacher)
    first = recipe.stages[0]
    assert [s.student for s in recipe.stages[1:]] == ["previous"] * (len(recipe.stages) - 1)
    assert sum(stage.trainer.steps for stage in recipe.stages) == steps
    student = prune(whole, first.prune)
    made = FeatureKD.build(first.settings, Cast.of(whole, student, empty=student.example()[2]))
    if parameters is None:
        blocks = [
            count(d.module.get_submodule("transformer_blocks")) for d in (whole.copy(), student)
        ]
        assert blocks[1] * 2 == blocks[0]
    else:
        assert count(student.module) == parameters
    for stage in recipe.stages:
        assert stage.trainer.batch_size * stage.trainer.accumulation == batch
        assert (stage.settings.features, stage.settings.feature) == (
            first.settings.features,
            first.settings.feature,
        )
        check_optimizers(stage.trainer.optimizers, list(made.trainable()))
    losses = (made.task, made.output, made.feature)
    assert tuple(loss.weights["l2"] for loss in losses if loss is not None) == weights
    assert len(made.config.matches) == pairs
    assert len(made.plan) == first.settings.num_inference_steps
    assert getattr(recipe, first.settings.data) is not None


def test_half_of_qwen_image():
    """At its true size: diffusers' defaults are Qwen-Image's config."""
    with torch.device("meta"):
        network = diffusers.QwenImageTransformer2DModel()
    whole = DiffusersDenoiser(network, RectifiedFlow(1.0), "flow_prediction")
    (stage,) = load_recipe(RECIPES / "dit-depth-qwen-image.yaml").stages
    student = prune(whole, stage.prune)
    blocks = [d.module.get_submodule("transformer_blocks") for d in (whole, student)]
    before, after = (sum(p.numel() for p in some.parameters()) for some in blocks)
    assert after * 2 == before
    made = FeatureKD.build(stage.settings, Cast.of(whole, student, empty=student.example()[2]))
    check_optimizers(stage.trainer.optimizers, list(made.trainable()))
    assert stage.trainer.parallel == "fsdp"  # on eight GPUs, a sample each
    assert (stage.trainer.batch_size, stage.trainer.accumulation) == (8, 4)
    kept = dict(stage.prune.keep)["transformer_blocks"]
    for before, after in stage.settings.features:
        theirs, place = (int(name.rpartition(".")[2]) for name in (before, after))
        assert theirs == (*kept, 60)[place + 1] - 1  # the last one before the next that stays


def test_ssd_1b_has_three_teachers_in_succession():
    for name in ("ssd-1b", "vega"):
        stages = load_recipe(RECIPES / f"{name}.yaml").stages
        assert [stage.teacher.rpartition("/")[2] for stage in stages] == [
            "recipe",
            "zavychroma-xl",
            "juggernaut-xl",
        ]
        assert [stage.prune for stage in stages] == [name, None, None]


def test_the_toy_recipe_prunes_distils_and_takes_one_step():
    recipe = load_recipe(RECIPES / "toy-small.yaml")
    pipeline: Pipeline = load_teacher("toy")
    before, plans = None, []
    for stage in recipe.stages:
        method, cast = build_on_shapes(stage, pipeline, before=before)
        student = cast.student
        assert isinstance(student, DiffusersDenoiser)
        before = student
        plans.append(len(method.plan))
        check_export(pipeline, method.plan, student.prediction_type)
        check_optimizers(stage.trainer.optimizers, list(method.trainable()))
        assert isinstance(method, find_method(stage.method))
        share = count(student.module) / sum(
            p.numel() for p in pipeline.denoiser.module.parameters()
        )
        assert share == pytest.approx(0.565, abs=0.005)
    assert plans == [25, 1]
