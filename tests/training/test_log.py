from __future__ import annotations

import os
import re
from datetime import timedelta

import pytest
import torch

from nitrodistill import progress
from nitrodistill.training import State, log, make_accelerator, with_progress


def _states(stage: int, first: int, last: int):
    for step in range(first, last + 1):
        totals = {"student": torch.tensor(0.25), "critic": torch.tensor(2.0)}
        yield State(stage, step, last, ("student",), "", {}, {}, 12, 0.5, 0.0, totals)


def test_the_bar_shows_losses_samples_a_second_and_the_time_left(capsys, monkeypatch):
    """A resumed stage, then another: a bar each, that begins where it does. Every role's last loss."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    def both():
        yield from _states(0, 3, 4)
        yield from _states(1, 1, 2)

    passed = [(state.stage, state.step) for state in with_progress(both(), show=True)]
    assert passed == [(0, 3), (0, 4), (1, 1), (1, 2)]
    shown = capsys.readouterr().err
    assert re.search(r"stage 0:.* 4/4 \[\d\d:\d\d<\d\d:\d\d", shown)
    assert re.search(r"stage 1:.* 2/2 \[\d\d:\d\d<\d\d:\d\d", shown)
    assert "student=0.25, critic=2, samples/s=24" in shown


def test_without_a_terminal_a_line_says_the_same(capsys, caplog, monkeypatch):
    monkeypatch.setattr(progress, "_FIRST", 1e-9)
    with caplog.at_level("INFO", "nitrodistill"):
        list(with_progress(_states(0, 3, 4), show=True))
    line = caplog.messages[-1]
    assert re.search(
        r"stage 0: 4 of 4, .*(step/s|s/step), 00:00 left, student=0.25, critic=2", line
    )
    assert capsys.readouterr().err == "", "nothing is drawn"


def test_no_bar_where_none_is_wanted(capsys):
    assert len(list(with_progress(_states(0, 1, 2), show=False))) == 2
    assert len(list(with_progress(_states(0, 1, 2)))) == 2  # not a terminal
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_neighbour_never_comes_says_so_in_time(tiny, monkeypatch, rank):
    """The other one failed before: on a wrong path, say. Process 0 holds the meeting place."""
    monkeypatch.setattr(log, "PATIENCE", timedelta(seconds=1))

    def act(rank_here, world):
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"})
        with pytest.raises(RuntimeError) as caught:
            make_accelerator(cpu=True)
        return str(caught.value)

    (told,) = tiny.in_processes(act, 1)
    start = f"this is process {rank} of 2 (counted from 0), and after 1 s not all had come ("
    assert told.startswith(start)
    assert told.endswith("one failed before, was never started, or cannot reach this machine.")
    assert "\n" not in told
    assert len(told) < 350


def test_an_unknown_tracker_is_named_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"no tracker 'tensorbord'; did you mean 'tensorboard'"):
        make_accelerator(output=tmp_path, trackers=["tensorbord"])
    with pytest.raises(
        ValueError, match=r"the tracker 'comet_ml' is not installed; `pip install comet-ml`"
    ):
        make_accelerator(output=tmp_path, trackers=["tensorboard", "comet_ml"])
