"""The look at the student: the numbers of an own calculation, and no trace in the training."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from nitrodistill.method import Draws
from nitrodistill.methods import LADD, LADDConfig
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.training import Trainer
from nitrodistill.training.probe import ROWS, Probe, teacher_latents
from nitrodistill.training.stages import run_recipe
from nitrodistill.types import Batch, Condition, Latents, Pairs

REGRESSION = LADDConfig(adversarial_weight=0.0)


def stream(number: int) -> Batch:
    index = torch.arange(4 * number, 4 * number + 4)
    draws = Draws(5, 0, index)
    x0, noise = (draws.normal(name, (4, 8, 8)) for name in ("x0", "eps"))
    condition = Condition({"encoder_hidden_states": draws.normal("text", (5, 16))}, index)
    return Batch(index, Pairs(x0, noise, condition))


@pytest.fixture
def student(tiny_denoiser):
    return copy.deepcopy(tiny_denoiser)


def test_the_numbers_are_those_of_an_own_calculation(student):
    """One step from pure noise: x0 is read off the prediction, v of zero terminal SNR or eps."""
    batch, plan = stream(3), StepPlan.from_schedule(student.schedule)
    found = Probe(student, plan, seed=7, stage=2, reference=None)(batch, step=11)
    draws = Draws(7, 11, batch.index, stage=2, purpose="diagnostics")
    (step,) = plan.steps

    @torch.no_grad()
    def drawn(name: str, condition: Condition) -> np.ndarray:
        x_t = step.input.sigma.float() * draws.normal(f"{name}.0", (4, 8, 8))
        said = student(x_t, step.t, condition)
        alpha, sigma = (float(s) for s in step.output)
        kind = student.prediction_type
        x0 = alpha * x_t - sigma * said if kind == "v_prediction" else (x_t - sigma * said) / alpha
        return x0.numpy()

    c, z = batch.pairs.condition, batch.pairs.x0.numpy()
    x, y, w = drawn("first", c), drawn("second", c), drawn("first", c.index([3, 0, 1, 2]))
    apart = math.sqrt(
        np.mean([(a - b) ** 2 for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
    )
    expected = {
        "x0/std.2": x[:, 2].std() / z[:, 2].std(),
        "x0/mean.1": (x[:, 1].mean() - z[:, 1].mean()) / z[:, 1].std(),
        "x0/diversity": math.sqrt(((x - y) ** 2).mean()) / apart,
        "x0/prompt_effect": math.sqrt(((x - w) ** 2).mean()) / apart,
    }
    assert {n: found[n].item() for n in expected} == pytest.approx(expected, rel=1e-3)
    assert set(found) == {f"x0/{k}.{c}" for k in ("std", "mean") for c in range(4)} | {
        "x0/saturated", "x0/variety", "x0/diversity", "x0/prompt_effect",
    }  # fmt: skip


def test_training_is_bit_for_bit_what_it_is_without_a_look(tiny, tiny_denoiser, tmp_path):
    weights = []
    for every in (0, 1):
        student = copy.deepcopy(tiny_denoiser)
        method = LADD(student, None, StepPlan.from_schedule(student.schedule), REGRESSION)
        config = tiny.config(steps=3, log_every=1, diagnose_every=every)
        config.optimizers.pop("critic")
        trainer = Trainer(method, stream, config)
        looks = [any(n.startswith("x0/") for n in s.parts) for s in trainer.fit()]
        assert looks == [bool(every)] * 3
        weights.append(tiny.weights(student.module))
    assert torch.equal(*weights)


def test_prompts_alone_are_compared_with_the_teacher_that_is_drawn_once(student):
    batch, asked = stream(0), []

    def reference() -> Latents:
        asked.append(1)
        return Latents(2 * batch.pairs.x0[:3], batch.pairs.condition.index([0, 1, 2]))

    prompts = Batch(batch.index, prompts=batch.pairs.condition)
    plan = StepPlan.from_schedule(student.schedule)
    probe = Probe(student, plan, 0, 0, reference)
    found = [probe(prompts, step) for step in (1, 2)]
    assert asked == [1]
    assert found[0]["x0/variety"] != found[1]["x0/variety"]
    assert Probe(student, plan, 0, 0, None)(prompts, 1) == {}


def test_a_method_without_a_student_that_draws_has_no_numbers(tiny):
    assert Probe.of(tiny.Method(), 0, 0, None) is None


def test_a_method_that_reads_prompts_alone_has_them_in_a_recipe(
    make_matching, tiny_diffusers, tiny_scheduler
):
    teacher = Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))
    recipe = make_matching("recipe", steps=2, log_every=2)
    last = list(run_recipe(recipe, teacher))[-1]
    assert 0 < last.metrics()["x0/variety"] < math.inf
    latents = teacher_latents(teacher, ["a small red circle on a black background"] * 9, 2, 2.0)
    assert latents.x0.shape == (ROWS, *teacher.latent_shape)
    alone = teacher_latents(teacher, ["a small red circle on a black background"], 2, 2.0)
    assert torch.equal(
        alone.x0, latents.x0
    )  # of an unconditional teacher there is the empty prompt alone
