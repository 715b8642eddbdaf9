"""`nitrodistill compare` on folders that evaluate left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nitrodistill.cli.compare import _names
from nitrodistill.cli.main import main
from nitrodistill.evaluation import Evaluation, Metric, Pictures
from nitrodistill.evaluation.results import PICTURES

SETTINGS = {"num_samples": 4, "seed": 0, "teacher_fingerprint": "abc"}


def evaluated(folder: Path, distance: float, **settings: object) -> Path:
    """An evaluation as it lies on the disk."""
    cost = {"pipeline_ms": Metric(50.0)}
    models = {
        "teacher": cost,
        "student": {"fd_teacher": Metric(distance, distance - 1, distance + 1, 3.0), **cost},
    }
    Evaluation(models, {**SETTINGS, **settings}).save(folder / "metrics.json")
    images = {name: torch.zeros(1, 3, 8, 8) for name in models}
    Pictures(("a red ring",), images, (0,)).save(folder / PICTURES)
    return folder


def ask(*runs: Path, **options: object) -> int:
    more = [w for name, value in options.items() for w in (f"--{name}", *str(value).split())]
    return main(["compare", "--runs", *map(str, runs), *more])


def test_a_page_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = evaluated(tmp_path / "ladd", 5.0), evaluated(tmp_path / "plain", 20.0)
    page = tmp_path / "page.html"
    for _ in range(2):  # the second replaces the first
        assert ask(*runs, output=page) == 0
    shown = capsys.readouterr().out
    assert f"written to {page}" in shown
    assert shown.splitlines()[0].split() == ["ladd", "plain", "teacher", "floor"]
    text = page.read_text(encoding="utf-8")
    assert "<h1>ladd is best in FD to teacher.</h1>" in text
    assert 'alt="plain: a red ring"' in text
    assert ask(*runs, output=page, names="one other") == 0
    assert "<h1>one is best" in page.read_text(encoding="utf-8")


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, page = evaluated(tmp_path / "good", 5.0), tmp_path / "page.html"
    cases = [
        ((good,), {}, "needs at least two"),
        ((good, tmp_path), {}, "holds no evaluation"),
        ((good, good), {}, "names a folder twice"),
        ((good, evaluated(tmp_path / "seed", 5.0, seed=1)), {}, "'seed' was evaluated with seed 1"),
        ((good, evaluated(tmp_path / "b", 5.0)), {"names": "a"}, "give 2 that differ"),
        ((good, evaluated(tmp_path / "b", 5.0)), {"cost": "dollars"}, "cost is 'dollars'"),
    ]
    for runs, options, words in cases:
        assert ask(*runs, output=page, **options) == 2
        assert words in capsys.readouterr().err
        assert not page.exists()
    page.write_text("<html>my homepage</html>")
    assert ask(good, evaluated(tmp_path / "b", 5.0), output=page) == 2
    assert "is not a page of nitrodistill" in capsys.readouterr().err
    assert page.read_text() == "<html>my homepage</html>"


def test_names_tell_folders_apart() -> None:
    assert _names([Path("runs/a"), Path("runs/b")], None) == ["a", "b"]
    assert _names([Path("x/a/student"), Path("x/b/student")], None) == ["a/student", "b/student"]
