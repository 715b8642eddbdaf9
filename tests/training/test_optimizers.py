from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from nitrodistill.training import OptimizerConfig, Trainer
from nitrodistill.training.optimizers import make_optimizer, state_bytes


class Counting(torch.optim.Optimizer):
    """Sign descent whose step shrinks with its own count, which is kept in the group, and in plain numbers."""

    def __init__(self, params, lr, shrink=0.5):
        super().__init__(params, {"lr": lr, "shrink": shrink, "count": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] += 1
            for weight in group["params"]:
                state = self.state[weight]
                state["size"] = state.get("size", 1.0) * 0.9 + 0.1 / 3
                factor = state["size"] * group["shrink"] ** (group["count"] / 10)
                weight.sub_(weight.grad.sign(), alpha=group["lr"] * factor)


OTHERS = [
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("sgd", {}),
    ("RAdam", {"betas": [0.5, 0.9]}),
    ("NAdam", {}),
    ("Adagrad", {}),
    ("Adafactor", {}),
    ("RMSprop", {"centered": True}),
    ("AdamW", {"amsgrad": True}),
    (f"{__name__}:Counting", {"shrink": 0.25}),
]


@pytest.mark.parametrize(("name", "settings"), OTHERS, ids=str)
def test_it_updates_as_torch_does_and_a_stopped_run_ends_bit_equal(tiny, tmp_path, name, settings):
    """The rate is the trainer's: its factor at each update, for the optimizer as torch makes it."""
    config = tiny.config(steps=5, checkpoint_every=2)
    optimizer = OptimizerConfig(
        learning_rate=1e-2, optimizer=name, settings=settings, lr_schedule="cosine", ema_decay=0.5
    )
    config = replace(config, optimizers=dict.fromkeys(config.optimizers, optimizer))
    whole = tiny.train(config)
    stopped = Trainer(tiny.Method(), tiny.Stream(4), config, output=tmp_path)
    for state in stopped.fit():
        if state.step == 3:
            break
    resumed = Trainer(tiny.Method(seed=1), tiny.Stream(4), config, output=tmp_path)
    assert resumed.step == 2
    list(resumed.fit())
    weights = [[*t.method.student_network.parameters()] for t in (whole, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    start = [*tiny.Method().student_network.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(weights[0], start, strict=True))


def test_settings_reach_torch_and_adamw_is_what_it_was():
    weight = nn.Parameter(torch.ones(3))
    made = make_optimizer(OptimizerConfig(optimizer="SGD", settings={"momentum": "1e-1"}), [weight])
    assert type(made) is torch.optim.SGD
    assert made.defaults["momentum"] == 0.1
    adamw = make_optimizer(OptimizerConfig(betas=(0.0, 0.9), weight_decay=0.1), [weight])
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["betas"], adamw.defaults["weight_decay"]) == ((0.0, 0.9), 0.1)
    assert adamw.defaults["fused"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "SGDD"}, "there is no optimizer 'SGDD'; did you mean 'SGD'?"),
        ({"optimizer": "LBFGS"}, "there is no optimizer 'LBFGS'"),
        ({"optimizer": "no.such:Thing"}, "cannot be imported"),
        ({"optimizer": "SGD", "settings": {"momentun": 1}}, "did you mean 'momentum'?"),
        ({"optimizer": "SGD", "settings": {"momentum": "much"}}, "SGD.momentum is 'much'"),
        ({"optimizer": "SGD", "betas": (0.5, 0.9)}, "betas is (0.5, 0.9), which is of AdamW"),
        ({"optimizer": "SGD", "eight_bit": True}, "eight_bit is True, which is of AdamW"),
        ({"settings": {"betas": [0, 1]}}, "'betas' is unknown"),
        ({"settings": {"foreach": True}}, "'foreach' is unknown"),
        ({"settings": {"amsgrad": True}, "eight_bit": True}, "eight_bit takes another"),
    ],
)
def test_mistakes_are_named_when_the_recipe_is_read(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        OptimizerConfig(**changes)


@pytest.mark.parametrize(
    ("name", "settings", "numbers"),
    [
        ("SGD", {}, 0),
        ("SGD", {"momentum": 0.9}, 12 + 3),
        ("RAdam", {}, 2 * (12 + 3) + 2),
        ("AdamW", {}, 2 * (12 + 3) + 2),
        ("AdamW", {"amsgrad": True}, 3 * (12 + 3) + 2),
    ],
)
def test_bytes_of_the_state_are_counted_on_shapes(name, settings, numbers):
    weights = [
        nn.Parameter(torch.empty(3, 4, device="meta")),
        nn.Parameter(torch.empty(3, device="meta")),
    ]
    config = OptimizerConfig(optimizer=name, settings=settings)
    assert state_bytes(config, weights) == 4 * numbers
