"""A LoRA student through a whole run: trained, resumed, loaded, measured; and what it shares."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from unittest import mock

import pytest
import torch

from nitrodistill.evaluation import EvaluateConfig
from nitrodistill.methods import LADDConfig
from nitrodistill.models import LoRAConfig, Pipeline, merged
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.sampling import StepPlan
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.training import (
    OptimizerConfig,
    find_checkpoints,
    load_denoiser,
    load_recipe,
    load_student,
    run_recipe,
)
from nitrodistill.training.record import plan_of, student_record


@pytest.fixture
def pipeline(tiny_diffusers, tiny_scheduler):
    return Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))


@pytest.fixture
def recipe(make_recipe):
    lora = LoRAConfig(rank=2, alpha=3.0)
    return make_recipe(LADDConfig(updates="shared"), 1e-2, lora, steps=3, checkpoint_every=1)


def _draw(denoiser, pipeline):
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return denoiser(x_t, torch.tensor(400), pipeline.encode_prompt(["a large blue ring"] * 2))


def _means(images):
    return images.mean((2, 3))


def test_the_student_is_a_role_and_the_teacher_stays_itself(tiny, recipe, pipeline):
    before, drawn = fingerprint(pipeline.denoiser.module), _draw(pipeline.denoiser, pipeline)
    seen: list[torch.Tensor] = []

    def evaluate(denoiser, plan):
        assert denoiser.network is pipeline.denoiser.module, "one network in memory"
        seen.append(_draw(denoiser, pipeline))
        return {"x": 0.0}

    states = list(run_recipe(tiny.changed(recipe, evaluate_every=3), pipeline, evaluate=evaluate))
    assert states[-1].active == ("student", "discriminator")
    assert load_recipe(f"{recipe.output}/recipe.yaml").stages[0].lora == recipe.stages[0].lora

    held = find_checkpoints(Path(recipe.output))[0]
    for name in ("student", "student.ema"):
        tensors = held.tensors(name)
        assert tensors
        assert all(".lora_" in weight for weight in tensors), "the trained weights alone"
    average = load_student(recipe.output, pipeline).denoiser
    raw = load_student(recipe.output, pipeline, average=False).denoiser
    assert torch.equal(_draw(average, pipeline), seen[0]), "what was measured was the average"
    ours = [_draw(denoiser, pipeline) for denoiser in (average, raw, pipeline.denoiser)]
    assert not torch.allclose(ours[0], ours[1])
    assert not torch.allclose(ours[0], ours[2])
    assert torch.equal(ours[2], drawn)
    assert fingerprint(pipeline.denoiser.module) == before
    torch.testing.assert_close(_draw(merged(average), pipeline), ours[0], rtol=1e-4, atol=1e-5)


def test_resumed_ends_bit_equal_in_a_pipeline_that_is_new_and_in_one_that_is_not(
    tiny, recipe, pipeline, tiny_diffusers, tiny_scheduler, tmp_path
):
    whole = tiny.changed(recipe, tmp_path / "whole")
    list(run_recipe(whole, pipeline))
    next(run_recipe(recipe, pipeline))
    assert next(iter(run_recipe(recipe, pipeline))).step == 2
    new = Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))
    assert [state.step for state in run_recipe(recipe, new)] == [3]
    one, other = (load_student(run, new).denoiser for run in (whole.output, recipe.output))
    assert torch.equal(_draw(one, new), _draw(other, new))
    assert fingerprint(one.module) == fingerprint(other.module)


def test_a_second_stage_goes_on_with_the_role_and_a_whole_copy_has_none(recipe, pipeline, tmp_path):
    (first,) = recipe.stages
    still = dataclasses.replace(
        first.trainer,
        optimizers={
            **first.trainer.optimizers,
            "student": OptimizerConfig(1e-30, ema_decay=0.5),
        },
    )
    second = dataclasses.replace(first, trainer=still, student="previous")
    list(run_recipe(dataclasses.replace(recipe, stages=[first, second]), pipeline))
    ended = find_checkpoints(tmp_path / "run", 0)[0].tensors("student.ema")
    taken = find_checkpoints(tmp_path / "run", 1)[0].tensors("student.ema")
    assert all(torch.equal(ended[name], taken[name]) for name in ended)

    plain = dataclasses.replace(
        recipe, output=str(tmp_path / "plain"), stages=[dataclasses.replace(first, lora=None)]
    )
    list(run_recipe(plain, pipeline))
    names = find_checkpoints(tmp_path / "plain")[0].tensors("student").keys()
    assert not any("lora" in name or "base_layer" in name for name in names)


def test_bf16_shares_one_copy_and_trains_float32_roles(tiny, recipe, pipeline):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # the precision is a singleton of Accelerate's
    networks = []

    def evaluate(denoiser, plan):
        networks.append(denoiser.network)
        return {"x": 0.0}

    half = tiny.changed(recipe, mixed_precision="bf16", evaluate_every=3)
    list(run_recipe(half, pipeline, evaluate=evaluate))
    AcceleratorState._reset_state()
    kinds = {p.dtype for name, p in networks[0].named_parameters() if ".lora_" not in name}
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in pipeline.denoiser.module.parameters()} == {torch.float32}
    student = load_student(recipe.output, pipeline).denoiser
    assert {p.dtype for p in student.module.parameters()} == {torch.float32}
    assert student.network is pipeline.denoiser.module
    assert not torch.allclose(_draw(student, pipeline), _draw(pipeline.denoiser, pipeline))


def test_gradient_checkpointing_changes_nothing_but_memory(tiny, recipe, pipeline, tmp_path):
    list(run_recipe(recipe, pipeline))
    other = tiny.changed(recipe, tmp_path / "other", gradient_checkpointing=True)
    list(run_recipe(other, pipeline))
    one, two = (load_student(run, pipeline).denoiser for run in (recipe.output, other.output))
    torch.testing.assert_close(_draw(one, pipeline), _draw(two, pipeline), rtol=0, atol=1e-5)


def test_it_is_measured_as_what_it_is(tiny, recipe, pipeline):
    """The caches of an evaluation know students by their fingerprint, and weights_mb counts the base once."""
    from nitrodistill.evaluation import evaluate

    list(run_recipe(recipe, pipeline))
    found = load_student(recipe.output, pipeline)
    raw = load_student(recipe.output, pipeline, average=False)
    prints = {fingerprint(d.module) for d in (found.denoiser, raw.denoiser, pipeline.denoiser)}
    assert len(prints) == 3
    config = EvaluateConfig(num_samples=4, batch_size=4, num_inference_steps=2, cost_repeats=1)
    numbers = evaluate(pipeline, found.denoiser, found.plan, tiny.prompts, _means, config=config)
    base = sum(p.nbytes for n, p in pipeline.denoiser.module.named_parameters() if "lora_" not in n)
    role = sum(p.nbytes for p in found.denoiser.module.parameters())
    assert numbers.models["teacher"]["weights_mb"].value == pytest.approx(base / 1e6)
    assert numbers.student["weights_mb"].value == pytest.approx((base + role) / 1e6)


def test_what_does_not_go_is_said_before_anything_is_written(recipe, pipeline, tmp_path):
    (stage,) = recipe.stages
    with pytest.raises(ValueError, match=r"FSDP2 does not reach .* prepare it with DDP"):
        dataclasses.replace(stage, trainer=dataclasses.replace(stage.trainer, parallel="fsdp"))
    wrong = dataclasses.replace(stage, lora=LoRAConfig(targets=("to_qq",)))
    for stages in ([wrong], [stage, wrong]):
        with pytest.raises(ValueError, match=r"target 'to_qq' names no .* nearest are"):
            run_recipe(dataclasses.replace(recipe, stages=stages), pipeline)
    assert not (tmp_path / "run").exists()
    other = dataclasses.replace(stage, student="previous", lora=LoRAConfig(rank=5))
    with pytest.raises(ValueError, match=r"stage 1 goes on .* give both the same rank"):
        dataclasses.replace(recipe, stages=[stage, other])
    next(run_recipe(recipe, pipeline))
    changed = dataclasses.replace(stage, lora=LoRAConfig(rank=4))
    with pytest.raises(ValueError, match=r"another recipe \(stages.0.lora.rank was 2, now 4"):
        run_recipe(dataclasses.replace(recipe, stages=[changed]), pipeline)


def test_a_lora_role_on_another_network_is_refused(recipe, pipeline, tiny_denoiser):
    list(run_recipe(recipe, pipeline))
    with pytest.raises(ValueError, match="of another network than this teacher's"):
        load_student(recipe.output, Pipeline(pipeline.diffusers, tiny_denoiser))


def test_any_role_of_a_checkpoint_can_be_loaded(make_matching, pipeline, tmp_path):
    """Without its method: weights or average, in the network that it was."""
    list(run_recipe(make_matching("recipe", steps=2), pipeline))
    (held,) = find_checkpoints(tmp_path / "run")
    for role, average, file in [
        ("critic", True, "critic"),
        ("student", True, "student.ema"),
        ("student", False, "student"),
    ]:
        loaded = load_denoiser(held, pipeline.denoiser, role, average=average)
        assert loaded.network is not pipeline.denoiser.network
        assert not loaded.module.training
        weights = loaded.module.state_dict()
        assert all(torch.equal(weights[n], value) for n, value in held.tensors(file).items())
    for role in ("critc", "heads", "target"):
        with pytest.raises(
            ValueError, match=rf"no network of the role {role!r}; it has student, critic\."
        ):
            load_denoiser(held, pipeline.denoiser, role)


def test_a_checkpoint_that_does_not_say_how_its_student_samples(recipe, pipeline, monkeypatch):
    next(run_recipe(recipe, pipeline))
    (held,) = find_checkpoints(Path(recipe.output))
    plan = plan_of(held)
    assert plan == load_student(recipe.output, pipeline).plan
    assert plan.steps[0].t.dtype == torch.int64
    monkeypatch.setattr(type(held), "state", lambda self: {})
    with pytest.raises(ValueError, match="does not say how its student samples: an older version"):
        plan_of(held)


def test_a_plan_goes_round_bit_for_bit(tiny_denoiser):
    """Through JSON, also of timesteps that are no whole numbers."""
    schedules = (tiny_denoiser.schedule, RectifiedFlow())
    for plan in (StepPlan.from_schedule(s, n, "renoise") for s in schedules for n in (1, 3)):
        state = json.loads(json.dumps({"student": student_record(tiny_denoiser, plan)}))
        again = plan_of(mock.Mock(**{"state.return_value": state}))
        assert again.transition == plan.transition
        for one, other in zip(plan.steps, again.steps, strict=True):
            numbers = [(s.t, *s.input, *s.output) for s in (one, other)]
            assert all(torch.equal(a, b) for a, b in zip(*numbers, strict=True))
            assert all(a.dtype == b.dtype for a, b in zip(*numbers, strict=True))
