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


def test_elsewhere_lines_come_at_growing_intervals(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step a second for 200 s: lines after 5, 15, 35, 75 and 155 s, and one at the end."""
    assert not sys.stderr.isatty()
    now = [0.0]
    with caplog.at_level(logging.INFO, "nitrodistill"):
        bar = progress_bar(total=200, desc="count", unit="step")
        monkeypatch.setattr(bar, "_time", lambda: now[0])
        bar.start_t = bar.last_print_t = 0.0
        for second in range(1, 201):
            now[0] = second
            bar.update()
        bar.close()
    counts = [int(message.split()[1]) for message in caplog.messages]
    assert counts == [5, 15, 35, 75, 155, 200]
    assert caplog.messages[1] == "count: 15 of 200, 1.00step/s, 03:05 left"
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
