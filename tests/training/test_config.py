from __future__ import annotations

import pytest

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
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"accumulation": 0}, "accumulation is 0"),
        ({"mixed_precision": "fp16"}, "mixed_precision is 'fp16'.*bf16"),
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
