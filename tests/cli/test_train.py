"""What the command says, and returns, when an alarm has ended a run."""

from __future__ import annotations

import pytest

from nitrodistill.cli.main import main
from nitrodistill.training import Alarm, Checkpoint, State

RECIPE = "toy"


def alarmed(step: int) -> State:
    alarm = Alarm("chance", step, f"step {step}: at chance.")
    return State(
        0, step, 900, ("student",), "", {}, {}, 4, 0.1, 0.0, alarms=(alarm,), stopped="alarm"
    )


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((400, 300, 100), "from before it is {}/checkpoints/300:"),
        ((400,), "nothing was saved before it"),
    ],
)
def test_an_alarm_leaves_with_3_and_names_the_checkpoint_from_before(
    capsys, monkeypatch, tmp_path, steps, says
):
    """The window is 100 steps and the alarm after step 420: 400 lies within the trouble."""
    found = [Checkpoint(tmp_path / "checkpoints" / str(s), 0, s) for s in steps]
    monkeypatch.setattr("nitrodistill.training.run_recipe", lambda *a, **k: iter([alarmed(420)]))
    monkeypatch.setattr("nitrodistill.training.find_checkpoints", lambda output: found)
    monkeypatch.setattr("nitrodistill.teachers.load_teacher", lambda name, settings: None)
    argv = ["train", "--config", RECIPE, "--output", str(tmp_path), "--quiet"]
    assert main(argv) == 3
    told = capsys.readouterr().out
    assert "stopped by an alarm after step 420 of 900 in stage 0" in told
    assert says.format(tmp_path) in told
    assert "--stages.trainer.stop_on never" in told
