"""The folder of a run, as evaluate and export read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nitrodistill.data import read_prompts
from nitrodistill.models import Pipeline
from nitrodistill.teachers import load_teacher
from nitrodistill.training import TrainedStudent, load_run_recipe, load_student
from nitrodistill.training.run import Which
from nitrodistill.training.sources import recipe_prompts


@dataclass(frozen=True)
class Run:
    """A run with its teacher and its student.

    Attributes:
        path: the folder.
        pipeline: the teacher.
        student: the moving average of the student's weights.
    """

    path: Path
    pipeline: Pipeline
    student: TrainedStudent


def open_run(path: str, checkpoint: Which = "newest", stage: int | None = None) -> Run:
    """Loads a run's teacher and student.

    Args:
        path: folder of the run.
        checkpoint: the newest, or the best by the recipe's `best_metric`.
        stage: number of the stage, from 0; None is the last that has a checkpoint.

    Raises:
        FileNotFoundError: if it is no run, the run has no checkpoint yet, or none was compared.
    """
    recipe = load_run_recipe(path)
    pipeline = load_teacher(recipe.teacher)
    student = load_student(path, pipeline, checkpoint=checkpoint, stage=stage)
    return Run(Path(path), pipeline, student)


def prompts_of(run: Run, file: str | None) -> list[str]:
    """The prompts in a file, checked by the teacher, or those of the run's data.

    Raises:
        ValueError: if a prompt holds words that the teacher does not know.
    """
    if file is None:
        return list(recipe_prompts(run.student.recipe))
    prompts = read_prompts(file)
    for prompt in prompts:
        run.pipeline.check_prompt(prompt)
    return prompts
