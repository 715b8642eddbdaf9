"""The examples run, and the plain loop is the trainer."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nitrodistill.data import PairStore
from nitrodistill.demo.recipes import toy_recipe
from nitrodistill.models import Pipeline
from nitrodistill.teachers import load_teacher
from nitrodistill.training.recipe import load_recipe
from nitrodistill.training.run import load_student
from nitrodistill.training.stages import run_recipe
from nitrodistill.training.student import Student

EXAMPLES = Path(__file__).parent.parent / "examples"
STEPS, PAIRS = 16, 48


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "recipe", sorted((EXAMPLES / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_recipes_load(recipe):
    assert load_recipe(recipe).stages


@pytest.mark.parametrize(("name", "lines"), [("plain_loop", 60), ("any_loop", 40)])
def test_the_loops_are_short(name, lines):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= lines


def test_the_plain_loop_reaches_the_trainers_loss(tmp_path):
    """The demo's recipe at a constant rate, by the trainer: the same held-out reconstruction."""
    example = load("plain_loop")
    plain = example.main(STEPS, PAIRS, str(tmp_path))

    pipeline = load_teacher("toy")
    recipe = toy_recipe(str(tmp_path / "pairs"), str(tmp_path / "run"), STEPS)
    stage = recipe.stages[0]
    constant = {
        name: replace(optimizer, lr_decay_from=1.0)
        for name, optimizer in stage.trainer.optimizers.items()
    }
    trainer = replace(stage.trainer, optimizers=constant, preview_every=0)
    recipe = replace(recipe, stages=[replace(stage, trainer=trainer)])
    for _ in run_recipe(recipe, pipeline):
        pass
    student = load_student(recipe.output, pipeline, average=False)
    held_out = PairStore.open(tmp_path / "held_out")
    ours = example.held_out_loss(student.denoiser, student.plan, held_out)
    assert ours == pytest.approx(plain, rel=1e-6)


def test_any_loop_learns():
    history = load("any_loop").main(steps=14, batch_size=8)
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize("name", ["accelerate_loop", "lightning_loop"])
def test_loops_of_others_train_and_keep_the_student(name, tmp_path):
    if name == "lightning_loop":
        pytest.importorskip("lightning")
    history = load(name).main(4, 48, str(tmp_path / "pairs"))
    assert history[-1] < history[2]
    student = Student.from_pretrained(tmp_path / "pairs-student", load_teacher("toy").denoiser)
    assert len(student.plan) == 1


def test_the_web_page_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"needs gradio.*pip install gradio"):
        load("app").build("runs/student")


def test_the_web_page_is_built_where_gradio_is(place):
    pytest.importorskip("gradio")
    for _ in run_recipe(load_recipe(place.recipe), Pipeline.load(place.teacher)):
        pass
    assert "Draw" in str(load("app").build(str(place.root / "run")).config)
