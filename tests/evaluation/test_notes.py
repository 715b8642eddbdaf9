"""What could not be measured is said, with the reason; nothing is said of what was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from nitrodistill.evaluation import EvaluateConfig, Evaluation, Extractor, ImageFolder, evaluate
from nitrodistill.evaluation.catalogue import CATALOGUE
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan

QUICK = EvaluateConfig(
    num_samples=16, num_inference_steps=1, cost_repeats=0, num_pictures=0, bootstrap=2
)
EXTRACTOR = Extractor("mean", lambda images: images.mean((2, 3)))


@pytest.fixture(scope="module")
def teacher(tiny_diffusers: Callable[..., Any], tiny_scheduler: Any) -> Pipeline:
    return Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))


def measured(
    teacher: Pipeline, prompts: tuple[str, ...] = ("a red ring", "a blue circle"), **more: Any
) -> Evaluation:
    config = replace(QUICK, **more.pop("config", {}))
    student, plan = more.pop("student", teacher), StepPlan.from_schedule(teacher.denoiser.schedule)
    more = {"config": config, "progress": False, **more}
    return evaluate(teacher, student, plan, prompts, EXTRACTOR, **more)


def right(images: Tensor, prompts: Any) -> dict[str, Tensor]:
    return {"bright": images.mean((1, 2, 3)) > 0}


def test_nothing_is_said_where_nothing_is_missing(teacher: Pipeline) -> None:
    found = measured(
        teacher,
        alignment=right,
        text_score=lambda images, prompts: images.mean((1, 2, 3)),
        real_images=torch.rand(32, 3, 16, 16) * 2 - 1,
        training_latents=torch.randn(3, *teacher.latent_shape),
    )
    assert found.notes == ()
    for name, metric in found.student.items():
        assert metric.floor is not None, name
    assert found.settings["num_training_latents"] == 3


def test_few_samples(teacher: Pipeline) -> None:
    found = measured(teacher, config={"num_samples": 5})
    assert "precision" not in found.student
    assert found.notes == (
        "Precision, recall, density and coverage are left out: there are 5 pictures; they need at least 7.",
    )
    found = measured(teacher, config={"num_samples": 10})
    assert "precision" in found.student
    (note,) = found.notes
    assert note.startswith("No floor for precision, recall, density, coverage: half of the teacher")


def test_one_picture_a_prompt(teacher: Pipeline) -> None:
    prompts = tuple(
        f"a {size} {colour} ring" for size in ("large", "small") for colour in ("red", "blue")
    )
    few = {"num_samples": 4, "samples_per_prompt": 1}
    diversity, floors = measured(teacher, prompts, config=few).notes[1:]
    assert diversity == (
        "Diversity is left out: no prompt has two pictures; give more samples_per_prompt."
    )
    assert floors.startswith(
        "No floor for FD to teacher, FD on latents, texture-FD, colour-FD, KID to"
    )
    assert floors.endswith("pixel distance, SSIM: no prompt has two pictures; give more "
                           "samples_per_prompt, or floor fresh.")  # fmt: skip
    fresh = measured(teacher, prompts, config={**few, "floor": "fresh"})
    assert not any(note.startswith("No floor") for note in fresh.notes)


def test_one_prompt_has_no_other(teacher: Pipeline) -> None:
    def score(images: Tensor, prompts: Any) -> Tensor:
        return images.mean((1, 2, 3))

    found = measured(teacher, ("a red ring",), text_score=score, config={"floor": "fresh"})
    assert found.notes == (
        "No floor for CLIP score: it takes another prompt, and there is one alone.",
    )


def test_pictures_of_a_folder(teacher: Pipeline, tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (16, 16), (90 * i, 0, 0)).save(tmp_path / f"{i}.png")
    found = measured(teacher, alignment=right, real_images=ImageFolder(tmp_path))
    assert "alignment" not in found.models["real"]
    assert found.floor("alignment") == found.value("teacher", "alignment")
    first, second, third = found.notes
    assert first.startswith(
        "Precision, recall, density and coverage are left out: there are 3 pictures"
    )
    assert second == "The real pictures have no alignment: they belong to no prompt."
    assert third.startswith("No floor for FD to real, KID to real: half of the real pictures")


def test_latents_of_another_shape(
    teacher: Pipeline, tiny_diffusers: Any, tiny_scheduler: Any
) -> None:
    """A student with a VAE of its own: what compares latents is left out, the rest is measured."""
    pipe = tiny_diffusers(tiny_scheduler)
    student = Pipeline.from_diffusers(pipe)
    student.latent_shape = (4, 4, 4)
    student.decode = lambda latents, batch_size=64: teacher.decode(latents.repeat(1, 1, 2, 2))
    found = measured(
        teacher, student=student, training_latents=torch.randn(3, *teacher.latent_shape)
    )
    (note,) = found.notes
    assert note.startswith(
        "Latent distance, FD on latents, diversity and memorisation are left out"
    )
    for name in ("latent_distance", "fd_latents", "diversity", "nearest_ratio"):
        assert name not in found.student
        assert name == "latent_distance" or name in found.models["naive"]
    assert found.student["fd_teacher"].value > 0


def test_pictures_without_edges_and_below_the_window(teacher: Pipeline, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        teacher, "decode", lambda latents, batch_size=64: torch.zeros(len(latents), 3, 10, 10)
    )
    notes = measured(teacher).notes
    for label in ("Edge ratio", "Gradient energy ratio", "High-frequency ratio"):
        assert (
            f"{label} is left out: the teacher's pictures have none of it to compare with." in notes
        )
    assert "SSIM is left out: the pictures are 10 pixels, less than its window of 11." in notes


def test_every_metric_says_what_its_floor_is() -> None:
    for name, about in CATALOGUE.items():
        assert about.floor, name
        assert about.floor.startswith("none: ") == (about.group == "cost"), name
