"""Exported pipelines, reloaded: one in a fresh process, and what is refused before one is started."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import nn

from nitrodistill.export import export
from nitrodistill.export import pipeline as exporting
from nitrodistill.method import Draws
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.schedules import DiscreteSchedule, ZeroTerminalSNR

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def teacher(tiny_diffusers: Callable[..., Any], scheduler: Any) -> Pipeline:
    return Pipeline.from_diffusers(tiny_diffusers(scheduler))


def trained(pipeline: Pipeline) -> DiffusersDenoiser:
    """A student that differs from its teacher."""
    student = pipeline.denoiser.copy()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    student.module.train()
    return student


def run_here(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
    """Runs the script of the fresh process in this one."""
    executable, flag, script, *arguments = command
    assert (executable, flag) == (sys.executable, "-c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", *arguments])
        exec(script, {})
    return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture(scope="module")
def rescaled(tiny_diffusers: Callable[..., Any]) -> Pipeline:
    plain = DDIMScheduler(**SCALED_LINEAR, prediction_type="v_prediction", steps_offset=1)
    return teacher(tiny_diffusers, ZeroTerminalSNR()(plain))


def test_v_prediction_at_zero_snr_equals_the_student(rescaled: Pipeline, tmp_path: Path) -> None:
    student = trained(rescaled)
    plan = StepPlan.from_schedule(student.schedule)
    prompts = ["a red circle", "a blue ring"]
    metrics = "|  | teacher | student |\n| --- | ---: | ---: |\n| alignment | 0.98 | 0.91 |"
    output = export(
        rescaled,
        student,
        plan,
        tmp_path / "new" / "student",
        base_model="somebody/teacher",
        metrics=metrics,
        licence="apache-2.0",
        prompts=prompts,
    )
    assert student.module.training, "the caller's mode is given back"
    assert [p.name for p in output.parent.iterdir()] == ["student"], "nothing is left beside it"

    record = json.loads((output / exporting.RECORD).read_text())
    assert record["self_test"]["latents"] <= 1e-5
    assert record["self_test"]["images"] <= 1e-5
    assert record["plan"]["steps"] == [{"t": 999, "input": [0.0, 1.0], "output": [0.0, 1.0]}]

    pipe = DiffusionPipeline.from_pretrained(output)
    assert pipe.scheduler.config.rescale_betas_zero_snr is True
    assert pipe.safety_checker is None
    pipe.set_progress_bar_config(disable=True)
    noise = Draws(5, 0, torch.arange(2)).normal("held out", rescaled.latent_shape)
    call = {"num_inference_steps": 1, "guidance_scale": 0, "latents": noise}
    with torch.no_grad():
        x0 = sample(student, plan, noise, rescaled.encode_prompt(prompts))
    student.module.eval()
    torch.testing.assert_close(pipe(prompts, output_type="latent", **call).images, x0)

    card = (output / "README.md").read_text()
    assert 'pipe("a red circle", num_inference_steps=1, guidance_scale=0)' in card
    assert "base_model: somebody/teacher" in card
    assert f'from_pretrained("{output}")' in card, "the path as it was given"
    assert f"## Measured\n\n{metrics}\n\n" in card


def test_epsilon_conditioned_at_an_early_timestep_equals_the_student(
    tiny_diffusers: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.subprocess, "run", run_here)  # a process costs ten seconds
    scheduler = DDIMScheduler(
        **LINEAR, prediction_type="epsilon", clip_sample=False, steps_offset=1
    )
    pipeline = teacher(tiny_diffusers, scheduler)
    student = trained(pipeline)
    plan = StepPlan.from_noise(student.schedule, 400)
    output = tmp_path / "student"
    output.mkdir()
    (output / exporting.RECORD).write_text("an earlier export")
    export(pipeline, student.module, plan, output, base_model="a teacher")
    assert json.loads((output / exporting.RECORD).read_text())["self_test"]["latents"] <= 1e-5

    reloaded = Pipeline.load(output)
    assert reloaded.scheduler.config.num_train_timesteps == 401
    (step,) = StepPlan.from_schedule(reloaded.denoiser.schedule).steps
    assert step.t == 400, "the plan can be read back from the folder"
    torch.testing.assert_close(step.output, plan.steps[0].output, rtol=0, atol=1e-6)
    assert "base_model:" not in (output / "README.md").read_text(), "words are no Hub name"


def test_a_pipeline_that_does_not_run_is_removed(
    rescaled: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_FRESH_PROCESS", "raise SystemExit('out of memory')")
    plan = StepPlan.from_schedule(rescaled.denoiser.schedule)
    with pytest.raises(RuntimeError, match=r"does not load and run .*out of memory"):
        export(rescaled, rescaled.denoiser, plan, tmp_path / "new" / "deep" / "out", base_model="x")
    assert list(tmp_path.iterdir()) == [], "nor are the parents"


def test_a_pipeline_that_draws_something_else_is_removed(
    rescaled: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*args: Any) -> dict[str, torch.Tensor]:
        return {"latents": torch.zeros(1, 4, 8, 8), "images": torch.zeros(1, 3, 16, 16)}

    monkeypatch.setattr(exporting, "_fresh_process", other)
    plan = StepPlan.from_schedule(rescaled.denoiser.schedule)
    with pytest.raises(RuntimeError, match="does not draw what the student draws"):
        export(rescaled, rescaled.denoiser, plan, tmp_path / "out", base_model="x")
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_leaves_nothing_behind(rescaled: Pipeline, tmp_path: Path) -> None:
    student, base = rescaled.denoiser, {"base_model": "x"}
    plan = StepPlan.from_schedule(student.schedule)
    full = tmp_path / "photos"
    full.mkdir()
    (full / "mine.png").touch()
    with pytest.raises(FileExistsError, match="not an earlier export"):
        export(rescaled, student, plan, full, **base)
    with pytest.raises(FileExistsError, match="is a file"):
        export(rescaled, student, plan, full / "mine.png", **base)
    with pytest.raises(TypeError, match="take the guidance off"):
        export(rescaled, rescaled.guided(3.0), plan, tmp_path / "a", **base)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unwrap"):
        export(rescaled, nn.Sequential(student.module), plan, tmp_path / "a", **base)
    with pytest.raises(ValueError, match="at least one"):
        export(rescaled, student, plan, tmp_path / "a", prompts=[], **base)
    with pytest.raises(ValueError, match="TCDScheduler cannot express"):
        export(rescaled, student, plan, tmp_path / "a", scheduler="TCDScheduler", **base)
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "mine.png"]


def test_a_folder_without_write_permission_is_named(
    rescaled: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.os, "access", lambda path, mode: False)
    plan = StepPlan.from_schedule(DiscreteSchedule.from_scheduler(rescaled.scheduler))
    with pytest.raises(PermissionError, match="not writable"):
        export(rescaled, rescaled.denoiser, plan, tmp_path / "out", base_model="x")
