"""Where latents come from: noise that no training pair has, and processes that share the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from nitrodistill.evaluation import EvaluateConfig, help_draw
from nitrodistill.evaluation.config import SamplePlan
from nitrodistill.evaluation.drawing import NOISE, OTHER_NOISE, Drawing, depends_on, noise_draws
from nitrodistill.evaluation.models import make_models
from nitrodistill.method import Draws
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan

CONFIG = EvaluateConfig(num_samples=12, batch_size=5, num_inference_steps=2, cost_repeats=0)
PROMPTS = ["a red ring", "a blue circle"]


def test_streams_of_noise_are_apart() -> None:
    rows = torch.arange(3)
    found = [
        noise_draws(0, NOISE, rows, (2,)),
        noise_draws(0, OTHER_NOISE, rows, (2,)),
        noise_draws(1, NOISE, rows, (2,)),
        Draws(0, 0, rows, purpose="pairs").normal("noise", (2,)),
    ]
    for i, a in enumerate(found):
        for b in found[:i]:
            assert not (a == b).any()


def test_a_teacher_that_clamps_x0_is_another(tiny_diffusers: Callable[..., Any]) -> None:
    """Its latents are, though its weights are not."""
    samples, keys = SamplePlan.of(PROMPTS, CONFIG), []
    for clips in (False, True):
        scheduler: Any = DDIMScheduler(prediction_type="v_prediction", thresholding=clips)
        teacher = Pipeline.from_diffusers(tiny_diffusers(scheduler))
        models = make_models(teacher, teacher.denoiser, None, CONFIG)
        drawing = Drawing(models, samples, None, False)
        keys.append((depends_on(teacher, samples), drawing._of("naive")))
    for plain, clipped in zip(*keys, strict=True):
        assert {key for key in plain if plain[key] != clipped[key]} >= {"sampler_settings"}


def test_the_cache_holds_what_would_be_drawn(
    tmp_path: Path, tiny_diffusers: Callable[..., Any], tiny_scheduler: Any
) -> None:
    """And two workers of `generate` make it, and then the student's."""
    teacher = Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))
    samples = SamplePlan.of(PROMPTS, CONFIG)
    plan = StepPlan.from_schedule(teacher.denoiser.schedule, 2, "renoise")
    models = make_models(teacher, teacher.denoiser, plan, CONFIG)
    for rank in range(2):
        help_draw(teacher, PROMPTS, CONFIG, tmp_path, rank=rank, world_size=2, progress=False)
    (store,) = tmp_path.iterdir()
    before = sorted(store.rglob("*"))
    for rank in range(2):
        help_draw(
            teacher,
            PROMPTS,
            replace(CONFIG, floor="fresh"),
            tmp_path,
            rank=rank,
            world_size=2,
            student=teacher.denoiser,
            plan=plan,
            progress=False,
        )
    kinds = [path.name.partition("-")[0] for path in tmp_path.iterdir()]
    assert sorted(kinds) == ["naive", "student", "teacher", "teacher"], "the other noise too"
    drawn = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(drawn) == 2 * 3
    kept, fresh = (Drawing(models, samples, place, False) for place in (tmp_path, None))
    with torch.no_grad():
        for number, rows in enumerate(torch.arange(12).split(5)):
            for name in models:
                for _ in range(2):
                    found = kept.latents(name, number, rows)
                    expected = fresh.latents(name, number, rows)
                    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert sorted(store.rglob("*")) == before
    assert drawn == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}


def test_a_student_needs_a_plan(tmp_path: Path, tiny_diffusers: Any, tiny_scheduler: Any) -> None:
    teacher = Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))
    with pytest.raises(ValueError, match="a student and no plan"):
        help_draw(
            teacher,
            PROMPTS,
            CONFIG,
            tmp_path,
            rank=0,
            world_size=1,
            student=teacher,
            progress=False,
        )
