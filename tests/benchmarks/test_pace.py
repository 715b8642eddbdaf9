"""The critic's pace: what a run's log comes to, and the windows that its runs have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.teachers.pace import line, method_of, read


def test_a_log_is_read_by_its_stage_and_the_last_steps(tmp_path: Path) -> None:
    lines = [
        {"stage": 0, "step": 5 * n, "student/signal": 0.01 * n, "x0/variety": 1 + 0.1 * n}
        for n in range(1, 31)
    ]
    other = {"stage": 1, "step": 5, "student/signal": 9.0, "x0/variety": 9.0}
    alarm = {"stage": 0, "step": 55, "alarm": "lagging", "message": "..."}
    told = "".join(json.dumps(one) + "\n" for one in (*lines[:11], alarm, *lines[11:], other))
    (tmp_path / "log.jsonl").write_text(told)
    found = read(tmp_path)
    assert found["signal_early"] == pytest.approx(0.125)  # of steps 25 to 100: n = 5 to 20
    assert found["signal"] == pytest.approx(0.245)  # of steps 95 to 150: n = 19 to 30
    assert found["variety"] == pytest.approx(3.45)
    assert (found["steps"], found["alarms"]) == (150, ["lagging (55)"])
    assert line("slow", "0.1", {**found, "fd": 20.0})[-1] == "lagging (55)"


def test_a_row_differs_in_rates_updates_and_nothing_else() -> None:
    slow, fast = (method_of(updates, 1e-4, 1e-3, {}) for updates in (1, 5))
    assert slow["settings"]["critic"] == {"updates": 1}
    assert {**slow, "settings": fast["settings"]} == fast
