from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path

import pytest

from nitrodistill.cli import pairs as verb
from nitrodistill.cli.main import main
from nitrodistill.cli.terminal import harmless_messages, say, session, set_output, time_text

HOSTILE = "red\x1b[2J\x1b]0;title\x07\x9b31m"
WRITTEN_OUT = "red\\x1b[2J\\x1b]0;title\\x07\\x9b31m"


def test_what_is_said_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    """A new line is a table's, or a name's that would begin a sentence of its own."""
    say(f"{HOSTILE}\nring", lines=True)
    assert capsys.readouterr().out == f"{WRITTEN_OUT}\nring\n"
    say(f"{HOSTILE}\nring")
    assert capsys.readouterr().out == f"{WRITTEN_OUT}\\nring\n"


def test_so_are_warnings_within_the_block() -> None:
    before = warnings.formatwarning
    with harmless_messages():
        told = warnings.formatwarning(f"{HOSTILE}\nring", UserWarning, "x.py", 1)
        assert f"{WRITTEN_OUT}\\nring\n" in told
        assert "\x1b" not in told
    assert warnings.formatwarning is before


def test_and_what_goes_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    """A folder's name, in the message or among its arguments."""
    before = logging.getLogRecordFactory()
    with harmless_messages():
        logging.getLogger("nitrodistill.data.work").warning("%s is made again.", f"{HOSTILE}\nring")
        logging.getLogger("another").error(HOSTILE)
    assert [r.getMessage() for r in caplog.records] == [
        f"{WRITTEN_OUT}\\nring is made again.", WRITTEN_OUT,
    ]  # fmt: skip
    assert logging.getLogRecordFactory() is before


def test_and_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: list[str]) -> int:
        raise ValueError(f"{HOSTILE}\nring is wrong.")

    monkeypatch.setattr(verb, "main", fail)
    assert main(["pairs"]) == 2
    assert capsys.readouterr().err == f"nitrodistill: {WRITTEN_OUT}\\nring is wrong.\n"


@pytest.mark.parametrize("action", ["stats", "verify", "merge"])
def test_and_the_names_in_a_store(
    place, tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    """The folder, and the teacher in its manifest, are somebody else's."""
    store = tmp_path / HOSTILE.replace("/", "")
    shutil.copytree(place.pairs, store)
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["sources"][0]["teacher"] = HOSTILE
    (store / "manifest.json").write_text(json.dumps(manifest))
    more = ["--output", f"{store}-merged"] if action == "merge" else []
    assert main(["pairs", action, str(store), *more]) == 0
    printed = capsys.readouterr()
    assert not {"\x1b", "\x07", "\x9b"} & set(printed.out)
    assert WRITTEN_OUT in printed.out


def test_json_stays_json(place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs", "stats", str(place.pairs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 4


def test_of_several_processes_the_first_prints_the_document(
    place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(["pairs", "stats", str(place.pairs), "--json"]) == 0
        assert bool(capsys.readouterr().out) == (rank == "0")


def test_quiet_says_no_more_than_the_level_does() -> None:
    logger = logging.getLogger("nitrodistill")
    for quiet, level, found in [
        (True, "info", "WARNING"),
        (True, "error", "ERROR"),
        (False, "debug", "DEBUG"),
    ]:
        with session():
            set_output(quiet=quiet, as_json=False, level=level)
            assert logging.getLevelName(logger.level) == found


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0321, "32.1 ms"),
        (1, "1.0 seconds"),
        (150, "2.5 minutes"),
        (9000, "2.5 hours"),
        (2e5, "2.3 days"),
    ],
)
def test_a_duration_is_in_a_unit_that_one_can_read(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
