"""The verbs, in this process: the road works, and mistakes leave one sentence and nothing else."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import yaml

import nitrodistill.export  # noqa: F401  (the module; the package's attribute is the function)
from nitrodistill import toy
from nitrodistill.cli import runs
from nitrodistill.cli.main import main
from nitrodistill.evaluation import Evaluation, Metric
from nitrodistill.evaluation.report import model_card_table
from nitrodistill.evaluation.results import check_output
from nitrodistill.models import Pipeline
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.training import find_checkpoints, load_student


def _fails(capsys, *argv):
    """Runs a command that must fail, and returns its one sentence."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence.startswith("nitrodistill: ")
    return sentence


def _train(place, *more):
    return main(["train", "--config", str(place.recipe), "--quiet", *map(str, more)])


def test_generate_writes_pairs_and_a_second_run_leaves_them(place, capsys):
    output = place.root / "pairs"
    command = [
        "generate", "--teacher", str(place.teacher), "--prompts", str(place.prompts),
        "--output", str(output), "--num-pairs", "3", "--num-inference-steps=2",
    ]  # fmt: skip
    assert main(command) == 0
    assert "3 pairs of 2 prompts" in capsys.readouterr().out
    before = {f: f.stat().st_mtime_ns for f in output.rglob("*") if f.is_file()}
    assert main(command) == 0
    assert before == {f: f.stat().st_mtime_ns for f in output.rglob("*") if f.is_file()}


def test_train_evaluate_and_the_numbers(place, capsys):
    assert (
        _train(place, "--steps", 3, "--stages.trainer.optimizers.student.learning_rate", 2e-3) == 0
    )
    assert "trained to step 3" in capsys.readouterr().out
    run = place.root / "run"
    trainer = yaml.safe_load((run / "recipe.yaml").read_text())["stages"][0]["trainer"]
    assert trainer["steps"] == 3
    assert trainer["optimizers"]["student"]["learning_rate"] == 2e-3
    assert trainer["optimizers"]["discriminator"]["learning_rate"] == 1e-3

    more = [
        "--num_samples",
        "8",
        "--num_inference_steps",
        "2",
        "--cost_repeats",
        "0",
        "--samples_per_prompt",
        "2",
    ]
    assert main(["evaluate", "--run", str(run), *more]) == 0
    assert "student" in capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"teacher", "naive", "student"} <= set(metrics["models"])
    assert (run / "grid.png").is_file()
    report = (run / "report.html").read_text()
    assert "The whole recipe" in report
    assert "circle on a black background" in report


def test_a_finished_run_is_left_and_a_longer_one_goes_on(place, capsys):
    assert _train(place) == 0
    assert _train(place) == 0
    assert "finished already" in capsys.readouterr().out
    assert _train(place, "--steps", 3) == 0
    assert find_checkpoints(place.root / "run")[0].step == 3


def test_interrupted_and_repeated_ends_like_a_run_that_was_not(place, monkeypatch):
    from nitrodistill.training import Trainer

    other = place.root / "other"
    every = ["--steps", 4, "--stages.trainer.checkpoint_every", 1]
    assert _train(place, *every, "--output", other) == 0
    step = Trainer._train_step

    def interrupt(self, stream):
        if self.step == 2:
            raise KeyboardInterrupt
        return step(self, stream)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupt)
        assert _train(place, *every) == 130
    assert _train(place, *every) == 0
    pipeline = Pipeline.load(place.teacher)
    one, two = (load_student(folder, pipeline) for folder in (other, place.root / "run"))
    pairs = zip(one.denoiser.module.parameters(), two.denoiser.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_export_hands_over_the_average_and_its_numbers(place, monkeypatch, capsys):
    """The export itself, with its fresh process, is tested where it lives."""
    seen = {}

    def export(pipeline, student, plan, output, **options):
        seen.update(options, student=student, plan=plan, output=output)
        Path(output).mkdir(exist_ok=True)
        (Path(output) / "README.md").write_text("# A card\n\n```python\npipe()\n```\n")

    monkeypatch.setattr(sys.modules["nitrodistill.export"], "export", export)
    assert _train(place) == 0
    run = place.root / "run"
    assert main(["export", "--run", str(run), "--output", str(place.root / "out")]) == 0
    assert capsys.readouterr().out.endswith("draw with\n  pipe()\n"), "the card's example"
    expected = load_student(run, Pipeline.load(place.teacher))
    pairs = zip(
        seen["student"].module.parameters(), expected.denoiser.module.parameters(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    assert seen["base_model"] == str(place.teacher)
    assert len(seen["prompts"]) == 2
    assert seen["metrics"] is None

    settings = {"student_fingerprint": fingerprint(expected.denoiser.module)}
    measured = Evaluation({"student": {"alignment": Metric(0.9)}}, settings)
    measured.save(run / "metrics.json")
    assert main(["export", "--run", str(run), "--output", str(place.root / "out")]) == 0
    assert seen["metrics"].table == model_card_table(measured)
    assert [one["type"] for one in seen["metrics"].results] == ["alignment"]
    assert seen["metrics"].picture is None
    assert "evaluate again" not in capsys.readouterr().err
    dataclasses.replace(measured, settings={"student_fingerprint": "0"}).save(run / "metrics.json")
    assert main(["export", "--run", str(run), "--output", str(place.root / "out")]) == 0
    assert seen["metrics"] is None
    assert "measured another student" in capsys.readouterr().err

    pushed = []

    def push(folder, repo_id, *, private):
        pushed.append((folder, repo_id, private))
        return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(sys.modules["nitrodistill.export"], "check_hub", pushed.append)
    monkeypatch.setattr(sys.modules["nitrodistill.export"], "push", push)
    out = str(place.root / "out")
    assert main(["export", "--run", str(run), "--output", out, "--push", "me/it"]) == 0
    assert pushed == ["me/it", (out, "me/it", True)], "name and login first, the upload last"
    assert "https://huggingface.co/me/it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [(["--push", "it"], "'it' is not a name on the Hub"), (["--public"], "give --push user/name")],
)
def test_a_push_that_cannot_work_is_told_before_the_run_is_read(options, sentence, capsys):
    assert main(["export", "--run", "nowhere", "--output", "out", *options]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["generate", "encode", "train", "evaluate", "export"])
def test_help_has_a_paragraph_options_and_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    printed = capsys.readouterr().out
    assert len(printed.split("options:")[0]) > 200
    assert "example:\n" in printed
    assert f"nitrodistill {verb}" in printed.split("example:")[1]


def test_unknown_prompt_words(place, capsys):
    place.prompts.write_text("a small red circel on a black background\n")
    output = place.root / "pairs"
    sentence = _fails(
        capsys, "generate", "--teacher", "toy", "--prompts", place.prompts, "--output", output
    )
    assert "'circel'" in sentence
    assert "'circle'" in sentence
    assert not output.exists()


def test_prompt_files_that_are_empty_or_none(place, capsys):
    place.prompts.write_text("\n  \n")
    output = place.root / "pairs"
    for file, words in [(place.prompts, "holds no prompt"), ("nowhere.txt", "no prompt file")]:
        sentence = _fails(
            capsys, "generate", "--teacher", place.teacher, "--prompts", file, "--output", output
        )
        assert words in sentence
        assert not output.exists()


def test_evaluate_with_prompts_that_are_unknown_or_none(place, capsys, monkeypatch):
    def load_teacher(name, settings):
        return Pipeline(pipeline.diffusers, pipeline.denoiser, toy.check_prompt)

    assert _train(place) == 0
    pipeline = Pipeline.load(place.teacher)
    monkeypatch.setattr(runs, "load_teacher", load_teacher)
    output = place.root / "result"
    for text, words in [
        ("a small red circel on a black background\n", "'circel'"),
        ("\n  \n", "holds no prompt"),
    ]:
        place.prompts.write_text(text)
        asked = ("--run", place.root / "run", "--prompts", place.prompts, "--output", output)
        assert words in _fails(capsys, "evaluate", *asked)
        assert not output.exists()


def test_evaluate_refuses_a_place_before_the_work(place, capsys, monkeypatch):
    asked = ("evaluate", "--run", place.root / "none", "--output")
    for name, text in [("metrics.json", '{"loss": 1}'), ("grid.png", "my grid"), ("deep", "text")]:
        folder = place.root / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text(text)
        output = folder / name if name == "deep" else folder
        assert f"{name}' is" in _fails(capsys, *asked, output)
        assert [(f.name, f.read_text()) for f in folder.iterdir()] == [(name, text)]
    monkeypatch.setattr(tempfile, "mkdtemp", _refuse)
    assert "is not writable (No space left on device)" in _fails(capsys, *asked, place.root / "new")
    assert not (place.root / "new").exists()


def _refuse(**options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_evaluate_replaces_an_evaluation(place):
    folder = place.root / "result"
    Evaluation({"student": {"alignment": Metric(0.9)}}).save(folder / "metrics.json")
    (folder / "grid.png").write_text("its pictures")
    check_output(folder)


def test_teachers_that_are_none(place, capsys, tiny_diffusers):
    from diffusers import CMStochasticIterativeScheduler

    (place.root / "folder").mkdir()
    consistency = place.root / "consistency"
    tiny_diffusers(CMStochasticIterativeScheduler()).save_pretrained(consistency)
    output = place.root / "pairs"
    for teacher, words in [
        (place.root / "nowhere", "no teacher at"),
        (place.root / "folder", "is not a diffusers pipeline"),
        (consistency, "CMStochasticIterativeScheduler"),
    ]:
        generating = ("--prompts", place.prompts, "--output", output)
        assert words in _fails(capsys, "generate", "--teacher", teacher, *generating)
        training = ("--config", place.recipe, "--teacher", teacher)
        assert words in _fails(capsys, "train", *training)
        assert not output.exists()
        assert not (place.root / "run").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--stages.settings.taps", "[mid_blok]"),
            "no submodule 'mid_blok'; the nearest are mid_block",
        ),
        (("--stages.lora.targets", "[to_x]"), "LoRA's target 'to_x' names no"),
    ],
)
def test_what_does_not_fit_is_told_before_weights_are_read(place, capsys, options, sentence):
    """Of the teacher there are the configs alone, as of one that is not downloaded yet."""
    import shutil

    shutil.copytree(place.teacher, place.root / "configs", ignore=shutil.ignore_patterns("*.safe*"))
    training = ("--config", place.recipe, "--teacher", place.root / "configs")
    assert sentence in _fails(capsys, "train", *training, *options)
    assert not (place.root / "run").exists()


def test_pairs_of_another_teacher(place, capsys, tiny_diffusers, tiny_scheduler):
    other = tiny_diffusers(tiny_scheduler)
    with torch.no_grad():
        next(other.unet.parameters()).add_(1)
    other.save_pretrained(place.root / "other")
    sentence = _fails(capsys, "train", "--config", place.recipe, "--teacher", place.root / "other")
    assert "made by teacher 'tiny'" in sentence
    assert not (place.root / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(techer="x"), "unknown key 'techer'; did you mean 'teacher'?"),
        (
            lambda data: data["stages"][0]["settings"].update(adversarial_wieght=1),
            "unknown key 'settings.adversarial_wieght'; did you mean 'adversarial_weight'?",
        ),
        (
            lambda data: data["stages"][0]["trainer"].update(steps=0),
            "steps is 0; it must be at least 1",
        ),
        (lambda data: data.update(stages=[]), "stages is empty"),
    ],
)
def test_recipes_with_mistakes(place, capsys, change, words):
    data = yaml.safe_load(place.recipe.read_text())
    change(data)
    place.recipe.write_text(yaml.safe_dump(data))
    assert words in _fails(capsys, "train", "--config", place.recipe)
    assert not (place.root / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--stages.trainer.stpes", "3"], "'stages.0.trainer.stpes'; did you mean 'steps'?"),
        (["--techer", "x"], "did you mean --teacher?"),
        (["--resume", "perhaps"], "perhaps"),
        (["--pairs", "nowhere"], "no pair store"),
    ],
)
def test_options_with_mistakes(place, capsys, options, words):
    assert words in _fails(capsys, "train", "--config", place.recipe, *options)
    assert not (place.root / "run").exists()


def test_generate_with_no_steps(place, capsys):
    output = place.root / "pairs"
    asked = ("--teacher", place.teacher, "--prompts", place.prompts, "--output", output)
    assert "num_inference_steps is 0" in _fails(
        capsys, "generate", *asked, "--num_inference_steps", 0
    )
    assert not output.exists()


def test_no_recipe(place, capsys):
    assert "no recipe at 'none.yaml'" in _fails(capsys, "train", "--config", "none.yaml")
    assert "needs a recipe: nitrodistill train FILE" in _fails(capsys, "train")
    place.recipe.write_text("stages: [")
    assert "not YAML" in _fails(capsys, "train", "--config", place.recipe)


def test_folders_that_hold_something_else(place, capsys):
    taken = place.root / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")
    asked = ("--teacher", place.teacher, "--prompts", place.prompts, "--output", taken)
    for sentence in (
        _fails(capsys, "generate", *asked),
        _fails(capsys, "train", "--config", place.recipe, "--output", taken),
    ):
        assert "something else" in sentence
        assert "thesis.tex" in sentence
    assert [f.name for f in taken.iterdir()] == ["thesis.tex"]


def test_no_permission_to_write(place, capsys, monkeypatch):
    make = Path.mkdir

    def refuse(self, *args, **options):
        if "locked" in self.parts:
            raise PermissionError(13, "Permission denied")
        make(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    output = place.root / "locked" / "here"
    asked = ("--teacher", place.teacher, "--prompts", place.prompts, "--output", output)
    for sentence in (
        _fails(capsys, "generate", *asked),
        _fails(capsys, "train", "--config", place.recipe, "--output", output),
    ):
        assert "locked/here" in sentence
        assert "Permission denied" in sentence
    assert not output.exists()


def test_runs_that_are_none(place, capsys):
    for verb, more in [("evaluate", ()), ("export", ("--output", place.root / "out"))]:
        assert "not the folder of a run" in _fails(capsys, verb, "--run", place.pairs, *more)
    assert not (place.root / "out").exists()
