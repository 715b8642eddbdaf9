"""Runs a recipe: its stages one after the other, and where each left off after a stop.

The folder of a run:

    recipe.yaml         the recipe with every default written out
    environment.json    versions, git state, device: of the start, and of each resumption that differs
    log.jsonl, logs/    numbers, also for tensorboard
    previews/           teacher, student and its moving average, side by side
    checkpoints/
"""

from __future__ import annotations

import json
import math
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from nitrodistill.data import PairStore, PairStream
from nitrodistill.data.files import write_text
from nitrodistill.methods import LADD
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.sampling import StepPlan
from nitrodistill.training.checkpoint import Checkpoint, newest_checkpoint
from nitrodistill.training.config import FREE, check_optimizers, to_plain
from nitrodistill.training.log import make_accelerator
from nitrodistill.training.previews import Previewer
from nitrodistill.training.recipe import RECIPE, Recipe, load_recipe, save_recipe
from nitrodistill.training.trainer import STUDENT, State, Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["TrainedStudent", "load_run_recipe", "load_student", "run_recipe"]

Resume = Literal["auto", "never"]

ENVIRONMENT = "environment.json"
# left by a process that was killed while it wrote
_TEMPORARY = re.compile(r"\.(recipe\.yaml|environment\.json|log\.jsonl)\..*\.tmp")


@dataclass(frozen=True)
class TrainedStudent:
    """A student as a run left it.

    Attributes:
        denoiser: the network.
        plan: how it samples.
        checkpoint: where its weights are from.
        recipe: how it was trained.
    """

    denoiser: DiffusersDenoiser
    plan: StepPlan
    checkpoint: Checkpoint
    recipe: Recipe


def run_recipe(recipe: Recipe, pipeline: Pipeline, *, resume: Resume = "auto") -> Iterator[State]:
    """Distils, stage by stage.

    Everything is checked before anything is written: nothing is left behind by a mistake.

    Args:
        recipe: what to do.
        pipeline: the recipe's teacher, in float32. It is frozen and moved to the fastest device.
        resume: "auto" goes on with what `recipe.output` holds of the same recipe; "never" wants a
            folder that is new or empty.

    Returns:
        the State after each step, of all stages; iterate to train.

    Raises:
        FileNotFoundError: if there is no pair store.
        ValueError: if another teacher made the pairs, settings of a stage do not fit the network, a
            preview's prompt is unknown to the teacher, or the folder holds a run of another recipe.
        FileExistsError: if the folder holds something else.
    """
    output = Path(recipe.output)
    store = PairStore.open(recipe.pairs)
    _check_teacher(store, pipeline)
    _check_folder(output, recipe, resume)
    _check_same_pairs(output, store)
    for prompt in recipe.preview_prompts:
        pipeline.check_prompt(prompt)
    accelerator = make_accelerator(recipe.stages[0].trainer.mixed_precision, output)
    pipeline.diffusers.to(accelerator.device)
    for stage in recipe.stages[1:]:  # the first is prepared below
        method = LADD.from_config(stage.method, pipeline.denoiser, pipeline.denoiser)
        check_optimizers(stage.trainer.optimizers, list(method.trainable()))
    first = _Prepared.make(recipe, 0, pipeline, store, accelerator)
    return _states(recipe, pipeline, store, accelerator, first)


def _states(
    recipe: Recipe,
    pipeline: Pipeline,
    store: PairStore,
    accelerator: Accelerator,
    prepared: _Prepared,
) -> Iterator[State]:
    _claim_folder(Path(recipe.output), recipe, accelerator)
    try:
        for number in range(len(recipe.stages)):
            if number > 0:
                accelerator.free_memory()
                prepared = _Prepared.make(recipe, number, pipeline, store, accelerator)
            yield from prepared.states(Path(recipe.output))
    finally:
        accelerator.end_training()


def load_run_recipe(run: str | Path) -> Recipe:
    """The recipe of a run.

    Raises:
        FileNotFoundError: if `run` is not the folder of one.
    """
    file = Path(run) / RECIPE
    if not file.is_file():
        raise FileNotFoundError(
            f"{str(run)!r} is not the folder of a run: it has no {RECIPE}. Give the output of train."
        )
    return load_recipe(file)


def load_student(run: str | Path, pipeline: Pipeline, *, average: bool = True) -> TrainedStudent:
    """Loads the newest student of a run.

    Args:
        run: folder of the run.
        pipeline: its teacher.
        average: the moving average of the weights, else the weights themselves.

    Raises:
        FileNotFoundError: if it is no run, or there is no checkpoint in it yet.
        ValueError: if its checkpoints are damaged or do not fit the teacher.
    """
    recipe = load_run_recipe(run)
    checkpoint = newest_checkpoint(Path(run))
    if checkpoint is None:
        raise FileNotFoundError(f"the run {str(run)!r} has no checkpoint yet; train it longer.")
    student = pipeline.denoiser.copy()
    name = f"{STUDENT}.ema" if average else STUDENT
    _load_weights(student, checkpoint, name)
    student.module.requires_grad_(False).eval()
    config = recipe.stages[checkpoint.stage].method
    method = LADD.from_config(config, pipeline.denoiser, student)
    return TrainedStudent(student, method.plan, checkpoint, recipe)


@dataclass(frozen=True)
class _Prepared:
    """A stage that is ready to train."""

    trainer: Trainer
    student: DiffusersDenoiser
    previewer: Previewer

    @classmethod
    def make(
        cls,
        recipe: Recipe,
        number: int,
        pipeline: Pipeline,
        store: PairStore,
        accelerator: Accelerator,
    ) -> _Prepared:
        stage, output = recipe.stages[number], Path(recipe.output)
        student = pipeline.denoiser.copy()
        if stage.student == "previous":
            before = newest_checkpoint(output, number - 1)
            assert before is not None, "the stage before has ended, and so written a checkpoint"
            _load_weights(student, before, f"{STUDENT}.ema")
        teacher = pipeline.denoiser
        if stage.trainer.mixed_precision == "bf16":
            teacher = teacher.copy()
            teacher.module.to(torch.bfloat16)
        method = LADD.from_config(stage.method, teacher, student)
        trainer = Trainer(
            method,
            PairStream(store, stage.trainer.seed, stage.trainer.batch_size),
            stage.trainer,
            output=output,
            stage=number,
            record={"recipe": to_plain(recipe), "pairs": store.manifest.identity()},
            accelerator=accelerator,
        )
        source = store.manifest.teachers[0]
        prompts = recipe.preview_prompts or store.prompts[:8]
        previewer = Previewer(pipeline, prompts, method.plan, source.steps, source.guidance)
        return cls(trainer, student, previewer)

    def states(self, output: Path) -> Iterator[State]:
        every = self.trainer.config.preview_every
        for state in self.trainer.fit():
            if every and (state.step % every == 0 or state.step == state.steps):
                name = f"stage-{state.stage}-step-{state.step:08d}.png"
                self.previewer.write(self.trainer, self.student, output / "previews" / name)
            yield state


def _load_weights(student: DiffusersDenoiser, checkpoint: Checkpoint, name: str) -> None:
    tensors = checkpoint.tensors(name)
    wanted = {n: p.shape for n, p in student.module.named_parameters()}
    if wanted != {n: tensors[n].shape for n in wanted if n in tensors}:
        raise ValueError(
            f"checkpoint {checkpoint.path} is of another network than this teacher's; give the teacher "
            "of its recipe."
        )
    student.module.load_state_dict(tensors, strict=False)


def _check_folder(output: Path, recipe: Recipe, resume: Resume) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise FileExistsError(f"{str(output)!r} is a file; choose a folder for the run.")
    names = sorted(p.name for p in output.iterdir() if not _TEMPORARY.fullmatch(p.name))
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
    changed = _differences(_fixed(load_recipe(output / RECIPE)), _fixed(recipe))
    if changed:
        raise ValueError(
            f"{str(output)!r} holds a run of another recipe ({'; '.join(changed[:3])}); use that "
            "recipe to resume it, or choose another folder."
        )


def _check_teacher(store: PairStore, pipeline: Pipeline) -> None:
    """The teacher must have the weights, the prediction type and the noise levels that made the pairs."""
    denoiser = pipeline.denoiser
    store.check_teacher(fingerprint(denoiser.module))
    for source in store.manifest.generated:
        made = f"the pairs in {str(store.path)!r} were made by teacher {source.teacher!r} with"
        way_out = "use that teacher's scheduler, or generate pairs with this one."
        if source.prediction_type != denoiser.prediction_type:
            raise ValueError(
                f"{made} prediction type {source.prediction_type!r}, and this teacher's is "
                f"{denoiser.prediction_type!r}; {way_out}"
            )
        steps = StepPlan.from_schedule(denoiser.schedule, source.steps).steps
        here = [(s.t.item(), s.output.alpha.item(), s.output.sigma.item()) for s in steps]
        there = zip(source.grid.t, source.grid.alpha, source.grid.sigma, strict=True)
        for (t, *scales), (told, *known) in zip(here, there, strict=True):
            if t != told or not all(map(_close, scales, known)):
                raise ValueError(
                    f"{made} signal and noise scales {known} at timestep {told}, and this teacher's are "
                    f"{scales} at {t}; {way_out}"
                )


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)


def _check_same_pairs(output: Path, store: PairStore) -> None:
    """Pairs may have moved since a run was stopped, but they must be the same."""
    checkpoint = newest_checkpoint(output)
    if checkpoint is not None and checkpoint.state().get("pairs") != store.manifest.identity():
        raise ValueError(
            f"the run in {str(output)!r} was trained on other pairs than those in {str(store.path)!r}; "
            "use the same to resume it, or choose another folder."
        )


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """What must not change while a run is resumed."""
    stages = [
        replace(s, trainer=replace(s.trainer, **dict.fromkeys(FREE, 1))) for s in recipe.stages
    ]
    return to_plain(replace(recipe, stages=stages, output="", pairs="", preview_prompts=()))


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        parts = ((f"{where}.{k}" if where else k, before.get(k), now.get(k)) for k in keys)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        parts = ((f"{where}.{i}", one, other) for i, (one, other) in pairs)
    else:
        return [] if before == now else [f"{where} was {before!r}, now {now!r}"]
    return [line for name, one, other in parts for line in _differences(one, other, name)]


def _claim_folder(output: Path, recipe: Recipe, accelerator: Accelerator) -> None:
    """Makes the folder and notes the recipe and the environment in it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for left in output.iterdir():
            if _TEMPORARY.fullmatch(left.name):
                left.unlink()
        save_recipe(recipe, output / RECIPE)
        _note_environment(output / ENVIRONMENT, _environment(accelerator))
    except OSError as error:
        raise type(error)(
            f"cannot write the run to {str(output)!r}: {error.strerror or error}; choose a folder that "
            "can be written."
        ) from error


def _note_environment(file: Path, environment: dict[str, object]) -> None:
    """Adds the environment to those noted before, unless it is the last of them."""
    try:
        noted = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); remove it to go on.") from error
    noted = noted if isinstance(noted, list) else [noted]
    if noted[-1:] != [environment]:
        write_text(file, json.dumps([*noted, environment], indent=1))


def _environment(accelerator: Accelerator) -> dict[str, object]:
    packages = ("nitrodistill", "torch", "diffusers", "accelerate", "transformers", "safetensors")
    return {
        "versions": {name: _version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(accelerator.device),
        "threads": torch.get_num_threads(),
        "git": _git_state(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, object] | None:
    """The commit of the code that runs, and whether files differ from it; None outside of git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", ".")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
