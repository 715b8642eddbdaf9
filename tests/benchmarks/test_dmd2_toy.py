"""The report's verdict stands in each row and in the table; rows from before have a dash."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from nitrodistill.evaluation import Evaluation, Metric


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("dmd2_toy")


def test_the_verdict_is_the_reports(toy) -> None:
    """Alignment reaches the teacher's; the distance does not; the edge ratio's interval holds 1."""
    teacher = {"alignment": Metric(0.997, 0.99, 1.0), "fd_real": Metric(6.4, 4.9, 7.9)}
    student = {
        "alignment": Metric(0.992, 0.986, 0.996),
        "fd_real": Metric(20.0, 17.0, 23.0),
        "edge_ratio": Metric(1.01, 0.99, 1.03),
        "diversity": Metric(1.1),  # open: without an interval
    }
    said = toy.verdict_of(Evaluation({"teacher": teacher, "student": student}))
    assert (said["matched"], said["decided"]) == (2, 3)
    assert said["differs"] == ["fd_real"]
    assert "but not in distribution" in said["headline"]


def test_the_table_has_a_column_of_it(toy) -> None:
    numbers = dict.fromkeys(toy.METRICS, 0.5)
    rows: list[dict[str, Any]] = [
        {
            "recipe": name,
            "num_inference_steps": 4,
            "cpu_seconds": 100.0,
            **dict.fromkeys(("student", "teacher", "floor"), numbers),
        }
        for name in toy.RECIPES
    ]
    rows[1]["verdict"] = {"headline": "...", "matched": 12, "decided": 17, "differs": []}
    head, line, *shown = toy.table(rows).split("\n")
    assert head.endswith("| diversity | matching |")
    last = [row.split(" | ")[-1] for row in shown]
    assert last == ["- |", "12 of 17 |", "- |", "|", "|"]
    assert {row.replace(r"\|", "").count("|") for row in (head, line, *shown)} == {12}
