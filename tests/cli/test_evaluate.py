from __future__ import annotations

import dataclasses

import pytest

from nitrodistill.cli.evaluate import _trained_on
from nitrodistill.training import load_recipe
from nitrodistill.training.run import training_latents


def test_data_that_is_gone_leaves_memorisation_out(
    place, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(place.recipe)
    found = _trained_on(recipe, training_latents)
    assert found is not None
    assert len(found) == 4
    gone = dataclasses.replace(recipe, pairs=str(place.root / "gone"))
    assert _trained_on(gone, training_latents) is None
    assert "memorisation is not measured: no pair store at" in capsys.readouterr().err
