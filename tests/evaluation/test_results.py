"""What an evaluation leaves in a folder, and what it refuses to replace."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nitrodistill.evaluation import Evaluation, Metric, Pictures
from nitrodistill.evaluation.results import (
    RESULTS,
    background,
    check_output,
    check_page,
    load_results,
    write_results,
)

IMAGES = {
    model: torch.full((1, 3, 8, 8), level) for model, level in [("teacher", 0.0), ("student", 1.0)]
}
FOUND = Evaluation(
    {"student": {"fd_teacher": Metric(4.0, 3.0, 5.0, 3.5)}},
    {"num_samples": 8},
    examples=Pictures(("a red ring",), IMAGES, (0,)),
)


def a_run(folder: Path) -> Path:
    """The files of a run that a report tells of."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text("teacher: toy\n")
    lines = [{"stage": 0, "step": step, "student/total": 1.0 / step} for step in (1, 2)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    noted = [{"python": "3.9"}, {"python": "3.11", "versions": {"torch": "2.9"}}]
    (folder / "environment.json").write_text(json.dumps(noted))
    return folder


def test_results_can_be_read_again(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    report = write_results(FOUND, tmp_path / "out", background(run), "My student")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(RESULTS)
    page = report.read_text(encoding="utf-8")
    for text in ("My student", "teacher: toy", "student/total over step 1 to 2", "3.11", "torch"):
        assert text in page
    assert "3.9" not in page, "the newest environment counts"
    found, pictures = load_results(tmp_path / "out")
    assert found.models == FOUND.models
    assert pictures is not None
    assert pictures.prompts == ("a red ring",)
    check_output(tmp_path / "out")
    check_page(report)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "log.jsonl",
            '{"stage": 0, "step": 1, "a": 1}\n{"stage": 0, "st\n{"stage": 0, "step": 2, "a": 2}\n5\n',
            "log.jsonl: what stands in line 2, 4 is torn",
        ),
        ("environment.json", "5", r"environment.json is damaged \(.*\), so the report has no ver"),
        ("environment.json", "[5]", "environment.json is damaged"),
        ("environment.json", "[", "environment.json is damaged"),
    ],
)
def test_what_is_damaged_in_a_run_is_told_before_the_work(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    run = a_run(tmp_path / "run")
    (run / name).write_text(text)
    with pytest.warns(RuntimeWarning, match=words):
        made = background(run)
    assert [line["step"] for line in made["logs"]] == [1, 2]
    assert ("environment" in made) == (name == "log.jsonl")
    assert "teacher: toy" in write_results(FOUND, tmp_path / "out", made, "x").read_text()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.json")
    with pytest.raises(FileExistsError, match="is not an evaluation's"):
        check_output(tmp_path)
    with pytest.raises(FileNotFoundError, match="this is no file of text"):
        Evaluation.load(tmp_path / "metrics.json")


def test_pictures_of_an_earlier_student_do_not_stay(tmp_path: Path) -> None:
    write_results(FOUND, tmp_path, {}, "x")
    write_results(replace(FOUND, examples=None), tmp_path, {}, "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "report.html"]
    assert load_results(tmp_path)[1] is None


def test_a_run_that_tells_nothing_is_no_obstacle(tmp_path: Path) -> None:
    made = background(tmp_path / "nowhere")
    page = write_results(FOUND, tmp_path / "out", made, "x").read_text()
    assert "The student matches its teacher." in page
    assert 'id="training"' not in page


def test_a_folder_without_an_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"has no metrics\.json\. Run `nitrodistill evaluate`"
    ):
        load_results(tmp_path)


@pytest.mark.parametrize("name", RESULTS)
def test_files_of_somebody_else_are_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("years of work")
    with pytest.raises(FileExistsError, match=f"{name}' is not an evaluation's"):
        check_output(tmp_path)


def test_a_page_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    check_page(page)
    page.write_text("<html>my homepage</html>")
    for place in (page, tmp_path):
        with pytest.raises(FileExistsError, match="is not a page of nitrodistill"):
            check_page(place)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc here")
def test_a_place_where_nothing_can_be_made_is_told_at_once() -> None:
    """Not even for root, whom permissions do not hold back."""
    with pytest.raises(PermissionError, match=r"'/proc' is not writable .* choose another folder"):
        check_output(Path("/proc/results"))


def test_asking_leaves_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())
