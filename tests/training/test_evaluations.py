"""Evaluations while training: the same numbers as afterwards, the teacher drawn once, the best kept."""

from __future__ import annotations

import json

import pytest

from nitrodistill.cli.main import main
from nitrodistill.models import Pipeline
from nitrodistill.training import load_run_recipe, load_student
from nitrodistill.training.evaluations import student_scores
from nitrodistill.training.sources import Sources


def train(place, *options):
    asked = [str(option) for option in options]
    return main(["train", "--config", str(place.recipe), "--quiet", *asked])


def test_the_best_checkpoint_is_the_one_that_measures_best(place, monkeypatch):
    every = ("--steps", 4, "--stages.trainer.evaluate_every", 2, "--evaluate_samples", 6)
    best = ("--stages.trainer.best_metric", "fd_latents")
    assert train(place, *every, *best) == 0
    run = place.root / "run"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = {line["step"]: line for line in lines if "evaluation/fd_latents" in line}
    assert sorted(found) == [2, 4]
    assert found[2]["evaluation/edge_ratio"] != found[4]["evaluation/edge_ratio"]
    assert not any("ms" in name for line in found.values() for name in line if "eval" in name)

    pipeline, recipe = Pipeline.load(place.teacher), load_run_recipe(run)
    student = load_student(run, pipeline, checkpoint="best")
    lowest = min(found, key=lambda step: found[step]["evaluation/fd_latents"])
    assert student.checkpoint.step == lowest
    kept = sorted(path.name for path in (run / "evaluation").rglob("teacher*/*"))
    assert kept, "the teacher's latents"
    assert not list((run / "evaluation").glob("student-*")), (
        "nothing that grows with every evaluation"
    )
    sampler = pipeline.guided
    monkeypatch.setattr(pipeline, "guided", lambda scale: _Unwanted(sampler(scale)), raising=False)
    scores = student_scores(recipe, pipeline, Sources.open(recipe, pipeline))
    assert scores is not None
    again = scores(student.denoiser, student.plan)
    for name, value in again.items():
        assert value == pytest.approx(found[lowest][f"evaluation/{name}"], rel=1e-4), name


class _Unwanted:
    """A teacher that must not draw again."""

    def __init__(self, guided):
        self.module, self.schedule = guided.module, guided.schedule
        self.prediction_type = guided.prediction_type

    def __call__(self, *arguments):
        raise AssertionError("the teacher's latents are kept")


def test_without_evaluations_there_is_nothing_to_call(place):
    assert train(place) == 0
    pipeline, recipe = Pipeline.load(place.teacher), load_run_recipe(place.root / "run")
    assert student_scores(recipe, pipeline, Sources.open(recipe, pipeline)) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("evaluate_every", 2, "best_metric", "fd_teecher"), "did you mean 'fd_teacher'"),
        (("best_metric", "fd_teacher"), "evaluate_every is 0"),
        (("evaluate_every", -1), "evaluate_every is -1"),
    ],
)
def test_mistakes_are_told_before_the_work(place, capsys, options, words):
    pairs = zip(options[::2], options[1::2], strict=True)
    given = [w for name, value in pairs for w in (f"--stages.trainer.{name}", value)]
    assert train(place, *given) == 2
    assert words in capsys.readouterr().err
    assert not (place.root / "run").exists()


def test_too_few_samples(place, capsys):
    assert train(place, "--evaluate_samples", 2) == 2
    assert "evaluate_samples is 2; it must be at least 4" in capsys.readouterr().err
