"""Runs a recipe: its stages one after the other, and where each left off after a stop.

The folder of a run:

    recipe.yaml         the recipe with every default written out
    environment.json    versions, git state, device: of the start, and of each resumption that differs
    log.jsonl, logs/    numbers, also for tensorboard
    previews/           teacher, student and its moving average, side by side
    checkpoints/
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nitrodistill.data import PairStore, PairStream
from nitrodistill.methods import LADD
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.models.lora import check_lora
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.sampling import StepPlan
from nitrodistill.training.checkpoint import Checkpoint, best_checkpoint, newest_checkpoint
from nitrodistill.training.config import FREE, TrainerConfig, check_optimizers, to_plain
from nitrodistill.training.environment import note_environment
from nitrodistill.training.log import make_accelerator
from nitrodistill.training.parallel import check_launch, on_main
from nitrodistill.training.previews import Previewer
from nitrodistill.training.recipe import RECIPE, Recipe, Stage, load_recipe, save_recipe
from nitrodistill.training.state import State
from nitrodistill.training.students import load_weights, new_student
from nitrodistill.training.teacher import PlacedTeacher
from nitrodistill.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "Evaluate",
    "TrainedStudent",
    "check_stages",
    "load_run_recipe",
    "load_student",
    "run_recipe",
]

Resume = Literal["auto", "never"]

Evaluate = Callable[[DiffusersDenoiser, StepPlan], Mapping[str, float]]
"""`(the student, how it samples) -> name -> number`; equal students give equal numbers."""

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


def run_recipe(
    recipe: Recipe,
    pipeline: Pipeline,
    *,
    resume: Resume = "auto",
    stop: Callable[[], str] | None = None,
    evaluate: Evaluate | None = None,
) -> Iterator[State]:
    """Distils, stage by stage; in one process or in several that were launched alike.

    Everything is checked before anything is written: nothing is left behind by a mistake.

    Args:
        recipe: what to do.
        pipeline: the recipe's teacher, in float32. It is frozen and moved to the fastest device. A stage with
            `lora` adds a role to its network (with bf16: to a copy), which stays the teacher between calls. In a
            stage with `parallel: fsdp` its network is replaced by a copy that the processes share out, which
            all of them must call alike; it has its own again when the run ends.
        resume: "auto" goes on with what `recipe.output` holds of the same recipe; "never" wants a
            folder that is new or empty.
        stop: see `Trainer`; the last state says why it was stopped.
        evaluate: what measures a student, called in every process with the moving average of its weights in
            place, each `evaluate_every` steps of a stage and after its last; see `Trainer`.

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
    accelerator = make_accelerator(
        recipe.stages[0].trainer.mixed_precision,
        output,
        trackers=recipe.trackers,
        cpu_offload=any(stage.trainer.cpu_offload for stage in recipe.stages),
    )
    teacher = PlacedTeacher(pipeline, accelerator)
    maker = _Maker(recipe, pipeline, store, accelerator, stop, evaluate, teacher)
    try:
        teacher.place(recipe.stages[0])
        check_stages(recipe.stages[1:], pipeline, evaluate is not None)  # the first: below
        first = maker.make(0)
    except BaseException:
        teacher.restore()
        raise
    return _states(maker, first)


def check_stages(stages: Sequence[Stage], pipeline: Pipeline, evaluates: bool) -> None:
    """Checks that the settings of stages fit the teacher: taps, plan, optimizers, LoRA's layers.

    Args:
        stages: of a recipe.
        pipeline: the teacher; its shapes are enough (`models.skeleton`).
        evaluates: whether there is something to evaluate with.

    Raises:
        ValueError: naming the first setting that does not.
    """
    for stage in stages:
        method = LADD.from_config(stage.method, pipeline.denoiser, pipeline.denoiser)
        check_optimizers(stage.trainer.optimizers, list(method.trainable()))
        stage.trainer.check_evaluates(evaluates)
        if stage.lora is not None:
            check_lora(pipeline.denoiser, stage.lora)


def _states(maker: _Maker, prepared: _Prepared) -> Iterator[State]:
    recipe, accelerator = maker.recipe, maker.accelerator
    try:
        accelerator.wait_for_everyone()  # all have checked the folder before one of them writes
        on_main(accelerator, lambda: _claim_folder(Path(recipe.output), recipe, accelerator))
        for number in range(len(recipe.stages)):
            if number > 0:
                del prepared  # its networks go before the next are made
                accelerator.free_memory()
                maker.teacher.place(recipe.stages[number])
                prepared = maker.make(number)
            for state in prepared.states(Path(recipe.output)):
                yield state
                if state.stopped:
                    return
    finally:
        accelerator.end_training()
        maker.teacher.restore()


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


def load_student(
    run: str | Path,
    pipeline: Pipeline,
    *,
    average: bool = True,
    checkpoint: Literal["newest", "best"] = "newest",
) -> TrainedStudent:
    """Loads the student of a run's last stage.

    A LoRA student is a new role on the pipeline's network, which stays the teacher between its calls.

    Args:
        run: folder of the run.
        pipeline: its teacher.
        average: the moving average of the weights, else the weights themselves.
        checkpoint: the newest one, or the best by the recipe's `best_metric`.

    Raises:
        FileNotFoundError: if it is no run, there is no checkpoint in it yet, or none was evaluated.
        ValueError: if its checkpoints are damaged or do not fit the teacher.
    """
    recipe = load_run_recipe(run)
    found = newest_checkpoint(Path(run))
    if found is None:
        raise FileNotFoundError(f"the run {str(run)!r} has no checkpoint yet; train it longer.")
    if checkpoint == "best":
        found = best_checkpoint(Path(run), found.stage)
        if found is None:
            raise FileNotFoundError(
                f"the run {str(run)!r} has compared no checkpoints; set evaluate_every and best_metric in its "
                "recipe's trainer, or take the newest."
            )
    student = new_student(pipeline.denoiser, recipe.stages[found.stage].lora)
    load_weights(student, found, average)
    student.module.requires_grad_(False).eval()
    config = recipe.stages[found.stage].method
    method = LADD.from_config(config, pipeline.denoiser, student)
    return TrainedStudent(student, method.plan, found, recipe)


@dataclass(frozen=True)
class _Prepared:
    """A stage that is ready to train."""

    trainer: Trainer
    student: DiffusersDenoiser
    previewer: Previewer

    def states(self, output: Path) -> Iterator[State]:
        every = self.trainer.config.preview_every
        for state in self.trainer.fit():
            if every and (state.step % every == 0 or state.step == state.steps):
                name = f"stage-{state.stage}-step-{state.step:08d}.png"
                self.previewer.write(self.trainer, self.student, output / "previews" / name)
            yield state


@dataclass(frozen=True)
class _Maker:
    """Prepares the stages of a recipe."""

    recipe: Recipe
    pipeline: Pipeline
    store: PairStore
    accelerator: Accelerator
    stop: Callable[[], str] | None
    evaluate: Evaluate | None
    teacher: PlacedTeacher

    def make(self, number: int) -> _Prepared:
        recipe, pipeline, store = self.recipe, self.pipeline, self.store
        stage, output = recipe.stages[number], Path(recipe.output)
        teacher = self.teacher.backbone(stage)
        student = new_student(self.teacher.own if stage.lora is None else teacher, stage.lora)
        if stage.student == "previous":
            before = newest_checkpoint(output, number - 1)
            assert before is not None, "the stage before has ended, and so written a checkpoint"
            load_weights(student, before, average=True)
        method = LADD.from_config(stage.method, teacher, student)

        def scores(state: State) -> Mapping[str, float]:
            assert self.evaluate is not None
            assert trainer.ema is not None, "a recipe trains a student"
            with trainer.ema.applied():
                return self.evaluate(student, method.plan)

        trainer = Trainer(
            method,
            self._stream(stage.trainer),
            stage.trainer,
            output=output,
            stage=number,
            record={"recipe": to_plain(recipe), "pairs": store.manifest.identity()},
            stop=self.stop,
            evaluate=None if self.evaluate is None else scores,
            accelerator=self.accelerator,
        )
        source = store.manifest.teachers[0]
        prompts = recipe.preview_prompts or store.prompts[:8]
        previewer = Previewer(pipeline, prompts, method.plan, source.steps, source.guidance)
        return _Prepared(trainer, student, previewer)

    def _stream(self, config: TrainerConfig) -> PairStream:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        check_launch(self.accelerator, config.batch_size)
        return PairStream(self.store, config.seed, config.batch_size, rank, world)


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
    plain = to_plain(replace(recipe, output="", pairs="", preview_prompts=(), trackers=None))
    for stage in plain["stages"]:
        for name in FREE:
            del stage["trainer"][name]
    return plain


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
        note_environment(output / ENVIRONMENT, accelerator)
    except OSError as error:
        raise type(error)(
            f"cannot write the run to {str(output)!r}: {error.strerror or error}; choose a folder that "
            "can be written."
        ) from error
