"""A run, its export and its LoRA draw the same picture from the same seed, and the teacher its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from nitrodistill.cli import runs
from nitrodistill.cli.arguments import Parser, given_of, parse
from nitrodistill.cli.main import main
from nitrodistill.cli.pictures import draw, load_models
from nitrodistill.method import Draws
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.teachers import TeacherSettings
from nitrodistill.training import load_student

PROMPT = "a small red circle on a black background"
FAST = ("--stages.trainer.optimizers.student.learning_rate", "0.1")


def _train(place: Any, *options: str) -> str:
    run = str(place.root / "run")
    assert main(["train", "--config", str(place.recipe), "--quiet", *FAST, *options]) == 0
    return run


def _drawn(path: str | Path, name: str = "student", **options: Any) -> Tensor:
    return draw(load_models(path, **options)[name], PROMPT, 7)[0]


@pytest.fixture
def teacher_picture(place: Any) -> Tensor:
    """Drawn by hand: two steps at scale 2, as the pairs were made."""
    pipeline = Pipeline.load(place.teacher)
    noise = Draws(7, 0, torch.tensor([0]), purpose="draw").normal("noise", pipeline.latent_shape)
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule, 2)
    with torch.no_grad():
        x0 = sample(pipeline.guided(2.0), plan, noise, pipeline.encode_prompt([PROMPT]))
        return pipeline.decode(x0)[0]


@pytest.mark.usefixtures("here")
def test_a_run_and_what_was_exported_from_it(place, teacher_picture):
    run, lora = _train(place, "--stages.lora.rank", "2"), str(place.root / "lora")
    pipeline = str(place.root / "pipeline")
    assert main(["export", "--run", run, "--output", pipeline]) == 0
    assert main(["export", "--run", run, "--output", lora, "--lora"]) == 0
    teacher = Pipeline.load(place.teacher)
    student = load_student(run, teacher)
    noise = Draws(7, 0, torch.tensor([0]), purpose="draw").normal("noise", teacher.latent_shape)
    with torch.no_grad():
        x0 = sample(student.denoiser, student.plan, noise, teacher.encode_prompt([PROMPT]))
    expected = teacher.decode(x0)[0]
    assert not torch.allclose(expected, teacher_picture, atol=0.05)
    for path in (run, pipeline, lora):
        torch.testing.assert_close(_drawn(path), expected, atol=1e-4, rtol=0)
        settings = {} if path == run else {"teacher_steps": 2, "guidance": 2.0}
        theirs = _drawn(path, "teacher", compare=True, **settings)
        torch.testing.assert_close(theirs, teacher_picture, atol=1e-4, rtol=0)


def test_pictures_and_the_sheet(place, capsys):
    run, output = _train(place), place.root / "drawings"
    place.prompts.write_text(PROMPT)
    command = ["draw", "--model", run, "a blue ring", "--prompts", str(place.prompts)]
    more = ["--num_images", "2", "--seed", "6", "--beside", "teacher", "--output", str(output)]
    capsys.readouterr()
    assert main([*command, *more]) == 0
    said = capsys.readouterr().out
    assert "student: " in said
    assert "ms a picture in 1 step (median of 4" in said
    names = sorted(file.name for file in output.iterdir())
    every = [
        f"{n:04d}-seed-{s}-{m}.png" for n in (0, 1) for s in (6, 7) for m in ("student", "teacher")
    ]
    assert names == [*every, "sheet.png"]
    pixels = torch.tensor(list(Image.open(output / "0001-seed-7-student.png").tobytes()))
    levels = ((_drawn(run) + 1) * 127.5).round().permute(1, 2, 0).flatten()
    assert torch.equal(pixels, levels.long())
    with Image.open(output / "sheet.png") as sheet:
        assert sheet.size[0] >= 2 * 160


def test_what_is_given_wins_over_the_recipe_be_it_a_default(place, monkeypatch):
    run, asked = _train(place, "--teacher_settings.offload_text", "true"), []
    plain = runs.load_teacher
    monkeypatch.setattr(runs, "load_teacher", lambda n, s: (asked.append(s), plain(n, s))[1])
    load_models(run)
    load_models(run, {"offload_text": False})
    assert [one.offload_text for one in asked] == [True, False]
    given = parse(Parser("draw", "", TeacherSettings), ["--weights_dtype", "float32"])
    assert given_of(given, TeacherSettings) == {"weights_dtype": "float32"}


def test_a_picture_that_is_not_finite_is_an_error(place):
    model = load_models(_train(place))["student"]
    next(model.denoiser.module.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="holds NaN or infinity; the network has diverged"):
        draw(model, PROMPT, 0)


def test_what_cannot_be_drawn(place, capsys):
    run = _train(place)
    for words, sentence in [
        (["draw", "--model", str(place.root)], "there is nothing to draw"),
        (["draw", "--model", str(place.pairs), "a"], "is neither a run"),
        (
            ["draw", "--model", run, "a", "--steps", "4"],
            "the number of steps is 4, but this student",
        ),
        (["draw", "--model", run, "a", "--num_images", "0"], "num_images is 0; it must be"),
        (["draw", "--model", run, "a", "--shuffle", "1"], "--shuffle means nothing here"),
        (["draw", "--model", run, "a", "--guidance", "2"], "--guidance means nothing here"),
        (["draw", "--model", run, "a", "--teacher_steps", "0", "--beside", "teacher"], "0"),
    ]:
        assert main(words) == 2
        assert sentence in capsys.readouterr().err
