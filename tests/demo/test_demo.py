from __future__ import annotations

import json

import pytest

from nitrodistill.cli.main import main
from nitrodistill.demo.demo import (
    BATCH_SIZE,
    DemoConfig,
    _check_folder,
    _draw_first,
    length_of,
    run_demo,
)
from nitrodistill.demo.expected import outside, stated
from nitrodistill.demo.recipes import toy_recipe
from nitrodistill.teachers import load_teacher


def test_a_short_demo_goes_the_whole_road(tmp_path):
    """In under two minutes: better than the naive one-step teacher on every metric, and exported."""
    root = tmp_path / "demo"
    config = DemoConfig(output=str(root), steps=80, samples=192)
    said: list[str] = []
    found = run_demo(config, said.append)

    assert [len(one.settings["student_timesteps"]) for one in found] == [4, 1]
    for one, folder in zip(found, (root, root / "one-step"), strict=True):
        naive, student = one.models["naive"], one.student
        assert one.models["teacher"]["alignment"].value > 0.93
        assert student["alignment"].value > naive["alignment"].value + 0.2
        assert student["fd_real"].value < naive["fd_real"].value / 3
        assert student["edge_ratio"].value > 0.75 > naive["edge_ratio"].value
        assert student["diversity"].value > 0.7 > naive["diversity"].value
        expected = stated(length_of(config), len(one.settings["student_timesteps"]))
        assert expected is not None
        assert outside(one, expected) == []
        assert one.models["teacher"]["denoise_ms"].value > student["denoise_ms"].value > 0
        assert json.loads((folder / "metrics.json").read_text())["models"]["student"]
        assert (folder / "report.html").stat().st_size > 500
    assert said[-1].count("where they are expected") == 2
    assert "report.html" in said[-1]
    for name in (
        "first.png",
        "grid.png",
        "comparison.html",
        "pipeline/model_index.json",
        "pipeline/README.md",
        "pipeline-one-step/model_index.json",
    ):
        assert (root / name).stat().st_size > 500
    assert "faster than its teacher" in said[-1]
    record = json.loads((root / "pipeline" / "nitrodistill.json").read_text())
    assert record["base_model"] == "toy", "draw finds the teacher by it"


class _Killed(Exception):
    pass


@pytest.mark.parametrize(("method", "data"), [("ladd", "pairs"), ("dmd2", "scenes")])
def test_a_stopped_demo_goes_on_where_it_was(tmp_path, monkeypatch, method, data):
    monkeypatch.setattr("nitrodistill.demo.demo.cores", lambda: 1)  # starting more takes longer
    monkeypatch.setattr("nitrodistill.demo.demo.SCENES", 8)
    monkeypatch.setattr("nitrodistill.demo.demo._draw_first", lambda *arguments: None)
    root = tmp_path / "demo"
    pairs = 8 if method == "ladd" else None
    config = DemoConfig(output=str(root), method=method, pairs=pairs, steps=2, samples=4)

    def files():
        found = (f for f in root.rglob("*") if f.suffix in (".arrow", ".safetensors", ".jsonl"))
        return {f.relative_to(root): f.stat().st_mtime_ns for f in found}

    def run_until(stage):
        def say(text):
            if text.startswith(stage):
                raise _Killed

        with pytest.raises(_Killed):
            run_demo(config, say)
        return files()

    drawn = run_until("2/4")
    assert {path.parts[0] for path in drawn} == {data}
    trained = run_until("3/4")
    assert drawn.items() < trained.items()
    assert any(path.name == "student.ema.safetensors" for path in trained)
    assert run_until("3/4") == trained

    other = DemoConfig(output=str(root), method="dmd2" if method == "ladd" else "ladd", steps=2)
    with pytest.raises(ValueError, match=f"go on with --method {method}, or choose another folder"):
        run_demo(other, lambda text: pytest.fail("work was begun"))

    def stop(*arguments):
        raise _Killed

    monkeypatch.setattr("nitrodistill.demo.demo._measured", stop)
    with pytest.raises(_Killed):
        run_demo(config, lambda text: pytest.fail("what is no result was said"), progress=False)


def test_first_pictures_are_there_before_anything_is_trained(tmp_path):
    from PIL import Image

    pipeline, said = load_teacher("toy"), []
    _draw_first(pipeline, tmp_path / "first.png", said.append)
    with Image.open(tmp_path / "first.png") as shown:
        assert shown.width > 3 * 160  # three columns
    assert "first.png" in said[-1]
    assert (
        "99.1% of its prompts (the teacher 99.7%), FD to real 6.75 (the teacher 6.38)" in said[-2]
    )
    _draw_first(pipeline, tmp_path / "first.png", lambda text: pytest.fail(text))


def test_help_teaches(capsys):
    assert main(["demo", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--pairs" in shown
    assert "default: runs/demo" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--samples", "1"], "samples is 1"),
        (
            ["--pairs", "9"],
            "pairs is 9, but dmd2 needs no pairs; leave it out, or take the method ladd",
        ),
        (["--paris", "3"], "paris"),
    ],
)
def test_bad_input_is_a_sentence(arguments, message, capsys, tmp_path):
    assert main(["demo", "--output", str(tmp_path / "demo"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_folder_with_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "holds something else (thesis.tex)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("student.docx", "something else (student.docx)"),
        ("metrics.txt", "something else (metrics.txt)"),
        ("metrics.json", "metrics.json' is not an evaluation's"),
        ("pipeline/thesis.tex", "not an earlier export"),
    ],
)
def test_names_that_are_nearly_ours_are_refused_first(tmp_path, capsys, name, words):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("years of work")
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_what_a_killed_demo_left_is_no_stranger(tmp_path):
    for name in (".metrics.json.123-0abc.tmp", ".grid.png.1-2.tmp"):
        (tmp_path / name).touch()
    for name in (".pipeline.abc_1234", ".pipeline.old.abc_1234", "pairs"):
        (tmp_path / name).mkdir()
    _check_folder(tmp_path, "ladd")


def test_the_recipe_is_the_one_in_examples():
    from pathlib import Path

    from nitrodistill.training.recipe import load_recipe

    file = Path(__file__).parents[2] / "nitrodistill" / "recipes" / "toy.yaml"
    shown = load_recipe(file)
    steps = shown.stages[0].trainer.steps
    assert shown.pairs is not None
    assert (
        shown.stages == toy_recipe(shown.pairs, shown.output, steps, batch_size=BATCH_SIZE).stages
    )
