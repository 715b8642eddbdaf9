"""The folder of a run, as evaluate and export read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from nitrodistill.cli.teachers import load_teacher
from nitrodistill.data import PairStore, read_prompts
from nitrodistill.models import Pipeline
from nitrodistill.training import TrainedStudent, load_run_recipe, load_student

__all__ = ["Run", "Which", "open_run", "prompts_of", "training_latents"]

MOST_NUMBERS = 64_000_000  # of the latents that memorisation is measured against: 256 MB


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


Which = Literal["newest", "best"]


def open_run(path: str, checkpoint: Which = "newest") -> Run:
    """Loads a run's teacher and student.

    Args:
        path: folder of the run.
        checkpoint: the newest, or the best by the recipe's `best_metric`.

    Raises:
        FileNotFoundError: if it is no run, the run has no checkpoint yet, or none was compared.
    """
    recipe = load_run_recipe(path)
    pipeline = load_teacher(recipe.teacher)
    return Run(Path(path), pipeline, load_student(path, pipeline, checkpoint=checkpoint))


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


def training_latents(pairs: str | Path) -> Tensor:
    """The latents of a pair store, `(M, C, H, W)`: all, or as many as fit into 256 MB, evenly spread.

    Raises:
        FileNotFoundError: if there is no store.
    """
    store = PairStore.open(pairs)
    size = store.read([0]).x0.numel()
    count = min(len(store), max(1, MOST_NUMBERS // size))
    rows = torch.linspace(0, len(store) - 1, count).long()
    parts = rows.split(256)
    return torch.cat([store.read(part.tolist()).x0 for part in parts])
