"""The card: what the Hub reads in its metadata, and what people see of what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

import nitrodistill as nd
from nitrodistill.export import Measured
from nitrodistill.export.card import Card

RESULTS = [
    {"type": "fd_real", "name": "FD to real", "value": 12.5},
    {"type": "alignment", "name": "alignment", "value": 0.9},
]
CARD = Card(
    "runs/student",
    nd.StepPlan.from_schedule(nd.RectifiedFlow(t_max=1000)),
    {"num_inference_steps": 1, "guidance_scale": 0},
    {"prompt": ["a ring"]},
    "somebody/teacher",
    metrics=Measured("| a | table |", RESULTS, "8 prompts", Path("grid.png")),
)


def test_the_hub_reads_the_numbers() -> None:
    found = ModelCard(CARD.pipeline()).data.eval_results
    assert found is not None
    assert [(r.metric_type, r.metric_name, r.metric_value) for r in found] == [
        ("fd_real", "FD to real", 12.5),
        ("alignment", "alignment", 0.9),
    ]
    assert {(r.task_type, r.dataset_name) for r in found} == {("text-to-image", "8 prompts")}
    metadata = yaml.safe_load(CARD.pipeline().split("---")[1])
    assert metadata["model-index"][0]["name"] == "student"


def test_people_see_the_picture_and_the_table() -> None:
    text = CARD.pipeline()
    assert text.index("(grid.png)") < text.index("## Measured\n\n| a | table |")


def test_what_was_not_measured_is_not_there() -> None:
    text = replace(CARD, metrics=None).pipeline()
    assert "model-index" not in text
    assert "grid.png" not in text
    assert "Measured" not in text
    table = replace(CARD, metrics=Measured("a table")).pipeline()
    assert "model-index" not in table
    assert "## Measured\n\na table\n" in table
    assert json.dumps("a table") not in table
