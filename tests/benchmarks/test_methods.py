"""The comparison of methods: every entry is a recipe that its teacher's shapes take."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import methods
from benchmarks.methods import (
    ROSTER,
    Entry,
    fits,
    folder_name,
    keep_committed_paces,
    main,
    overview,
    parser,
    part,
    table,
    with_committed,
)
from benchmarks.teachers import TEACHERS
from benchmarks.teachers.base import Quality
from benchmarks.teachers.compare import PACE, Place
from nitrodistill.teachers import load_teacher
from nitrodistill.training.stages import check_stages


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """Of a transformer, whose one-step students are told a timestep."""
    folder: Path = tmp_path_factory.mktemp("place")
    quality: Any = Quality(lambda images: images, None)  # type: ignore[arg-type]
    return Place(TEACHERS["toy-dit"], load_teacher("toy-dit"), quality, folder, folder / "pairs")


EACH = {folder_name(entry): entry for entry in ROSTER}


@pytest.mark.filterwarnings("ignore:the student predicts epsilon and weight is truncated_snr")
@pytest.mark.parametrize("entry", EACH.values(), ids=EACH)
def test_every_method_is_a_recipe_that_the_networks_take(entry: Entry, place: Place) -> None:
    recipe = place.recipe(entry.method, 420, 3, place.folder / "run")
    check_stages(recipe, place.pipeline)
    steps = [stage.trainer.steps for stage in recipe.stages]
    assert (sum(steps), recipe.stages[0].trainer.seed) == (420, 3)
    settings = recipe.stages[-1].settings
    assert getattr(settings, "guidance", 3.0) == (1.0 if "progressive" in entry.name else 3.0)
    one_step = settings.num_inference_steps == 1 and hasattr(settings, "timestep")
    assert getattr(settings, "timestep", None) == (place.teacher.timestep if one_step else None)


def test_each_method_has_a_row_for_1_and_4_steps_and_a_folder_a_training() -> None:
    names = Counter(entry.name for entry in ROSTER)
    assert (len(names), set(names.values())) == (12, {2})
    assert {entry.sampled_in for entry in ROSTER} == {1, 4}
    trained = {(folder_name(entry), str(entry.method)) for entry in ROSTER}
    # 8 methods for each number of steps, and 4 whose two rows share a student
    assert len(trained) == 20


def test_the_defaults_are_those_of_the_classes(place: Place) -> None:
    told = {"guidance", "timestep"}  # by the teacher
    names = {one.name for one in ROSTER if one.name.endswith(", defaults")}
    assert names == {"DMD2, defaults", "flow map, defaults"}
    for name in names:
        for entry in (one for one in ROSTER if one.name == name):
            settings = place.recipe(entry.method, 420, 0, place.folder / "run").stages[0].settings
            plain, ours = vars(type(settings)()), vars(settings)
            changed = {key for key, value in plain.items() if ours[key] != value} - told
            assert changed <= {"num_inference_steps"}
            assert name.startswith("DMD2") or not changed
            other = next(one for one in ROSTER if one.name == name.removesuffix(", defaults"))
            tuned = place.recipe(other.method, 420, 0, place.folder / "run").stages[0].settings
            assert tuned != settings


def test_guidance_of_its_own_needs_a_guided_teacher(place: Place) -> None:
    (decoupled, _) = (entry for entry in ROSTER if entry.name == "DMD2, decoupled")
    assert fits(decoupled, place)
    assert not fits(decoupled, replace(place, teacher=TEACHERS["digits"]))


def test_the_parts_share_no_training(place: Place) -> None:
    todo = [(place, entry, seed) for entry in ROSTER for seed in (0, 1)]
    parts = [part(todo, number, 2) for number in (0, 1)]
    assert sum(map(len, parts)) == len(todo)
    trainings = [{folder_name(entry) for _, entry, _ in one} for one in parts]
    assert [len(one) for one in trainings] == [10, 9]
    assert not trainings[0] & trainings[1]


def test_the_table() -> None:
    metrics = {key: {"fd_real": [4.0, 3.0, 5.0, 0.5]} for key in ("student", "teacher", "naive")}
    row = {"teacher": "toy", "steps": 10, "cpu_seconds": 3.0, "seed": 0, "metrics": metrics}
    lines = table([{**row, "method": "DMD2", "sampled_in": n} for n in (1, 4)]).splitlines()
    assert len(lines) == 7
    assert lines[5].startswith("| toy | DMD2 | 4 | 3 | 10 | 4.000 (3.000 to 5.000) | - |")


def test_the_overview_is_in_distances_of_the_teacher() -> None:
    """Means over seeds; a method that has nothing to do on a teacher leaves its cell empty."""

    def row(teacher: str, method: str, steps: int, seed: int, fd: float) -> dict[str, Any]:
        values = {"student": fd, "teacher": 2.0, "naive": 80.0}
        metrics = {model: {"fd_real": [value, None, None, None]} for model, value in values.items()}
        return {
            "teacher": teacher,
            "method": method,
            "sampled_in": steps,
            "seed": seed,
            "metrics": metrics,
        }

    rows = [
        row("toy", "DMD2", 1, 0, 4.0),
        row("toy", "DMD2", 1, 1, 8.0),
        row("toy", "DMD2", 4, 0, 3.0),
    ]
    rows += [row("digits", "LADD", 4, 0, 2.5)]
    lines = overview(rows).splitlines()
    assert lines[0] == "|  | toy | digits |"
    assert lines[2:] == [
        "| the teacher itself, in one step | 40 / - | 40 / - |",
        "| DMD2 | 3 / 1.5 | - / - |",
        "| LADD | - / - | - / 1.25 |",
    ]


def test_results_of_a_teacher_of_yours_do_not_replace_the_committed_ones(
    monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["methods", "--teacher", "./mine", "--pairs", "p", "--write"])
    with pytest.raises(SystemExit):
        main()
    assert "--write is for toy, toy-dit, digits, scenes, classes" in capsys.readouterr().err


def test_committed_rows_stay_beside_other_seeds() -> None:
    def row(seed: int, steps: int, method: str = "DMD2") -> dict[str, Any]:
        about = {"teacher": "toy", "method": method, "sampled_in": 1}
        return {**about, "seed": seed, "steps": steps}

    before = {"seconds": 45.0, "rows": [row(0, 5), row(1, 6), row(0, 7, "gone")]}
    found = with_committed([row(1, 8), row(2, 9)], before, 45.0)
    assert [(one["seed"], one["steps"]) for one in found] == [(0, 5), (1, 8), (2, 9)]
    assert with_committed([row(2, 9)], before, 90.0) == [row(2, 9)]


def test_new_seeds_have_the_updates_of_the_committed_ones(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "RESULTS", tmp_path)
    place = replace(place, folder=tmp_path)
    dmd2, ladd = (next(one for one in ROSTER if one.name == n) for n in ("DMD2", "LADD, ours"))
    rows = [
        {"teacher": "toy-dit", "method": "DMD2", "sampled_in": 1, "seed": 0, "steps": 123},
        {"teacher": "toy-dit", "method": "DMD2", "sampled_in": 4, "seed": 0, "steps": 45},
        {"teacher": "toy-dit", "method": "LADD, ours", "sampled_in": 1, "seed": 1, "steps": 7},
        {"teacher": "toy", "method": "LADD, ours", "sampled_in": 1, "seed": 0, "steps": 9},
    ]
    (tmp_path / "methods.json").write_text(json.dumps({"seconds": 45.0, "rows": rows}))
    options = parser().parse_args(["--seconds", "45", "--seeds", "1", "2"])
    keep_committed_paces([(place, dmd2, 1), (place, ladd, 1)], options)
    folder = place.group(folder_name(dmd2), dmd2.method)
    assert place.steps(dmd2.method, 45.0, folder) == 123
    other = place.group(folder_name(ladd), ladd.method)
    assert not (other / PACE).exists()  # made anew with all its seeds, or on another teacher

    keep_committed_paces([(place, ladd, 1)], parser().parse_args(["--seconds", "90"]))
    assert not (other / PACE).exists()
