"""The folder of a run, as evaluate, export and draw read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from nitrodistill.data import PromptConfig, read_prompts
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan, takes_interval
from nitrodistill.teachers import load_teacher
from nitrodistill.training import TrainedStudent, load_run_recipe, load_student
from nitrodistill.training.run import Which, run_places
from nitrodistill.training.sources import recipe_prompts, teacher_draws


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


def open_run(
    path: str,
    checkpoint: Which = "newest",
    stage: int | None = None,
    teacher: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Loads a run's teacher and student.

    Args:
        path: folder of the run.
        checkpoint: the newest, or the best by the recipe's `best_metric`.
        stage: number of the stage, from 0; None is the last that has a checkpoint.
        teacher: where the teacher is; None looks where the recipe says.
        settings: by name; they win over the recipe's `teacher_settings`.

    Raises:
        FileNotFoundError: if it is no run, the run has no checkpoint yet, or none was compared; or its teacher is
            gone.
    """
    recipe = load_run_recipe(path)
    loading = replace(recipe.teacher_settings, **(settings or {}))
    try:
        pipeline = load_teacher(teacher or recipe.teacher, loading)
    except FileNotFoundError as error:
        if teacher is not None:
            raise
        places = ", ".join(str(place) for place in dict.fromkeys(run_places(path)))
        raise FileNotFoundError(
            f"{error} The recipe of {path!r} names it, and relative paths there are looked for in {places}; say "
            "where it is now with --teacher."
        ) from error
    student = load_student(path, pipeline, checkpoint=checkpoint, stage=stage)
    if teacher is not None:
        student = replace(student, recipe=replace(student.recipe, teacher=teacher))
    return Run(Path(path), pipeline, student)


def prompts_of(run: Run, file: str | None, config: PromptConfig | None = None) -> list[str]:
    """The prompts in a file, checked by the teacher, or those of the run's data.

    Raises:
        FileNotFoundError: if the data is gone.
        ValueError: if a prompt holds words that the teacher does not know.
    """
    if file is None:
        try:
            return list(recipe_prompts(run.student.recipe))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} Or give prompts of your own with --prompts."
            ) from error
    prompts = read_prompts(file, config)
    for prompt in prompts:
        run.pipeline.check_prompt(prompt)
    return prompts


def preview_prompts(run: Run) -> list[str]:
    """The prompts of the run's previews, which its checkpoints keep: its data may be gone."""
    return list(_previews(run).get("prompts") or prompts_of(run, None))


def teacher_settings(run: Run) -> tuple[int, float]:
    """(steps, guidance scale) of the teacher, as the run's previews had them."""
    kept = _previews(run)
    if "guidance" in kept:
        return kept["num_inference_steps"], kept["guidance"]
    return teacher_draws(run.student.recipe)


def student_plan(student: TrainedStudent, steps: int | None) -> StepPlan:
    """The student's plan, or of a flow map one of as many steps as are asked for.

    Raises:
        ValueError: if it is no flow map.
    """
    if steps in (None, len(student.plan)):
        return student.plan
    if not takes_interval(student.denoiser):
        raise ValueError(
            f"the number of steps is {steps}, but this student was trained for its own {len(student.plan)}, and "
            "only a flow map samples in any number; leave that option out, or train one for as many."
        )
    return StepPlan.from_schedule(student.denoiser.schedule, steps)


def _previews(run: Run) -> dict[str, Any]:
    return cast("dict[str, Any]", run.student.checkpoint.state().get("previews") or {})
