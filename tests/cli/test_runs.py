"""A run is opened from any working directory, after it was moved, and after its data is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from nitrodistill.cli.main import main
from nitrodistill.cli.runs import (
    open_run,
    preview_prompts,
    prompts_of,
    student_plan,
    teacher_settings,
)
from nitrodistill.method import Cast
from nitrodistill.methods import DMD2, DMD2Config
from nitrodistill.training import load_run_recipe


@pytest.fixture
def project(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose recipe has relative paths, with a trained run in it; the working directory is elsewhere."""
    root, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(place.teacher, root / "teacher")
    shutil.copytree(place.pairs, root / "pairs")
    paths = {"teacher": "./teacher", "pairs": "pairs", "output": "runs/a"}
    recipe = yaml.safe_load(place.recipe.read_text()) | paths
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(root)
    assert main(["train", "--config", "recipe.yaml", "--quiet"]) == 0
    monkeypatch.chdir(elsewhere)
    return root


def _found(run: Path) -> list[str | None]:
    recipe = load_run_recipe(run)
    return [recipe.teacher, recipe.pairs]


def test_relative_paths_are_found_from_where_train_was_started(project, tmp_path):
    run, moved = project / "runs" / "a", tmp_path / "moved"
    own = [str(project / "teacher"), str(project / "pairs")]
    assert _found(run) == own
    shutil.copytree(run, moved)
    assert _found(moved) == own, "a copy of the run alone"
    other = tmp_path / "project 2"
    shutil.copytree(project, other)
    theirs = [str(other / "teacher"), str(other / "pairs")]
    assert _found(other / "runs" / "a") == theirs, "a copy of the project has data of its own"
    assert open_run("../moved").student.recipe.teacher == own[0]


def test_a_table_of_prompts_is_found_too(project):
    run = project / "runs" / "a"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (project / "texts.csv").write_text("caption\na red circle\n")
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"prompts": "texts.csv:caption"}))
    assert load_run_recipe(run).prompts == f"{project / 'texts.csv'}:caption"


def test_a_run_that_moved_goes_on(project, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other"
    project.rename(other)
    monkeypatch.chdir(other)
    assert main(["train", "--config", "recipe.yaml", "--quiet", "--steps", "3"]) == 0
    assert "trained to step 3" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_a_run_without_its_data_is_exported_and_evaluated(project, tmp_path, capsys):
    prompts = prompts_of(open_run(str(project / "runs" / "a")), None)
    shutil.rmtree(project / "pairs")
    run = str((project / "runs" / "a").rename(tmp_path / "run"))
    opened = open_run(run)
    assert preview_prompts(opened) == prompts
    assert teacher_settings(opened) == (2, 2.0), "as it made the pairs"
    assert main(["export", "--run", run, "--output", "pipeline"]) == 0
    assert json.dumps(prompts[0]) in capsys.readouterr().out
    assert main(["evaluate", "--run", run]) == 2
    assert "give prompts of your own with --prompts" in capsys.readouterr().err
    Path("mine.txt").write_text(prompts[1])
    few = ["--num_samples", "4", "--cost_repeats", "0"]
    assert main(["evaluate", "--run", run, "--prompts", "mine.txt", *few]) == 0
    settings = json.loads((tmp_path / "run" / "metrics.json").read_text())["settings"]
    assert (settings["num_inference_steps"], settings["guidance"]) == (2, 2.0)


def test_a_teacher_that_moved_is_named(project, tmp_path, capsys):
    teacher, run = tmp_path / "there", str(project / "runs" / "a")
    (project / "teacher").rename(teacher)
    assert main(["export", "--run", run, "--output", "out"]) == 2
    said = capsys.readouterr().err
    assert f"looked for in {project}, {Path.cwd()}; say where it is now with --teacher" in said
    assert open_run(run, teacher=str(teacher)).student.recipe.teacher == str(teacher)


@pytest.mark.parametrize(("own", "asked"), [(4, 1), (1, 4)])
def test_dmd2_is_drawn_and_exported_in_the_steps_that_it_was_trained_for(tiny_denoiser, own, asked):
    critic = {"critic": tiny_denoiser.copy()}
    cast = Cast.of(tiny_denoiser, tiny_denoiser.copy(), critic)
    method = DMD2.build(DMD2Config(num_inference_steps=own), cast)
    student: Any = SimpleNamespace(denoiser=method.student, plan=method.plan)
    assert student_plan(student, None) is student_plan(student, own) is method.plan
    told = (
        f"the number of steps is {asked}, but this student was trained for its own {own}, and only"
    )
    with pytest.raises(ValueError, match=told):
        student_plan(student, asked)
