"""The folder of a run: what it was trained on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nitrodistill.data import PairStore
from nitrodistill.methods import LADDConfig
from nitrodistill.training import run
from nitrodistill.training.run import training_latents


def test_latents_of_the_pairs(make_recipe, pairs, monkeypatch):
    recipe, store = make_recipe(LADDConfig()), PairStore.open(pairs)
    whole = store.read(range(len(store))).x0
    assert torch.equal(training_latents(recipe), whole)
    real = dataclasses.replace(recipe, pairs=None, real=str(pairs))
    assert torch.equal(training_latents(real), whole), "real latents count as well"
    monkeypatch.setattr(run, "_MOST_NUMBERS", 2 * whole[0].numel())
    assert torch.equal(training_latents(recipe), whole[[0, len(store) - 1]]), "evenly spread"


def test_prompts_alone_and_pairs_that_are_gone_have_none(make_matching, make_recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="trained on no latents, only on prompts"):
        training_latents(make_matching("recipe"))
    gone = dataclasses.replace(make_recipe(LADDConfig()), pairs=str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="no pair store at"):
        training_latents(gone)
