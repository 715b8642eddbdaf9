"""Evaluations while training: a recipe's settings as the function that `run_recipe` calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from nitrodistill.evaluation import EvaluateConfig, TextureFeatures
from nitrodistill.evaluation.catalogue import CATALOGUE
from nitrodistill.evaluation.student import measure_student
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.settings import nearest
from nitrodistill.teachers import EMBEDDED
from nitrodistill.training.recipe import Recipe
from nitrodistill.training.sources import Sources, teacher_draws
from nitrodistill.types import Denoiser

FOLDER = "evaluation"
"""Where, in the folder of a run, the teacher's latents are kept: they are drawn once."""


def student_scores(
    recipe: Recipe, pipeline: Pipeline, sources: Sources
) -> Callable[[Denoiser, StepPlan], Mapping[str, float]] | None:
    """A function that measures a student on `recipe.evaluate_samples` pictures; None if no stage wants any.

    Prompts are those of the data, and the teacher draws as it drew the pairs. Noise and prompts are the same every
    time, and the noise is none that was trained on. The numbers are those of `nitrodistill evaluate`, without the
    costs. With `parallel: fsdp` the teacher draws anew each time: all processes must run its network alike,
    whatever each would find in a cache.

    Raises:
        ValueError: if a stage's `best_metric` is no metric, or the pictures are too small.
    """
    stages = [stage.trainer for stage in recipe.stages if stage.trainer.evaluate_every]
    if not stages:
        return None
    for trainer in stages:
        _check_metric(trainer.best_metric)
    if recipe.teacher not in EMBEDDED:
        # may find the pictures too small
        TextureFeatures()(torch.zeros(1, 3, *pipeline.resolution))
    sharded = any(stage.trainer.parallel == "fsdp" for stage in recipe.stages)
    steps, guidance = teacher_draws(recipe)
    config = EvaluateConfig(
        num_samples=recipe.evaluate_samples,
        num_inference_steps=steps,
        guidance=guidance,
        cost_repeats=0,
        num_pictures=0,
    )

    def scores(student: Denoiser, plan: StepPlan) -> Mapping[str, float]:
        found = measure_student(
            recipe.teacher,
            pipeline,
            student,
            plan,
            sources.prompts,
            config,
            cache=None if sharded else Path(recipe.output) / FOLDER,
            keep_student=False,  # another one every time: they would fill the disk
            progress=False,
        )
        return {name: metric.value for name, metric in found.student.items()}

    return scores


def _check_metric(name: str) -> None:
    if name and name.partition("@")[0] not in CATALOGUE:
        raise ValueError(f"best_metric is {name!r}, which is no metric; {nearest(name, CATALOGUE)}")
