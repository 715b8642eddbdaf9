"""Progressive distillation, consistency and flow maps by the command line, and their recipes at true size."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nitrodistill.cli.main import main
from nitrodistill.method import Cast, Draws
from nitrodistill.methods import find_method
from nitrodistill.methods.flow_map import FlowMap
from nitrodistill.methods.progressive import Progressive
from nitrodistill.models import DiffusersDenoiser, Pipeline, add_lora
from nitrodistill.models.lora import check_lora
from nitrodistill.schedules import DiscreteSchedule, RectifiedFlow
from nitrodistill.training.config import check_optimizers
from nitrodistill.training.recipe import Recipe, load_recipe
from nitrodistill.training.run import load_student
from nitrodistill.types import Batch, Pairs

RECIPES = Path(__file__).parent.parent / "nitrodistill" / "recipes"
PROGRESSIVE = {"num_inference_steps": 4, "guidance": 2.0}


def write(place: Any, stage: dict[str, Any], name: str, *more: dict[str, Any]) -> str:
    """A recipe on the small teacher with this stage, and perhaps further ones; its file."""
    student = {"learning_rate": 1e-3, "lr_decay_from": 0.0}
    trainer = {
        "steps": 2,
        "batch_size": 2,
        "checkpoint_every": 1,
        "optimizers": {"student": student},
    }
    data = {
        "teacher": str(place.teacher),
        "pairs": str(place.pairs),
        "output": str(place.root / name),
        "trackers": [],
        "evaluate_samples": 4,
        "stages": [{"trainer": trainer, **one} for one in (stage, *more)],
    }
    file = place.root / f"{name}.yaml"
    file.write_text(yaml.safe_dump(data))
    return str(file)


def train(recipe: str) -> int:
    return main(["train", "--config", recipe, "--quiet"])


def dies(recipe: str, stage: int, step: int) -> None:
    """Trains in another process, which is killed between the backward pass and the update of a step."""

    def run() -> None:
        kind = find_method(load_recipe(recipe).stages[0].method)
        whole = kind.losses

        def losses(self, batch, active, draws):
            yield from whole(self, batch, active, draws)
            if (draws.stage, draws.step) == (stage, step):
                os.kill(os.getpid(), signal.SIGKILL)

        kind.losses = losses  # type: ignore[method-assign]
        torch.set_num_threads(1)
        train(recipe)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL


def weights(run: Path) -> dict[str, bytes]:
    """The students and optimizers of a run's checkpoints."""
    return {
        f"{file.parent.name}/{file.name}": file.read_bytes()
        for file in sorted((run / "checkpoints").rglob("*.safetensors"))
    }


def test_halvings_are_trained_killed_resumed_and_exported(place, here, capsys):
    """4 -> 2 -> 1 in one command, bit-equal after a death in the second stage; each student has its plan."""
    settings = {"method": "progressive", "settings": PROGRESSIVE, "halvings": 3}
    recipe, killed = write(place, settings, "whole"), write(place, settings, "killed")
    assert train(recipe) == 0
    dies(killed, 1, 2)
    assert train(killed) == 0
    one, other = (weights(place.root / name) for name in ("whole", "killed"))
    assert one == other
    assert {name.split("/")[0] for name in one} >= {
        "stage-0-step-00000002", "stage-1-step-00000004", "stage-2-step-00000004"
    }  # fmt: skip
    capsys.readouterr()
    run, pipe = str(place.root / "killed"), place.root / "pipe"
    for stage, steps in ((0, 4), (None, 1)):
        chosen = [] if stage is None else ["--stage", str(stage)]
        assert main(["export", "--run", run, "--output", str(pipe), *chosen]) == 0
        assert f"num_inference_steps={steps}" in capsys.readouterr().out
        record = json.loads((pipe / "nitrodistill.json").read_text())
        assert len(record["plan"]["steps"]) == steps
    assert main(["export", "--run", run, "--output", str(pipe), "--stage", "7"]) == 2
    assert "no checkpoint of stage 7" in capsys.readouterr().err
    assert main(["export", "--run", run, "--output", str(pipe), "--num_inference_steps", "2"]) == 2
    assert "only a flow map samples in any number" in capsys.readouterr().err


def test_the_quality_of_each_stage_is_printed(place, capsys):
    settings = {"method": "progressive", "settings": PROGRESSIVE, "halvings": 2}
    file = Path(write(place, settings, "run"))
    data = yaml.safe_load(file.read_text())
    data["stages"][0]["trainer"] |= {"steps": 1, "evaluate_every": 100}
    file.write_text(yaml.safe_dump(data))
    assert train(str(file)) == 0
    told = capsys.readouterr().out
    assert "stage 0, student: " in told
    assert "stage 1, student: " in told


def test_guidance_is_distilled_then_halved_and_baked(place, here, capsys):
    """The student of the second stage takes guidance from its checkpoint on; its export needs none."""
    span = {"num_inference_steps": 4, "guidance": 3.0, "guidance_range": [1.0, 5.0]}
    recipe = write(
        place,
        {"method": "progressive", "settings": {**span, "teacher_steps": 1}},
        "told",
        {
            "method": "progressive",
            "settings": {**span, "num_inference_steps": 2},
            "teacher": "previous",
        },
    )
    dies(recipe, 1, 1)
    assert train(recipe) == 0
    run = place.root / "told"
    student = load_student(run, Pipeline.load(str(place.teacher)))
    assert student.denoiser.extra_inputs == {"guidance": 3.0}
    assert main(["export", "--run", str(run), "--output", str(place.root / "pipe")]) == 0
    config = json.loads((place.root / "pipe" / "unet" / "config.json").read_text())
    assert "nitrodistill_input" not in config


def test_a_flow_map_is_killed_resumed_and_exported_in_several_steps(place, here, capsys):
    settings = {"method": "flow_map", "settings": {"guidance": 2.0, "num_inference_steps": 2}}
    recipe, killed = write(place, settings, "whole"), write(place, settings, "killed")
    assert train(recipe) == 0
    dies(killed, 0, 1)
    assert train(killed) == 0
    one, other = (weights(place.root / name) for name in ("whole", "killed"))
    assert one == other
    run, pipe = str(place.root / "whole"), place.root / "pipe"
    assert load_student(run, Pipeline.load(str(place.teacher))).denoiser.extra_inputs == {
        "interval": 0.0
    }
    for steps in (None, 8):
        chosen = [] if steps is None else ["--num_inference_steps", str(steps)]
        assert main(["export", "--run", run, "--output", str(pipe), *chosen]) == 0
        assert f"num_inference_steps={steps or 2}" in capsys.readouterr().out
    assert main(["export", "--run", run, "--output", str(pipe), "--num_inference_steps", "3"]) == 2
    assert "draw equal steps alone" in " ".join(capsys.readouterr().err.split())


def test_halvings_that_cannot_be_are_refused(place, capsys):
    odd = {"method": "progressive", "settings": {"num_inference_steps": 6}, "halvings": 3}
    assert train(write(place, odd, "odd")) == 2
    assert "num_inference_steps is 3, which has no half" in capsys.readouterr().err
    other = {"method": "flow_map", "halvings": 2}
    assert train(write(place, other, "other")) == 2
    assert "halvings is 2, but 'flow_map' does not halve" in capsys.readouterr().err
    assert not (place.root / "odd").exists()


def test_halvings_write_the_stages_out():
    recipe = load_recipe(RECIPES / "progressive-toy.yaml")
    found = [
        (s.settings.num_inference_steps, s.settings.guidance, s.teacher) for s in recipe.stages
    ]
    assert found == [
        (8, 3.0, "recipe"),
        (4, 1.0, "previous"),
        (2, 1.0, "previous"),
        (1, 1.0, "previous"),
    ]
    steps = [stage.trainer.steps for stage in recipe.stages]
    assert steps == [120, 120, 240, 240], "twice as long to 2 and 1"
    assert {stage.halvings for stage in recipe.stages} == {0}


@pytest.mark.parametrize("name", ["progressive-toy", "flow-map-toy"])
def test_the_toys_recipes_fit_the_toy(name):
    from nitrodistill.teachers import load_teacher
    from nitrodistill.training.stages import check_stages

    recipe = load_recipe(RECIPES / f"{name}.yaml")
    check_stages(recipe, load_teacher(recipe.teacher))


def trained(recipe: Recipe, number: int, teacher: DiffusersDenoiser, shape: tuple[int, ...]) -> Any:
    """A stage's method on shapes alone, after one loss."""
    stage = recipe.stages[number]
    x0 = torch.empty(2, *shape, device="meta")
    condition = teacher.adapter.example_condition(x0, 77)
    if stage.lora is None:
        student = teacher.copy()
    else:
        check_lora(teacher, stage.lora)
        student = add_lora(teacher, "student", stage.lora)
    method = find_method(stage.method).build(
        stage.settings, Cast.of(teacher, student, empty=condition)
    )
    check_optimizers(stage.trainer.optimizers, list(method.trainable()))
    batch = Batch(torch.arange(1), Pairs(x0[:1], x0[:1], condition))
    with torch.no_grad():
        ((role, terms),) = method.losses(batch, ("student",), Draws(0, 0, batch.index))
    assert role == "student"
    assert terms.total.shape == ()
    return method


def scaled_linear() -> DiscreteSchedule:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return DiscreteSchedule((1 - betas).cumprod(0))


def test_progressive_sd21():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=96, cross_attention_dim=1024, use_linear_projection=True,
            attention_head_dim=[5, 10, 20, 20],  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
    teacher = DiffusersDenoiser(unet, scaled_linear(), "v_prediction")
    recipe = load_recipe(RECIPES / "progressive-sd21.yaml")
    found = [(s.settings.num_inference_steps, s.settings.teacher_steps) for s in recipe.stages]
    assert found == [(64, 1), (32, 2), (16, 2), (8, 2), (4, 2), (2, 2), (1, 2)]
    assert [s.trainer.steps for s in recipe.stages] == [50_000] * 5 + [100_000] * 2  # the paper's
    assert {s.settings.guidance_range for s in recipe.stages} == {(1.0, 12.0)}
    method = trained(recipe, 0, teacher, (4, 96, 96))
    assert isinstance(method, Progressive)
    assert method.student.extra_inputs == {"guidance": 7.5}


def test_lcm_sdxl_lora():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128, cross_attention_dim=2048, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
            block_out_channels=(320, 640, 1280), transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20], use_linear_projection=True,  # pyright: ignore[reportArgumentType]
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    teacher = DiffusersDenoiser(unet, scaled_linear(), "epsilon")
    recipe = load_recipe(RECIPES / "lcm-sdxl-lora.yaml")
    method = trained(recipe, 0, teacher, (4, 128, 128))
    assert list(method.frozen()) == ["teacher"]
    assert method.plan.timesteps().tolist() == [999, 749, 499, 249]
    rank = {p.shape[0] for n, p in method.student.module.named_parameters() if "lora_A" in n}
    assert rank == {64}


def test_flow_map_sd3():
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            sample_size=128, num_layers=24, num_attention_heads=24, attention_head_dim=64,
            joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
            in_channels=16, out_channels=16, pos_embed_max_size=192,
        )  # fmt: skip
    teacher = DiffusersDenoiser(transformer, RectifiedFlow(shift=3.0), "flow_prediction")
    method = trained(load_recipe(RECIPES / "flow-map-sd3.yaml"), 0, teacher, (16, 128, 128))
    assert isinstance(method, FlowMap)
    assert method.student.extra_inputs == {"interval": 0.0}
    added = {n: p.shape for n, p in method.student.module.named_parameters() if "cond_proj" in n}
    assert added == {"time_text_embed.timestep_embedder.cond_proj.weight": (256, 256)}
