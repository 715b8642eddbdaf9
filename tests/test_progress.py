from __future__ import annotations

import logging
import sys

import pytest

from nitrodistill import progress
from nitrodistill.progress import progress_bar


def test_on_a_terminal_it_is_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress_bar(range(3), desc="count")) == [0, 1, 2]
    assert "count: 100%|" in capsys.readouterr().err


@pytest.mark.parametrize(("steps", "lines"), [(200, [5, 15, 35, 75, 155, 200]), (35, [5, 15, 35])])
def test_elsewhere_lines_come_at_growing_intervals(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, steps: int, lines: list[int]
) -> None:
    """A step a second: lines after 5, 15, 35, 75 and 155 s, and one at the end, but none twice."""
    assert not sys.stderr.isatty()
    now = [0.0]
    with caplog.at_level(logging.INFO, "nitrodistill"):
        bar = progress_bar(total=steps, desc="count", unit="step")
        monkeypatch.setattr(bar, "_time", lambda: now[0])
        bar.start_t = bar.last_print_t = 0.0
        for second in range(1, steps + 1):
            now[0] = second
            bar.update()
        bar.close()
    counts = [int(message.split()[1]) for message in caplog.messages]
    assert counts == lines
    left = "03:05" if steps == 200 else "00:20"
    assert caplog.messages[1] == f"count: 15 of {steps}, 1.00step/s, {left} left"
    assert {record.name for record in caplog.records} == {progress.__name__}


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_where_nothing_is_to_be_shown(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr(progress, "_FIRST", 1e-9)
    with caplog.at_level(logging.INFO, "nitrodistill"):
        assert list(progress_bar(range(3), show=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    assert not caplog.messages
