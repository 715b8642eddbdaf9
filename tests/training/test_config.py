from __future__ import annotations

import pytest
import torch

from nitrodistill.settings import to_plain
from nitrodistill.training import OptimizerConfig, TrainerConfig, learning_rate_factor


def test_flat_to_half_then_linear_to_zero():
    config = OptimizerConfig(lr_decay_from=0.5)
    factors = [learning_rate_factor(config, update, 8) for update in range(9)]
    assert factors == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]


def test_warm_up_rises_linearly_and_multiplies_the_decay():
    config = OptimizerConfig(lr_warmup_updates=4, lr_decay_from=0.0)
    factors = [learning_rate_factor(config, update, 4) for update in range(4)]
    assert factors == [0.25 * 1, 0.5 * 0.75, 0.75 * 0.5, 1 * 0.25]


def test_constant_by_default():
    assert {learning_rate_factor(OptimizerConfig(), update, 9) for update in range(9)} == {1.0}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("linear", {}),
        ("cosine", {}),
        ("cosine_with_restarts", {"num_cycles": 2}),
        ("polynomial", {"power": 2.0}),
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("piecewise_constant", {"step_rules": "1:4,0.1:7,0.01"}),
    ],
)
def test_a_schedule_of_diffusers_is_theirs_at_each_update(name, settings):
    from diffusers.optimization import get_scheduler

    warmup = 0 if name in ("constant", "piecewise_constant") else 3
    config = OptimizerConfig(
        learning_rate=0.25,
        lr_schedule=name,
        lr_schedule_settings=settings,
        lr_warmup_updates=warmup,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.25)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=10, **settings)
    for update in range(10):
        rate = 0.25 * learning_rate_factor(config, update, 10)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-15)
        optimizer.step()
        theirs.step()


def _scheduled(name, **settings):
    return {"lr_schedule": name, "lr_schedule_settings": settings}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr_schedule": "cosine", "lr_decay_from": 0.5}, "lr_decay_from is 0.5; it must be 1"),
        ({"lr_schedule_settings": {"power": 2}}, "lr_schedule_settings are of an lr_schedule"),
        (_scheduled("polynomial", pover=2), "did you mean 'power'"),
        (_scheduled("polynomial", power="much"), "power is 'much'; it must be a number"),
        (_scheduled("linear", num_cycles=2), "unknown key 'lr_schedule_settings.num_cycles'"),
        (_scheduled("piecewise_constant"), "step_rules is missing"),
        (_scheduled("piecewise_constant", step_rules="a"), "step_rules are such as"),
        (
            _scheduled("constant") | {"lr_warmup_updates": 3},
            "it must be 0 where the lr_schedule is",
        ),
    ],
)
def test_schedules_are_checked(changes, words):
    with pytest.raises(ValueError, match=words):
        OptimizerConfig(**changes)


def test_settings_that_came_later_do_not_stop_a_resumption():
    """A checkpoint of an older version lacks them: it was made with their defaults."""
    config = TrainerConfig(optimizers={"student": OptimizerConfig()})
    before = to_plain(config)
    del before["optimizers"]["student"]["lr_schedule"], before["best_is"]
    config.check_resumes(before, "x")
    before["seed"] = 5
    with pytest.raises(ValueError, match="seed 5 -> 0"):
        config.check_resumes(before, "x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"accumulation": 0}, "accumulation is 0"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'.*bf16"),
        (
            {"mixed_precision": "fp16", "parallel": "fsdp"},
            "'fp16', which does not work with `par.*use bf16",
        ),
        (
            {"mixed_precision": "fp16", "half_precision_weights": True},
            "'fp16', .* half_precision_weights",
        ),
        ({"checkpoint_every": -1}, "checkpoint_every is -1"),
        ({"parallel": "fsdp1"}, "parallel is 'fsdp1'.*'ddp', 'fsdp'"),
        ({"best_is": "least"}, "best_is is 'least'"),
        ({"best_metric": "fid"}, "best_metric is 'fid', but evaluate_every is 0"),
        ({"cpu_offload": True}, "`parallel: fsdp` only"),
        (
            {"parallel": "fsdp", "optimizers": {"student": OptimizerConfig(eight_bit=True)}},
            "optimizer of 'student' is eight_bit",
        ),
    ],
)
def test_trainer_settings_are_checked(changes, words):
    with pytest.raises(ValueError, match=words):
        TrainerConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; it must be in \[0, 1\)"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0"),
        ({"lr_decay_from": 1.5}, "lr_decay_from is 1.5"),
        ({"lr_warmup_updates": -1}, "lr_warmup_updates is -1; it must be at least 0"),
        ({"betas": (0.9, 1.0)}, "betas is"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"eps": 0.0}, "eps"),
    ],
)
def test_optimizer_settings_are_checked(changes, words):
    with pytest.raises(ValueError, match=words):
        OptimizerConfig(**changes)
