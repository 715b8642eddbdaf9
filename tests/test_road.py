"""Every family walks the whole road: pairs, training that is watched, numbers, memory, export, the plain call.

What cannot walk it is refused before the first step is trained. A flow of today takes at most eight seconds of a
CPU, and DMD2 of LoRA roles in test_flow_families.py about five.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from nitrodistill.cli.main import main
from nitrodistill.data import GenerateConfig, PairStore, encode, generate, open_images
from nitrodistill.evaluation import EvaluateConfig, count_flops
from nitrodistill.evaluation.student import MetricNetworks, measure_student
from nitrodistill.export import export
from nitrodistill.methods import LADDConfig
from nitrodistill.models import Pipeline
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.models.skeleton import shapes_of, skeleton
from nitrodistill.sampling import sample
from nitrodistill.training import (
    OptimizerConfig,
    Recipe,
    Stage,
    State,
    TrainedStudent,
    TrainerConfig,
    load_student,
    run_recipe,
)
from nitrodistill.training.estimate import estimate
from nitrodistill.training.recipe import save_recipe
from nitrodistill.training.run import training_latents
from nitrodistill.training.stages import build_on_shapes
from tests import flow_pipelines
from tests.pipelines import FAMILIES, WITHOUT_TEXT, make_pipeline

TEXTS = ("a small red circle", "a large blue ring")


class Family(NamedTuple):
    """How a family is asked: prompts, the same as arguments of diffusers' call, guidance, pixels."""

    prompts: tuple[str, ...]
    call: dict[str, Any]
    guidance: float
    size: tuple[int, int] | None = None


def of_text(side: int | None = None, **call: Any) -> Family:
    """A family that draws texts, at another size than its pipeline's own if that is large."""
    size = {} if side is None else {"height": side, "width": side}
    call = {"prompt": list(TEXTS), "guidance_scale": 0, **size, **call}
    return Family(TEXTS, call, 2.0, None if side is None else (side, side))


BINS = {"use_resolution_binning": False}
ROADS = {name: of_text() for name in FAMILIES} | {
    "pixart-sigma": of_text(64, clean_caption=False, **BINS),
    "sana": of_text(64, **BINS),
    "sd3": of_text(16),
    "flux-dev": of_text(16),
    "flux-schnell": of_text(16),
    **{name: of_text(16) for name in flow_pipelines.FAMILIES},
    "lumina2": of_text(),  # its pipeline takes every VAE for one of 8 pixels a side
    **{name: Family(("",), {"batch_size": 2}, 1.0) for name in WITHOUT_TEXT},
    **{
        name: Family(("3", "0"), {"batch_size": 2, "class_labels": [3, 0]}, 1.0)
        for name in ("ddpm-classes", "edm")
    },
    "dit": Family(("goldfish", "2"), {"class_labels": [1, 2], "guidance_scale": 0}, 2.0),
}


class Walk(NamedTuple):
    """What a family left on its way to a trained student."""

    family: Family
    folder: Path
    pipeline: Pipeline
    recipe: Recipe
    states: list[State]
    student: TrainedStudent


def made(name: str, folder: Path) -> Pipeline:
    """The family's teacher, saved and loaded again, and pairs that it drew."""
    family, pipe = ROADS[name], make_pipeline(name)
    if "vae" not in pipe.components:
        pipe.unet.register_to_config(sample_size=16)  # texture features need 10 pixels
    pipe.save_pretrained(folder / "teacher")
    pipeline = Pipeline.load(folder / "teacher", resolution=family.size)
    config = GenerateConfig(num_pairs=8, num_inference_steps=2, guidance=family.guidance)
    generate(pipeline, family.prompts, folder / "pairs", config, teacher_name="t", progress=False)
    return pipeline


def encoded(pipeline: Pipeline, family: Family, folder: Path) -> None:
    """Pictures of noise with the family's prompts, as latents."""
    (folder / "pictures").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(8):
        pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / "pictures" / f"{i}.png")
        caption = family.prompts[i % len(family.prompts)]
        (folder / "pictures" / f"{i}.txt").write_text(caption)
    images = open_images(folder / "pictures")
    encode(pipeline, images, folder / "real", teacher_name="t", progress=False)


def recipe_of(folder: Path, **settings: Any) -> Recipe:
    """Four steps of LADD, then a preview and an evaluation."""
    method = LADDConfig(taps=(0.5, 1.0), updates="shared", fresh_fraction=0.5, **settings)
    role = OptimizerConfig(1e-3, ema_decay=0.5)
    trainer = TrainerConfig(
        steps=4,
        batch_size=2,
        optimizers={"student": role, "discriminator": role},
        checkpoint_every=2,
        preview_every=4,
        evaluate_every=4,
    )
    stage = Stage("ladd", trainer, method)
    pairs, output = str(folder / "pairs"), str(folder / "run")
    return Recipe(str(folder / "teacher"), output, [stage], pairs=pairs, evaluate_samples=4)


@pytest.fixture(scope="module", params=ROADS)
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """From a teacher on the disk to a student; the training is left after two steps, and goes on."""
    family, folder = ROADS[request.param], tmp_path_factory.mktemp(request.param)
    pipeline = made(request.param, folder)
    encoded(pipeline, family, folder)
    recipe = replace(recipe_of(folder), real=str(folder / "real"))
    begun = run_recipe(recipe, pipeline)
    states = list(islice(begun, 2))
    begun.close()
    states += run_recipe(recipe, pipeline)
    return Walk(family, folder, pipeline, recipe, states, load_student(recipe.output, pipeline))


def test_the_student_is_trained_previewed_and_evaluated(walk: Walk) -> None:
    family, (first, _, _, last) = walk.family, walk.states
    assert [state.step for state in walk.states] == [1, 2, 3, 4]
    assert PairStore.open(walk.folder / "pairs").prompts == family.prompts
    assert not first.skipped
    assert not last.skipped
    assert {"fd_texture", "fd_latents", "ssim", "pixel_distance"} <= last.evaluation.keys()
    assert all(math.isfinite(value) for value in last.evaluation.values())
    with Image.open(Path(walk.recipe.output, "previews", "stage-0-step-00000004.png")) as picture:
        assert picture.width > picture.height > 0
    before, after = walk.pipeline.denoiser.module, walk.student.denoiser.module
    assert fingerprint(before) != fingerprint(after)


def test_it_is_measured_beside_its_teacher_and_real_pictures(walk: Walk) -> None:
    config = EvaluateConfig(
        num_samples=4,
        num_inference_steps=2,
        guidance=walk.family.guidance,
        samples_per_prompt=2,
        bootstrap=2,
        cost_repeats=0,  # its twenty drawings are half of the road; what a family has to do with it is below
        num_pictures=1,
    )
    found = measure_student(
        walk.recipe.teacher,
        walk.pipeline,
        walk.student.denoiser,
        walk.student.plan,
        walk.family.prompts,
        config,
        networks=MetricNetworks(real=str(walk.folder / "real")),
        training_latents=training_latents(walk.recipe),
        progress=False,
    )
    student = {name: metric.value for name, metric in found.student.items()}
    assert {"fd_real", "nearest_ratio"} <= student.keys()
    assert all(math.isfinite(value) for value in student.values())


def test_what_it_needs_is_known_from_the_configs_alone(walk: Walk) -> None:
    shapes = skeleton(walk.folder / "teacher", resolution=walk.family.size)
    stage = walk.recipe.stages[0]  # whose two steps are alike
    stage = replace(stage, trainer=replace(stage.trainer, steps=1))
    found = estimate(shapes, stage, text_length=8)
    network = walk.pipeline.denoiser.copy().module
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert found.roles["student"].trained == trained
    assert found.peak() > found.resident > 0


@pytest.mark.usefixtures("here")
@torch.no_grad()
def test_a_plain_call_of_its_export_draws_what_it_draws(walk: Walk) -> None:
    pipeline, student = walk.pipeline, walk.student
    prompts = [walk.family.prompts[i % len(walk.family.prompts)] for i in range(2)]
    output = export(
        pipeline,
        student.denoiser,
        student.plan,
        walk.folder / "out",
        base_model="t",
        prompts=prompts,
    )
    pipe: Any = DiffusionPipeline.from_pretrained(output)
    pipe.set_progress_bar_config(disable=True)
    found = pipe(
        num_inference_steps=1,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
        **walk.family.call,
    ).images
    noise = torch.randn(2, *pipeline.latent_shape, generator=torch.Generator().manual_seed(7))
    condition, drawn = pipeline.encode_prompt(prompts), list[torch.Tensor]()

    def draw() -> None:
        drawn.append(sample(student.denoiser, student.plan, noise, condition))

    assert count_flops(draw) > 0
    images = pipeline.decode(drawn[0]).permute(0, 2, 3, 1) / 2 + 0.5
    torch.testing.assert_close(
        torch.from_numpy(found).expand_as(images), images, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "settings", "changes", "message"),
    [
        (
            "edm",
            {"timestep": 10},
            {},
            "EDMDPMSolverMultistepScheduler cannot express this plan of 1",
        ),
        ("ddpm", {}, {"guidance": 3.0}, "unconditional, so there is nothing to guide it by"),
        ("sd3", {"timestep": 500}, {}, "DiscreteScheduler cannot express this plan of 1"),
    ],
)
def test_what_cannot_be_exported_or_drawn_is_refused_before_training(
    name: str, settings: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    pipeline = made(name, tmp_path)
    recipe = replace(recipe_of(tmp_path, **settings), **changes)
    with pytest.raises(ValueError, match=message):
        run_recipe(recipe, pipeline)
    assert not (tmp_path / "run").exists()


def test_pictures_too_small_to_be_measured_are_refused_before_training(tmp_path: Path) -> None:
    pipe = make_pipeline("ddpm")
    pipe.unet.register_to_config(sample_size=4)
    pipeline = Pipeline.from_diffusers(pipe)
    config = GenerateConfig(num_pairs=4, num_inference_steps=2, guidance=1.0)
    generate(pipeline, [""], tmp_path / "pairs", config, teacher_name="t", progress=False)
    with pytest.raises(ValueError, match="need at least 5 pixels a side"):
        run_recipe(recipe_of(tmp_path), pipeline)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "has_null"), [("ddpm", False), ("edm", False), ("dit", True)])
def test_methods_are_told_where_no_condition_stands_for_none(name: str, has_null: bool) -> None:
    shapes = shapes_of(Pipeline.from_diffusers(make_pipeline(name)))
    _, cast = build_on_shapes(recipe_of(Path()).stages[0], shapes)
    assert (cast.empty is not None) == has_null


@pytest.mark.usefixtures("here")
def test_the_command_line_takes_a_teacher_without_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("ddpm", tmp_path)
    recipe = recipe_of(tmp_path)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    run = ["--run", recipe.output]
    few = ["--num_samples", "4", "--samples_per_prompt", "2", "--cost_repeats", "0"]
    assert main(["train", "--config", str(tmp_path / "recipe.yaml"), "--quiet"]) == 0
    assert main(["evaluate", *run, *few, "--prompts", ""]) == 0
    assert main(["export", *run, "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "pipe(" in told.splitlines()[-1]
