"""The folder of a run, as evaluate and export read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nitrodistill.cli.teachers import load_teacher
from nitrodistill.data import PairStore, read_prompts
from nitrodistill.models import Pipeline
from nitrodistill.training import TrainedStudent, load_run_recipe, load_student

__all__ = ["Run", "open_run", "prompts_of"]


@dataclass(frozen=True)
class Run:
    """A run with its teacher and its newest student.

    Attributes:
        path: the folder.
        pipeline: the teacher.
        student: the moving average of the student's weights.
    """

    path: Path
    pipeline: Pipeline
    student: TrainedStudent


def open_run(path: str) -> Run:
    """Loads a run's teacher and student.

    Raises:
        FileNotFoundError: if it is no run, or the run has no checkpoint yet.
    """
    recipe = load_run_recipe(path)
    pipeline = load_teacher(recipe.teacher)
    return Run(Path(path), pipeline, load_student(path, pipeline))


def prompts_of(run: Run, file: str | None) -> list[str]:
    """The prompts in a file, checked by the teacher, or those of the run's pairs.

    Raises:
        ValueError: if a prompt holds words that the teacher does not know.
    """
    if file is None:
        return list(PairStore.open(run.student.recipe.pairs).prompts)
    prompts = read_prompts(file)
    for prompt in prompts:
        run.pipeline.check_prompt(prompt)
    return prompts
