"""The examples run, and the plain loop is the trainer."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nitrodistill.cli.demo import toy_recipe
from nitrodistill.cli.teachers import load_teacher
from nitrodistill.data import PairStore
from nitrodistill.training.stages import load_student, run_recipe

EXAMPLES = Path(__file__).parent.parent / "examples"
STEPS, PAIRS = 18, 48


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plain_loop_is_short():
    assert len((EXAMPLES / "plain_loop.py").read_text().splitlines()) <= 60


def test_the_plain_loop_reaches_the_trainers_loss(tmp_path):
    """Equal seed, pairs and steps: held-out reconstruction within 2%."""
    torch.set_num_threads(1)
    example = load("plain_loop")
    plain = example.main(STEPS, PAIRS, str(tmp_path))

    pipeline = load_teacher("toy")
    recipe = toy_recipe(str(tmp_path / "pairs"), str(tmp_path / "run"), STEPS)
    stage = recipe.stages[0]
    method = replace(stage.method, warmup_steps=STEPS // 3, discriminator_range=(0.0, 0.75))
    trainer = replace(
        stage.trainer, lr_decay_from=1.0, max_grad_norm=None, ema_decay=0.0, preview_every=0
    )
    optimizers = {n: replace(o, weight_decay=0.01) for n, o in trainer.optimizers.items()}
    trainer = replace(trainer, optimizers=optimizers)
    recipe = replace(recipe, stages=[replace(stage, method=method, trainer=trainer)])
    for _ in run_recipe(recipe, pipeline):
        pass
    student = load_student(recipe.output, pipeline, average=False)
    held_out = PairStore.open(tmp_path / "held_out")
    ours = example.held_out_loss(student.denoiser, student.plan, held_out)
    assert ours == pytest.approx(plain, rel=0.02)
