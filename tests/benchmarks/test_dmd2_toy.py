"""The report's verdict stands in each row and in the table, beside that of rendered scenes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from nitrodistill.demo import shuffled_captions
from nitrodistill.evaluation import Evaluation, Metric
from nitrodistill.teachers import load_teacher
from nitrodistill.toy import load_oracle


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
            "verdict": {"headline": "...", "matched": number, "decided": 17, "differs": []},
            **dict.fromkeys(("student", "teacher", "floor"), numbers),
        }
        for number, name in enumerate(toy.RECIPES)
    ]
    del rows[0]["verdict"]
    scenes = {"student": numbers, "verdict": {"matched": 12, "decided": 17}}
    head, line, *shown = toy.table(rows, scenes).split("\n")
    assert head.endswith("| diversity | matching |")
    last = [row.split(" | ")[-1].strip() for row in shown]
    assert last == ["- |", "1 of 17 |", "2 of 17 |", "|", "12 of 17 |", "|"]
    assert {row.replace(r"\|", "").count("|") for row in (head, line, *shown)} == {12}


def test_rendered_scenes_show_their_prompts_whatever_their_noise(toy) -> None:
    teacher = load_teacher("toy")
    prompts = shuffled_captions()[:4]
    scenes = toy.RenderedScenes(teacher, shuffled_captions())
    noise, condition = torch.zeros(4, *teacher.latent_shape), teacher.encode_prompt(prompts)
    first, second = (scenes(noise, torch.tensor(999), condition) for _ in range(2))
    assert not torch.equal(first, second)  # each time new ones
    oracle = load_oracle()
    for latents in (first, second):
        assert torch.stack([*oracle.alignment(teacher.decode(latents), prompts).values()]).all()
