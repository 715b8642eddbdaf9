"""Latent consistency distillation: the example's loss, its own options, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from examples.lcm import LCM, LCMConfig
from nitrodistill.method import Cast, Draws
from nitrodistill.methods import find_method
from nitrodistill.methods.consistency import Consistency, ConsistencyConfig
from nitrodistill.models import DiffusersDenoiser, Guided, add_lora
from nitrodistill.models.guidance import EmbeddedGuidance
from nitrodistill.sampling import ode_step, predict_x0
from nitrodistill.types import Batch, Pairs


@pytest.fixture
def networks(tiny_denoiser):
    """Teacher, student and target, all different."""
    made = {name: tiny_denoiser.copy() for name in ("teacher", "student", "target")}
    for name, scale in (("student", 1.1), ("target", 0.9)):
        torch._foreach_mul_([p.data for p in made[name].module.parameters()], scale)
    return made


@pytest.fixture
def batch(tiny_condition, generator):
    z, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    return Batch(torch.arange(3), Pairs(z, noise, tiny_condition))


def test_at_one_scale_it_is_the_example(networks, batch, tiny_condition):
    """examples/lcm.py was written from the equations apart, and is checked against diffusers' DDIM."""
    cast = Cast(networks.__getitem__, tiny_condition.index([0]))
    ours = Consistency.build(ConsistencyConfig(grid_steps=40, guidance=2.5), cast)
    theirs = LCM.build(LCMConfig(grid_steps=40, guidance=2.5), cast)
    assert find_method("consistency") is Consistency
    assert ours.plan == theirs.plan
    for step in range(2):
        draws = Draws(0, step, batch.index)
        ((_, one),), ((_, other),) = (m.losses(batch, ("student",), draws) for m in (ours, theirs))
        assert torch.equal(one.parts["consistency"], other.parts["consistency"])
    assert {n: f.follows for n, f in ours.frozen().items()} == {"teacher": "", "target": "student"}
    assert ours.frozen()["target"].decay == 0.95


def test_without_a_follower_the_target_is_the_student_itself(networks, batch, tiny_condition):
    cast = Cast(networks.__getitem__, tiny_condition.index([0]))
    method = Consistency.build(ConsistencyConfig(grid_steps=40, target_decay=0), cast)
    assert list(cast.taken) == ["teacher", "student"]
    assert list(method.frozen()) == ["teacher"]
    same = Cast({**networks, "target": networks["student"]}.__getitem__, cast.empty)
    follower = Consistency.build(ConsistencyConfig(grid_steps=40), same)
    draws = Draws(0, 0, batch.index)
    ((_, one),), ((_, other),) = (m.losses(batch, ("student",), draws) for m in (method, follower))
    assert torch.equal(one.total, other.total)


def test_the_scale_of_guidance_is_drawn_and_told(networks, batch, tiny_condition):
    empty = tiny_condition.index([0])
    cast = Cast(networks.__getitem__, empty)
    config = ConsistencyConfig(guidance_range=(2.0, 6.0), guidance=4.0)
    method = Consistency.build(config, cast)
    student, target, teacher = (networks[n] for n in ("student", "target", "teacher"))
    assert student.extra_inputs == target.extra_inputs == {"guidance": 4.0}
    for network, value in ((student, 0.02), (target, -0.02)):
        network.network.time_embedding.cond_proj.weight.data.fill_(value)
    noise = batch.pairs.noise
    values = {"t": torch.tensor([0.01, 0.5, 0.8]), "guidance": torch.tensor([0.0, 0.25, 0.75])}
    draws = SimpleNamespace(uniform=values.__getitem__, normal=lambda *args: noise)
    ((_, terms),) = method.losses(batch, ("student",), draws)
    grid, after = method._grid, method._after
    for row, (place, scale) in enumerate(zip((0, 20, 32), (2.0, 3.0, 5.0), strict=True)):
        c, rows = tiny_condition.index([row]), slice(row, row + 1)
        step, later = grid.steps[place], after.steps[place]
        x = step.input.mix(batch.pairs.x0[rows], noise[rows])
        nearer = ode_step(Guided(teacher, scale, empty), step, later, x, c)
        wanted = predict_x0(EmbeddedGuidance(target, scale), later, nearer, c)
        seen = predict_x0(EmbeddedGuidance(student, scale), step, x, c)
        expected = ((seen - wanted).square() + 1e-6).sqrt().sub(1e-3).mean()
        torch.testing.assert_close(
            terms.parts["consistency"][row], expected.detach(), rtol=1e-4, atol=1e-6
        )


def test_a_lora_student_learns_at_one_scale(tiny_denoiser, batch, tiny_condition):
    empty = tiny_condition.index([0])
    student = add_lora(tiny_denoiser, "student")
    for name, weight in student.module.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.01)
    cast = Cast.of(tiny_denoiser, student, empty=empty)
    method = Consistency.build(ConsistencyConfig(target_decay=0), cast)
    ((_, terms),) = method.losses(batch, ("student",), Draws(0, 0, batch.index))
    terms.total.backward()
    assert any(bool(p.grad.abs().sum()) for p in student.module.parameters())
    assert isinstance(method.teacher, DiffusersDenoiser)
    with pytest.raises(ValueError, match=r"the student is a LoRA role"):
        Consistency.build(ConsistencyConfig(target_decay=0, guidance_range=(1, 5)), cast)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_inference_steps": 3}, r"num_inference_steps is 3; it must divide grid_steps, 40"),
        ({"target_decay": 1.0}, r"target_decay is 1\.0; it must be in \[0, 1\)"),
        ({"distance": "l3"}, r"distance is 'l3'"),
        ({"guidance": 0.0}, r"guidance is 0\.0; it must be at least 1"),
    ],
)
def test_wrong_settings_are_told(settings, words):
    with pytest.raises(ValueError, match=words):
        ConsistencyConfig(**settings)


def test_guidance_without_an_empty_condition(networks):
    with pytest.raises(ValueError, match=r"is to be guided .* has no empty condition"):
        Consistency.build(ConsistencyConfig(), Cast(networks.__getitem__))
    assert Consistency.build(ConsistencyConfig(guidance=1.0), Cast(networks.__getitem__))
