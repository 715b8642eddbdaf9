"""evaluate() on a random pipeline: identities, collapse, the cache, independence of the batch size."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from nitrodistill.evaluation import EvaluateConfig, Extractor, evaluate
from nitrodistill.evaluation.discrepancy import Kernel
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.types import Condition, NoiseSchedule, PredictionType

PROMPTS = ["a red ring", "a blue circle", "a green square"]
QUICK = EvaluateConfig(
    num_samples=12, batch_size=5, num_inference_steps=2, cost_repeats=0, num_pictures=7
)


def features(images: Tensor) -> Tensor:
    return adaptive_avg_pool2d(images, 2).flatten(1)


def alignment(images: Tensor, prompts: Any) -> dict[str, Tensor]:
    return {
        "bright": images.mean((1, 2, 3)) > -2,
        "ring": torch.tensor(["ring" in p for p in prompts]),
    }


@pytest.fixture(scope="module")
def teacher(tiny_diffusers: Callable[..., Any], tiny_scheduler: Any) -> Pipeline:
    return Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))


def quick(teacher: Pipeline, student: Any, plan: StepPlan, **settings: Any) -> Any:
    settings = {"config": QUICK, "progress": False, **settings}
    return evaluate(teacher, student, plan, PROMPTS, features, **settings)


class Deaf:
    """Draws one picture a prompt: it never looks at its input."""

    prediction_type: PredictionType = "sample"

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.module: nn.Module = nn.Linear(1, 1)
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        text = condition["encoder_hidden_states"].mean((1, 2))
        return text[:, None, None, None].expand_as(x_t)


def test_the_teacher_itself_is_at_no_distance(teacher: Pipeline) -> None:
    schedule = teacher.denoiser.schedule
    student, plan = teacher.guided(QUICK.guidance), StepPlan.from_schedule(schedule, 2)
    found = quick(teacher, student, plan, alignment=alignment)
    scores = found.student
    for name in ("fd_teacher", "fd_latents", "fd_texture"):
        assert scores[name].value == pytest.approx(0, abs=1e-9)
    for name in ("edge_ratio", "high_frequency_ratio", "diversity"):
        assert scores[name].value == 1
    assert scores["alignment"].value == pytest.approx(1 / 3)
    assert scores["alignment@bright"].value == 1
    assert scores["alignment@ring"].value == pytest.approx(1 / 3)
    assert scores["alignment"].num_samples == 12
    assert found.floor("fd_teacher") > 0
    assert found.floor("fd_real") is None
    assert "real" not in found.models
    assert found.examples.images["teacher"].shape == (7, 3, 16, 16)
    assert torch.equal(found.examples.images["teacher"], found.examples.images["student"])
    assert len(found.examples.prompts) == 7
    assert found.examples.indices == tuple(range(7))


def test_an_untrained_student_is_the_naive_arm(teacher: Pipeline) -> None:
    plan = StepPlan.from_schedule(teacher.denoiser.schedule)
    student = teacher.denoiser.copy()
    student.module.train()
    found = quick(teacher, student, plan)
    assert found.student == found.models["naive"]
    assert found.student["fd_latents"].value > 0
    assert student.module.training, "the caller's mode is given back"
    assert quick(teacher, teacher, plan).student == found.student, "a pipeline is as good"


def test_a_deaf_student_has_no_diversity(teacher: Pipeline) -> None:
    plan = StepPlan.from_schedule(teacher.denoiser.schedule)
    found = quick(teacher, Deaf(teacher.denoiser.schedule), plan)
    assert found.student["diversity"].value < 1e-4


def test_an_extractor_without_a_kernel_has_every_other_distance(teacher: Pipeline) -> None:
    plan = StepPlan.from_schedule(teacher.denoiser.schedule)
    images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def kinds(kernel: Kernel | None) -> set[str]:
        extractor = Extractor("mine", features, kernel)
        settings = {"config": QUICK, "progress": False, "real_images": images}
        found = evaluate(teacher, teacher.denoiser, plan, PROMPTS, extractor, **settings)
        return {name for row in found.models.values() for name in row}

    assert kinds("cubic") - kinds(None) == {"kid_real", "kid_teacher"}
    assert kinds(None) < kinds("gaussian")


def test_the_batch_size_changes_nothing(teacher: Pipeline) -> None:
    plan = StepPlan.from_schedule(teacher.denoiser.schedule, 2, "renoise")
    small, large = (
        quick(teacher, teacher.denoiser, plan, config=replace(QUICK, batch_size=size))
        for size in (5, 12)
    )
    for name, value in small.table()["student"].items():
        assert large.table()["student"][name] == pytest.approx(value, rel=1e-3), name


def test_real_pictures_give_a_distance_and_a_floor(teacher: Pipeline) -> None:
    plan = StepPlan.from_schedule(teacher.denoiser.schedule)
    images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = quick(teacher, teacher.denoiser, plan, real_images=images)
    again = quick(teacher, teacher.denoiser, plan, real_images=lambda p, index: images[index])
    assert found.student["fd_real"].value > 0
    assert found.floor("fd_real") > 0
    assert found.models["real"]["edge_ratio"].value > 1, "noise has more edges"
    assert "fd_real" not in found.models["real"]
    assert again.models == found.models
    with pytest.raises(ValueError, match="at least 24"):
        quick(teacher, teacher.denoiser, plan, real_images=images[:23])


def test_an_interrupted_evaluation_goes_on(
    teacher: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second of three batches: neither the teacher nor that student's first batch is drawn again."""
    plan = StepPlan.from_schedule(teacher.denoiser.schedule, 3)
    fresh = replace(QUICK, floor="fresh")
    settings = {"config": fresh, "progress": False}
    expected = evaluate(teacher, teacher.denoiser, plan, PROMPTS, features, **settings)
    assert (expected.floor("fd_latents") or 0) > 0
    assert expected.floor("diversity") == pytest.approx(1, abs=0.2)
    seen = []

    def killed(images: Tensor) -> Tensor:
        seen.append(len(images))
        if len(seen) == 6:  # teacher, naive, student, other noise; teacher, naive
            raise KeyboardInterrupt
        return features(images)

    with pytest.raises(KeyboardInterrupt):
        evaluate(teacher, teacher.denoiser, plan, PROMPTS, killed, cache=tmp_path, **settings)

    calls: list[int] = []
    forward = teacher.denoiser.module.forward
    monkeypatch.setattr(
        teacher.denoiser.module,
        "forward",
        lambda *a, **k: calls.append(len(k["sample"])) or forward(*a, **k),
    )
    found = evaluate(teacher, teacher.denoiser, plan, PROMPTS, features, cache=tmp_path, **settings)
    assert calls == [2] + 3 * [2], "the last batch alone: naive in one step, student in three"
    for model, metrics in expected.models.items():
        for name, metric in metrics.items():
            assert found.value(model, name) == pytest.approx(metric.value, rel=1e-3, abs=1e-6), name
    calls.clear()
    quick(teacher, teacher.guided(2.0), plan, config=fresh, cache=tmp_path)
    assert calls == [10] * 3 + [10] * 3 + [4] * 3, "what is no plain denoiser is not kept"


def test_time_is_measured_for_every_arm(teacher: Pipeline) -> None:
    plan = StepPlan.from_schedule(teacher.denoiser.schedule)
    config = replace(QUICK, cost_repeats=1, cost_batch_size=2)
    found = quick(teacher, teacher.denoiser, plan, config=config)
    for name in ("teacher", "naive", "student"):
        scores = found.models[name]
        assert scores["gflops"].value > 0
        assert scores["peak_mb"].value > 0
        for metric in (scores["latency_ms"], scores["denoise_ms"], scores["pipeline_ms"]):
            assert 0 < metric.low <= metric.value <= metric.high


def test_pictures_of_unlike_resolutions_are_refused(teacher: Pipeline) -> None:
    plan = StepPlan.from_schedule(teacher.denoiser.schedule)
    with pytest.raises(
        ValueError, match="real pictures are 8 x 8 pixels and the teacher's 16 x 16"
    ):
        quick(teacher, teacher.denoiser, plan, real_images=torch.zeros(24, 3, 8, 8))


def test_a_student_that_diverged_is_named(teacher: Pipeline) -> None:
    student = teacher.denoiser.copy()
    plan = StepPlan.from_schedule(student.schedule)
    with torch.no_grad():
        next(student.module.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="the latents of the student hold NaN"):
        quick(teacher, student, plan)


def test_the_progress_bar_counts_images(
    teacher: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    plan = StepPlan.from_schedule(teacher.denoiser.schedule)
    quick(teacher, teacher.denoiser, plan, progress=True)
    assert "12/12" in capsys.readouterr().err
