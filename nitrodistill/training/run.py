"""The folder of a run: whose it is, and what a finished or stopped run left in it.

recipe.yaml         the recipe with every default written out
environment.json    versions, git state, device, directory: of the start, and of each resumption that differs
log.jsonl, logs/    numbers, also for tensorboard
previews/           teacher, student and its moving average, side by side
evaluation/         what the teacher drew for evaluations while training
checkpoints/
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from nitrodistill.data import PairStore
from nitrodistill.data.claims import Claims
from nitrodistill.files import is_temporary, remove_stale
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.settings import differences, to_plain
from nitrodistill.teachers import EMBEDDED
from nitrodistill.training.checkpoint import (
    Checkpoint,
    best_checkpoint,
    find_checkpoints,
    newest_checkpoint,
)
from nitrodistill.training.config import FREE
from nitrodistill.training.environment import note_environment, noted_environments
from nitrodistill.training.recipe import RECIPE, Recipe, load_recipe, parse_recipe, save_recipe
from nitrodistill.training.record import load_denoiser, plan_of
from nitrodistill.training.student import Student

Resume = Literal["auto", "never"]
Which = Literal["newest", "best"]

ENVIRONMENT, LOCK = "environment.json", ".lock"
_OWNED: set[tuple[int, Path]] = set()  # (process, folder); a forked process inherits its parent's
_MOST_NUMBERS = 64_000_000  # of the latents that memorisation is measured against: 256 MB


@dataclass(frozen=True)
class TrainedStudent:
    """A student as a run left it.

    Attributes:
        denoiser: the network.
        plan: how it samples.
        checkpoint: where its weights are from.
        recipe: how it was trained.

    Example:
        >>> student = nd.training.load_student(run, teacher)
        >>> student.plan, student.checkpoint.step
        (StepPlan(Step(t=999, input=(0, 1), output=(0, 1))), 1)
    """

    denoiser: DiffusersDenoiser
    plan: StepPlan
    checkpoint: Checkpoint
    recipe: Recipe

    @property
    def student(self) -> Student:
        """Network and plan alone, to save or push."""
        return Student(self.denoiser, self.plan, self.recipe.stages[self.checkpoint.stage].lora)


def load_run_recipe(run: str | Path) -> Recipe:
    """The recipe of a run, with the places of its teachers and data as absolute paths.

    Relative ones are looked for in `run_places`, whatever the working directory is now.

    Raises:
        FileNotFoundError: if `run` is not the folder of one.
        ValueError: if the recipe cannot be read, or is not the one that the newest checkpoint was made with;
            paths and what a resumed run may change may differ.

    Example:
        >>> nd.training.load_run_recipe(run).output
        'runs/toy'
    """
    file = Path(run) / RECIPE
    if not file.is_file():
        raise FileNotFoundError(
            f"{str(run)!r} is not the folder of a run: it has no {RECIPE}. Give the output of train."
        )
    places = run_places(run)
    recipe = _placed(load_recipe(file), places)
    record = _recorded(Path(run))
    if record is not None:
        changed = differences(_fixed(_placed(parse_recipe(record), places)), _fixed(recipe))
        if changed:
            raise ValueError(
                f"{str(file)!r} is not the recipe that this run was trained with ({'; '.join(changed[:3])}); "
                "write there what it was."
            )
    return recipe


def run_places(run: str | Path) -> list[Path]:
    """The folders that relative paths in a run's recipe are relative to: the first that has what they name.

    Where train would have been started if all had moved along with the run (`runs/a` is `/new/runs/a` now:
    `/new`), where it was started (environment.json), and the working directory.
    """
    folder, parts = Path(run).resolve(), Path(load_recipe(Path(run) / RECIPE).output).parts
    ends = len(folder.parts) - len(parts)
    moved = ends > 0 and folder.parts[ends:] == parts
    places = [Path(*folder.parts[:ends])] if moved else []
    with suppress(ValueError):  # damaged: evaluate says so, and goes on
        noted = noted_environments(folder / ENVIRONMENT)
        places += [Path(str(one["directory"])) for one in noted[-1:] if "directory" in one]
    return [*places, Path.cwd()]


def _placed(recipe: Recipe, places: Sequence[Path]) -> Recipe:
    """The recipe with absolute paths in the place of what is in one of these folders; the rest as it is."""

    def placed(name: str | None) -> str | None:
        if not name or name in EMBEDDED or name in ("recipe", "previous"):
            return name
        path, *column = name.rsplit(":", 1)  # of a table of prompts
        found = (place / path for place in places if (place / path).exists())
        return next((":".join([str(one.resolve()), *column]) for one in found), name)

    data = {name: placed(getattr(recipe, name)) for name in ("pairs", "real", "prompts")}
    stages = [replace(stage, teacher=str(placed(stage.teacher))) for stage in recipe.stages]
    loading = replace(recipe.teacher_settings, vae=placed(recipe.teacher_settings.vae))
    teacher = str(placed(recipe.teacher))
    return replace(recipe, teacher=teacher, teacher_settings=loading, stages=stages, **data)


def _recorded(run: Path) -> object:
    """The recipe in the newest checkpoint that can be read; None without any.

    Raises:
        ValueError: if none of them can.
    """
    damaged: ValueError | None = None
    for checkpoint in find_checkpoints(run):
        try:
            return checkpoint.state().get("recipe")
        except ValueError as error:  # named, and the one before taken, where its weights are read
            damaged = damaged or error
    if damaged is not None:
        raise damaged
    return None


def find_student(run: str | Path, which: Which = "newest", stage: int | None = None) -> Checkpoint:
    """The checkpoint of a run's last stage, or of another one.

    Args:
        run: folder of the run.
        which: the newest one, or the best by the recipe's `best_metric`.
        stage: number of the stage, from 0; None is the last that has a checkpoint.

    Raises:
        FileNotFoundError: if there is no checkpoint yet, or none was evaluated.
        ValueError: if its checkpoints are damaged.

    Example:
        >>> nd.training.find_student(run).step
        1
    """
    found = newest_checkpoint(Path(run), stage)
    if found is None:
        of_stage = "" if stage is None else f" of stage {stage} (they count from 0)"
        raise FileNotFoundError(
            f"the run {str(run)!r} has no checkpoint{of_stage} yet; train it longer."
        )
    if which == "best":
        found = best_checkpoint(Path(run), found.stage)
        if found is None:
            raise FileNotFoundError(
                f"the run {str(run)!r} has compared no checkpoints; set evaluate_every and best_metric in its "
                "recipe's trainer, or take the newest."
            )
    return found


def load_student(
    run: str | Path,
    pipeline: Pipeline,
    *,
    average: bool = True,
    checkpoint: Which = "newest",
    stage: int | None = None,
) -> TrainedStudent:
    """Loads the student of a run's last stage, or of another one.

    A LoRA student is a new role on the pipeline's network, which stays the teacher between its calls.

    Args:
        run: folder of the run.
        pipeline: its teacher.
        average: the moving average of the weights, where there is one, else the weights themselves.
        checkpoint: the newest one, or the best by the recipe's `best_metric`.
        stage: number of the stage, from 0; None is the last that has a checkpoint.

    Raises:
        FileNotFoundError: if it is no run, there is no checkpoint in it yet, or none was evaluated.
        ValueError: if its checkpoints are damaged or do not fit the teacher.

    Example:
        >>> student = nd.training.load_student(run, teacher)
        >>> x0 = nd.sample(student.denoiser, student.plan, noise, condition)
    """
    recipe, found = load_run_recipe(run), find_student(run, checkpoint, stage)
    plan = plan_of(found)
    denoiser = load_denoiser(found, pipeline.denoiser, average=average)
    denoiser.module.requires_grad_(False)
    return TrainedStudent(denoiser, plan, found, recipe)


def newest_stage(output: Path) -> int:
    """The number of the newest stage that has a checkpoint; 0 if none has."""
    found = find_checkpoints(output)
    return found[0].stage if found else 0


def check_folder(output: Path, recipe: Recipe, resume: Resume, data: dict[str, str]) -> None:
    """Checks that a run may be written to, or gone on with in, a folder.

    Args:
        output: the folder; it need not exist.
        recipe: the run's.
        resume: "auto" goes on with what is there of the same recipe; "never" wants a new or empty folder.
        data: part of the batches -> identity of its store.

    Raises:
        FileExistsError: if it holds something else, or a run that must not be resumed.
        ValueError: if it holds a run of another recipe or of other data.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise FileExistsError(f"{str(output)!r} is a file; choose a folder for the run.")
    names = sorted(p.name for p in output.iterdir() if p.name != LOCK and not is_temporary(p.name))
    if not names:
        return
    if RECIPE not in names:
        raise FileExistsError(
            f"{str(output)!r} exists and holds something else ({names[0]}); choose another folder."
        )
    if resume == "never":
        raise FileExistsError(
            f"{str(output)!r} holds a run already; resume it, or choose another folder."
        )
    stage = newest_stage(output)
    if stage >= len(recipe.stages):
        raise ValueError(
            f"{str(output)!r} has a checkpoint of stage {stage}, which this recipe does not have (it counts "
            "from 0); move that away, or choose another folder."
        )
    noted_environments(output / ENVIRONMENT)
    here = _fixed(_placed(recipe, [Path.cwd()]))
    changed = differences(_fixed(load_run_recipe(output)), here)
    if changed:
        raise ValueError(
            f"{str(output)!r} holds a run of another recipe ({'; '.join(changed[:3])}); use that "
            "recipe to resume it, or choose another folder."
        )
    _check_same_data(output, data)


def _check_same_data(output: Path, data: dict[str, str]) -> None:
    """Data may have moved since a run was stopped, but it must be the same."""
    checkpoint = newest_checkpoint(output)
    before = None if checkpoint is None else checkpoint.state().get("fixed")
    known: Any = before.get("data", {}) if isinstance(before, dict) else {}
    for part, identity in known.items():
        if part in data and data[part] != identity:
            raise ValueError(
                f"the run in {str(output)!r} was trained on other {part} than the recipe names now; use the "
                "same to resume it, or choose another folder."
            )


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """What must not change while a run is resumed."""
    free = {"output": "", "pairs": None, "real": None, "prompts": None}
    plain = to_plain(replace(recipe, **free, preview_prompts=(), trackers=None))
    for stage in plain["stages"]:
        for name in FREE:
            del stage["trainer"][name]
    return plain


@contextmanager
def owned(output: Path, recipe: Recipe, accelerator: Accelerator) -> Iterator[None]:
    """Makes the folder, locks it for the length of a `with` block, and notes recipe and environment in it.

    For the main process.

    Raises:
        OSError: if it cannot be written.
        RuntimeError: if another process, or another run in this one, trains in it.
    """
    here = (os.getpid(), output.resolve())
    if here in _OWNED:  # a process's own lock does not stop it
        raise RuntimeError(
            f"this process trains in {str(output)!r} already; let that run end or close() it, or choose another "
            "folder."
        )
    _OWNED.add(here)
    try:
        with _locked(output, recipe, accelerator):
            yield
    finally:
        _OWNED.discard(here)


@contextmanager
def _locked(output: Path, recipe: Recipe, accelerator: Accelerator) -> Iterator[None]:
    try:
        output.mkdir(parents=True, exist_ok=True)
        claims = Claims(output / LOCK)
        claims.open()
    except OSError as error:
        raise _not_writable(error, output) from error
    try:
        with claims.claimed(0) as granted:
            if not granted:
                raise RuntimeError(
                    f"another process trains in {str(output)!r}; wait until it has ended, or choose another "
                    "folder."
                )
            try:
                remove_stale(output)
                save_recipe(recipe, output / RECIPE)
                note_environment(output / ENVIRONMENT, accelerator)
            except OSError as error:
                raise _not_writable(error, output) from error
            yield
    finally:
        claims.close()


def _not_writable(error: OSError, output: Path) -> OSError:
    return type(error)(
        f"cannot write the run to {str(output)!r}: {error.strerror or error}; choose a folder that "
        "can be written."
    )


def training_latents(recipe: Recipe) -> Tensor:
    """The latents that a run trained on, `(M, C, H, W)`: all, or as many as fit into 256 MB, evenly spread.

    Raises:
        FileNotFoundError: if there are none, or their store is gone.
    """
    path = recipe.pairs or recipe.real
    if path is None:
        raise FileNotFoundError("the run trained on no latents, only on prompts.")
    store = PairStore.open(path)
    size = store.read_latents([0]).x0.numel()
    count = min(len(store), max(1, _MOST_NUMBERS // size))
    rows = torch.linspace(0, len(store) - 1, count).long()
    return torch.cat([store.read_latents(part.tolist()).x0 for part in rows.split(256)])
