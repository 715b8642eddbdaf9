"""Each arm is a recipe that differs from ours in what its name says; rows of other runs stay."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def quality() -> Any:
    return importlib.import_module("benchmarks.demo_quality")


@pytest.fixture(scope="module")
def place(quality) -> Any:
    """The embedded teacher's, without its pipeline."""
    toy, cells = quality.TEACHERS["toy"], Path("cells")
    return quality.Place(toy, None, None, cells, Path("pairs"), quality.PAIRS, real=Path("scenes"))


def test_an_arm_differs_from_ours_in_one_setting(quality, place):
    def settings(group: str, arm: str) -> dict[str, Any]:
        recipe = place.recipe(quality.ARMS[group][arm], 100, 0, Path("run"))
        return {**vars(recipe.stages[0].settings)}

    ours = settings(*quality.OURS)
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
        for arm in () if group.startswith("DMD2") else arms:
            other = {key for key, value in settings(group, arm).items() if value != ours[key]}
            kind = group.split(" (")[0]
            several = {"forms": other, "two changes": {"adversarial", "augmentation"}}
            assert other == several.get(kind, {changed.get(kind, kind)})


def test_the_forms_of_dmd2_read_what_they_say(quality, place):
    for steps in (1, 4):
        for arm, method in quality.ARMS[f"DMD2 in {steps} step{'s' * (steps > 1)}"].items():
            recipe = place.recipe(method, 100, 0, Path("run"))
            last = recipe.stages[-1]
            assert last.settings.num_inference_steps == steps
            assert (last.settings.gan is not None) == (recipe.real == "scenes") == ("GAN" in arm)
            assert (last.settings.regression is not None) == ("on a third" in arm)
            assert (last.settings.decoupled is not None) == ("decoupled" in arm)
            assert [s.method for s in recipe.stages[:-1]] == ["ladd"] * ("after" in arm)
            rates = {role: o.learning_rate for role, o in last.trainer.optimizers.items()}
            assert rates["critic"] == 2 * rates["student"] == {1: 1e-3, 4: 6e-4}[steps]


def test_settings_of_dmd2_differ_from_its_gan_in_four_steps_in_what_they_say(quality, place):
    def read(method: dict[str, Any]) -> dict[str, Any]:
        (stage,) = place.recipe(method, 10_000, 0, Path("run")).stages  # no average is too long
        rates = {role: o.learning_rate for role, o in stage.trainer.optimizers.items()}
        return {
            "updates": stage.settings.critic.updates,
            "rates": rates["critic"] / rates["student"],
            "guidance": stage.settings.guidance,
            "average": stage.trainer.optimizers["student"].ema_decay,
        }

    gan = read(quality.ARMS["DMD2 in 4 steps"]["GAN"])
    assert gan == {"updates": 2, "rates": 2, "guidance": 3, "average": 0.97}
    found = {arm: read(method) for arm, method in quality.ARMS["DMD2, GAN, in 4 steps"].items()}
    three, five = ({"updates": n, "average": pytest.approx(0.97 ** (n / 2))} for n in (3, 5))
    assert found == {
        "3 critic updates": {**gan, **three},
        "5 critic updates": {**gan, **five},
        "guidance 2": {**gan, "guidance": 2},
        "5 critic updates, guidance 2": {**gan, **five, "guidance": 2},
    }


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
    our = [_row("ours", seed, fd) for seed, fd in ((0, 10.0), (1, 20.0))]
    other = [_row("balanced", 0, 20.0), _row("balanced", 1, 10.0), _row("balanced", 2, 1.0)]
    assert "| balanced | 1.00 | 2.00 0.50 |" in quality.against([*our, *other])

    file = tmp_path / "results.json"
    monkeypatch.setattr(quality, "RESULT_FILE", file)
    gone = _row("an arm of before", 0, 1.0)
    file.write_text(
        json.dumps({"seconds": 190.0, "rows": [_row("balanced", 0, 5.0), our[1], gone]})
    )
    found = quality.with_others([our[0], other[0]], 190.0)
    assert found == [our[0], our[1], other[0]]
    assert quality.with_others([our[0]], 60.0) == [our[0]]


def test_an_arm_that_comes_later_is_timed_in_the_seconds_of_the_committed_rows(
    quality, place, tmp_path, monkeypatch
):
    monkeypatch.setattr(quality, "RESULT_FILE", tmp_path / "results.json")
    assert quality.committed_pace(100.0) is None
    rows = [{**_row("ours", 0, 1.0), "steps": 50}]
    quality.RESULT_FILE.write_text(json.dumps({"seconds": 100.0, "rows": rows}))
    assert quality.committed_pace(190.0) is None
    # a machine that takes 3 seconds for what took 2 there
    monkeypatch.setattr(
        quality,
        "paces_of",
        lambda _, keys: {key: 3.0 + 3.0 * (key != quality.OURS) for key in keys},
    )
    there = dataclasses.replace(place, folder=tmp_path)
    other = ("fresh noise (2/3)", "none")
    quality.measure_paces(there, [other, other], quality.committed_pace(100.0))
    kept = [
        json.loads((tmp_path / folder / quality.PACE).read_text())["cpu_seconds_per_step"]
        for folder in (path.name for path in tmp_path.iterdir() if path.is_dir())
    ]
    assert sorted(kept) == [2.0, 4.0]
