"""Shares of the gradient: in closed form, and in a run whose weights they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nitrodistill.methods import LADDConfig
from nitrodistill.models import Pipeline
from nitrodistill.training import TrainerConfig
from nitrodistill.training.records import gradient_shares
from nitrodistill.training.stages import run_recipe
from nitrodistill.types import Terms


def test_shares_are_the_norms_ratio():
    w, unused = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.ones(3))
    terms = {"a": 3 * w[0], "b": 4 * w[1] ** 2 / 4, "c": torch.zeros((), requires_grad=True) * 1}
    total = terms["a"] + terms["b"]
    found = gradient_shares(Terms(total, {}, terms), [w, unused])
    assert {n: v.item() for n, v in found.items()} == pytest.approx(
        {"a": 3 / 7, "b": 4 / 7, "c": 0}
    )
    assert w.grad is None  # and the graph is still there
    total.backward()
    assert w.grad.tolist() == [3, 4]
    assert gradient_shares(Terms(total, {}), [w]) == {}


def test_they_are_logged_now_and_then_and_change_nothing(
    make_recipe, tiny, tiny_diffusers, tiny_scheduler, tmp_path
):
    totals = []
    for every in (0, 2):
        settings = LADDConfig(taps=("mid_block",), head_width=8, updates="shared")
        recipe = make_recipe(settings, steps=4, log_every=1, term_gradients_every=every)
        recipe = tiny.changed(recipe, tmp_path / f"run-{every}")
        states = list(run_recipe(recipe, Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))))
        totals.append([state.metrics()["student/total"] for state in states])
    names = [f"student/gradient_share.{n}" for n in ("reconstruction", "adversarial")]
    assert [set(names) <= set(s.parts) for s in states] == [False, True, False, True]
    assert sum(states[1].metrics()[n] for n in names) == pytest.approx(1)
    assert totals[0] == totals[1]


def test_they_are_refused_where_gradients_are_shared_out():
    with pytest.raises(
        ValueError, match="term_gradients_every does not work with `parallel: fsdp`"
    ):
        TrainerConfig(term_gradients_every=1, parallel="fsdp")
