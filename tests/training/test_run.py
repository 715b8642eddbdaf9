"""What the verbs read of a run's pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nitrodistill.cli import runs
from nitrodistill.cli.evaluate import _pairs_of
from nitrodistill.cli.runs import training_latents
from nitrodistill.data import PairStore


def test_latents_of_the_pairs(place, monkeypatch):
    store = PairStore.open(place.pairs)
    whole = store.read(range(len(store))).x0
    assert torch.equal(training_latents(place.pairs), whole)
    monkeypatch.setattr(runs, "MOST_NUMBERS", 2 * whole[0].numel())
    assert torch.equal(training_latents(place.pairs), whole[[0, len(store) - 1]]), "evenly spread"


def test_pairs_that_are_gone_leave_memorisation_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _pairs_of(str(tmp_path / "gone"), training_latents) is None
    assert "memorisation is not measured: no pair store at" in capsys.readouterr().err
