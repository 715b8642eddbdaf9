from __future__ import annotations

import re

import pytest
import torch

from nitrodistill.training import State, make_accelerator, with_progress


def _states(stage: int, first: int, last: int):
    for step in range(first, last + 1):
        totals = {"student": torch.tensor(0.25), "critic": torch.tensor(2.0)}
        yield State(stage, step, last, ("student",), "", {}, {}, 12, 0.5, 0.0, totals)


def test_the_bar_shows_losses_samples_a_second_and_the_time_left(capsys):
    """A resumed stage, then another: a bar each, that begins where it does. Every role's last loss."""

    def both():
        yield from _states(0, 3, 4)
        yield from _states(1, 1, 2)

    passed = [(state.stage, state.step) for state in with_progress(both(), show=True)]
    assert passed == [(0, 3), (0, 4), (1, 1), (1, 2)]
    shown = capsys.readouterr().err
    assert re.search(r"stage 0:.* 4/4 \[\d\d:\d\d<\d\d:\d\d", shown)
    assert re.search(r"stage 1:.* 2/2 \[\d\d:\d\d<\d\d:\d\d", shown)
    assert "student=0.25, critic=2, samples/s=24" in shown


def test_no_bar_where_none_is_wanted(capsys):
    assert len(list(with_progress(_states(0, 1, 2), show=False))) == 2
    assert len(list(with_progress(_states(0, 1, 2)))) == 2  # not a terminal
    assert capsys.readouterr().err == ""


def test_an_unknown_tracker_is_named_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"no tracker 'tensorbord'; did you mean 'tensorboard'"):
        make_accelerator(output=tmp_path, trackers=["tensorbord"])
    with pytest.raises(ValueError, match=r"the tracker 'comet_ml' is not installed; install it"):
        make_accelerator(output=tmp_path, trackers=["tensorboard", "comet_ml"])
