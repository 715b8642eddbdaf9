"""Each arm is a recipe that differs from the demo's in what its name says; rows of other runs stay."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def quality() -> Any:
    return importlib.import_module("benchmarks.demo_quality")


def test_an_arm_differs_from_the_demos_form_in_one_setting(quality):
    place = quality.Place(
        quality.TEACHERS["toy"], None, None, Path("cells"), Path("pairs"), quality.PAIRS
    )

    def settings(group: str, arm: str) -> dict[str, Any]:
        recipe = place.recipe(quality.ARMS[group][arm], 100, 0, Path("run"))
        return {**vars(recipe.stages[0].settings)}

    demo = settings("forms", "the demo's")
    names = [
        quality.folder_name(group, arm) for group, arms in quality.ARMS.items() for arm in arms
    ]
    assert len(set(names)) == len(names)
    changed = {
        "objective": "adversarial",
        "fresh noise": "fresh_fraction",
        "negatives": "misaligned_negatives",
    }
    for group, arms in quality.ARMS.items():
        for arm in arms:
            other = {key for key, value in settings(group, arm).items() if value != demo[key]}
            kind = group.split(" (")[0]
            several = {"forms": other, "two changes": {"adversarial", "augmentation"}}
            assert other == several.get(kind, {changed.get(kind, kind)})


def _row(arm: str, seed: int, fd: float) -> dict[str, Any]:
    return {
        "group": "forms",
        "arm": arm,
        "seed": seed,
        "metrics": {"student": {"fd_real": [fd, None, None, None]}},
    }


def test_distances_are_compared_seed_by_seed_and_committed_rows_stay(
    quality, tmp_path, monkeypatch
):
    demo = [_row("the demo's", seed, fd) for seed, fd in ((0, 10.0), (1, 20.0))]
    other = [_row("balanced", 0, 20.0), _row("balanced", 1, 10.0), _row("balanced", 2, 1.0)]
    assert "| balanced | 1.00 | 2.00 0.50 |" in quality.against([*demo, *other])

    file = tmp_path / "results.json"
    monkeypatch.setattr(quality, "RESULT_FILE", file)
    gone = _row("an arm of before", 0, 1.0)
    file.write_text(
        json.dumps({"seconds": 190.0, "rows": [_row("balanced", 0, 5.0), demo[1], gone]})
    )
    found = quality.with_others([demo[0], other[0]], 190.0)
    assert found == [demo[0], demo[1], other[0]]
    assert quality.with_others([demo[0]], 60.0) == [demo[0]]
