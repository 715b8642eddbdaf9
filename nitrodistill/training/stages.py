"""Runs a recipe: its stages one after the other, and where each left off after a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from nitrodistill.data import BatchStream, together
from nitrodistill.export import check_export
from nitrodistill.method import Cast, DistillationMethod
from nitrodistill.methods import find_method
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.models.lora import base_copy, check_lora
from nitrodistill.models.skeleton import shapes_of
from nitrodistill.processes import PATIENCE, meeting
from nitrodistill.sampling import StepPlan
from nitrodistill.settings import to_plain
from nitrodistill.teachers import teacher_shapes
from nitrodistill.training.config import check_optimizers
from nitrodistill.training.evaluations import student_scores
from nitrodistill.training.log import make_accelerator
from nitrodistill.training.networks import (
    STUDENT,
    StageNetworks,
    another_teacher,
    check_cast,
    is_cast,
    stage_cast,
)
from nitrodistill.training.parallel import check_launch, on_main
from nitrodistill.training.previews import Previewer
from nitrodistill.training.probe import teacher_latents
from nitrodistill.training.recipe import Recipe, Stage
from nitrodistill.training.record import network_record, student_record
from nitrodistill.training.run import Resume, check_folder, newest_stage, owned
from nitrodistill.training.sources import Sources, teacher_draws
from nitrodistill.training.state import State
from nitrodistill.training.trainer import Trainer
from nitrodistill.types import Batch

Evaluate = Callable[[DiffusersDenoiser, StepPlan], Mapping[str, float]]
"""`(the student, how it samples) -> name -> number`; equal students give equal numbers."""


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
            `lora` adds roles to its network (with bf16: to a copy), which stays the teacher between calls. In a
            stage with `parallel: fsdp` its network is replaced by a copy that the processes share out, which
            all of them must call alike; it has its own again when the run ends.
        resume: "auto" goes on with what `recipe.output` holds of the same recipe; "never" wants a
            folder that is new or empty.
        stop: see `Trainer`; the last state says why it was stopped.
        evaluate: what measures a student, called in every process with the moving average of its weights in
            place, each `evaluate_every` steps of a stage and after its last; see `Trainer`. None measures as
            `nitrodistill evaluate` does, on few pictures.

    Returns:
        the State after each step, of all stages; iterate to train.

    Raises:
        FileNotFoundError: if there is no store, or a method reads what the recipe does not give.
        ValueError: if another teacher made the pairs, settings of a stage do not fit the network, a
            preview's prompt is unknown to the teacher, or the folder holds a run of another recipe.
        FileExistsError: if the folder holds something else.

    Example:
        >>> recipe = nd.demo.toy_recipe("pairs", "runs/recipe", steps=1, batch_size=2)
        >>> for state in nd.training.run_recipe(recipe, teacher):
        ...     print(state.step, sorted(state.totals()))
        1 ['discriminator', 'student']
    """
    output = Path(recipe.output)
    sources = Sources.open(recipe, pipeline)
    check_stages(recipe, pipeline)
    if evaluate is None:
        evaluate = student_scores(recipe, pipeline, sources)
    check_folder(output, recipe, resume, sources.identities())
    for prompt in recipe.preview_prompts:
        pipeline.check_prompt(prompt)
    if any(stage.trainer.preview_every or stage.trainer.evaluate_every for stage in recipe.stages):
        pipeline.guided(teacher_draws(recipe)[1])  # the teacher will be drawn with it
    accelerator = make_accelerator(
        recipe.stages[0].trainer.mixed_precision,
        output,
        trackers=recipe.trackers,
        cpu_offload=any(stage.trainer.cpu_offload for stage in recipe.stages),
    )
    for stage in recipe.stages:
        check_launch(accelerator, stage.trainer.batch_size)
    networks = StageNetworks(pipeline, accelerator, output)
    return _states(_Runner(recipe, pipeline, sources, accelerator, stop, evaluate, networks))


def check_stages(recipe: Recipe, pipeline: Pipeline) -> None:
    """Checks that the settings of a recipe's stages fit the teacher and each other, on shapes alone.

    Args:
        recipe: the recipe.
        pipeline: the teacher; its shapes are enough (`models.skeleton`).

    Raises:
        ValueError: naming the first setting that does not fit, or the data that a method reads and the recipe does
            not give.
    """
    before = None
    for stage in recipe.stages:
        if stage.lora is not None:
            check_lora(pipeline.denoiser, stage.lora)
        method, cast = build_on_shapes(stage, shapes_of(pipeline), before=before)
        student = cast.student
        before = student if isinstance(student, DiffusersDenoiser) else None
        check_export(pipeline, method.plan, cast.student.prediction_type)
        for part in sorted(method.reads):
            if getattr(recipe, part) is None:
                made = {"pairs": "generate", "real": "encode"}.get(part, "")
                verb = f", as `nitrodistill {made}` makes them" if made else ""
                raise ValueError(
                    f"method {stage.method!r} reads {part}, which the recipe does not give; add "
                    f"`{part}: PATH`{verb}."
                )
        check_optimizers(stage.trainer.optimizers, list(method.trainable()))


def student_on_shapes(stages: Sequence[Stage], pipeline: Pipeline) -> DiffusersDenoiser | None:
    """The student of the last of some stages, on the meta device; None: no stage, or another kind of denoiser.

    Args:
        stages: from the recipe's first on.
        pipeline: the teacher; its shapes are enough.
    """
    before = None
    for stage in stages:
        student = build_on_shapes(stage, shapes_of(pipeline), before=before)[1].student
        before = student if isinstance(student, DiffusersDenoiser) else None
    return before


def build_on_shapes(
    stage: Stage, shapes: Pipeline, text_length: int = 8, *, before: DiffusersDenoiser | None = None
) -> tuple[DistillationMethod, Cast]:
    """A stage's method on networks of which only the shapes are real (the meta device); nothing is computed.

    Args:
        stage: its settings.
        shapes: the teacher on the meta device (`shapes_of`). As in a run, the method's teacher is its own network,
            or a copy where that one is cast or the student of the stage before.
        text_length: tokens of a prompt.
        before: the student of the stage before, on the meta device; None takes it to be like the teacher.

    Raises:
        ValueError: if the settings do not fit the networks.
    """
    whole, earlier = shapes.denoiser, shapes.denoiser
    if before is not None and stage.lora is None:
        earlier = before
    if stage.teacher == "previous":
        whole = earlier
    elif stage.teacher != "recipe":
        whole = another_teacher(stage.teacher, teacher_shapes, whole)
    apart = is_cast(stage, whole) or (stage.teacher != "recipe" and stage.lora is None)
    teacher = base_copy(whole) if apart else whole

    def start(name: str, network: DiffusersDenoiser) -> DiffusersDenoiser:
        return base_copy(earlier) if name == STUDENT and stage.lora is None else network

    x0 = torch.empty(1, *shapes.latent_shape, device="meta")
    empty = None
    if shapes.adapter.has_null:
        empty = shapes.denoiser.adapter.example_condition(x0, text_length)
    begin = start if stage.student == "previous" else None
    cast = stage_cast(stage, lambda: teacher, whole, empty, shapes, begin)
    method = find_method(stage.method).build(stage.settings, cast)
    check_cast(method, cast)
    for entry in method.frozen().values():
        if entry.as_it_is:  # the networks of losses come from their files
            entry.module.to("meta")
    return method, cast


@dataclass(frozen=True)
class _Prepared:
    """A stage that is ready to train."""

    trainer: Trainer
    student: DiffusersDenoiser
    previewer: Previewer

    def states(self, output: Path) -> Iterator[State]:
        trainer = self.trainer
        if trainer.step and self._is_due(trainer.step) and not self._is_there(output):
            self._write(output)  # the run was killed between a checkpoint and its preview
        for state in trainer.fit():
            if self._is_due(state.step):
                self._write(output)
            yield state

    def _is_due(self, step: int) -> bool:
        every = self.trainer.config.preview_every
        return bool(every) and (step % every == 0 or step == self.trainer.config.steps)

    def _is_there(self, output: Path) -> bool:
        return bool(on_main(self.trainer.accelerator, self._file(output).is_file))

    def _write(self, output: Path) -> None:
        self.previewer.write(self.trainer, self.student, self._file(output))

    def _file(self, output: Path) -> Path:
        trainer = self.trainer
        return output / "previews" / f"stage-{trainer.stage}-step-{trainer.step:08d}.png"


@dataclass(frozen=True)
class _Runner:
    """Prepares the stages of a recipe."""

    recipe: Recipe
    pipeline: Pipeline
    sources: Sources
    accelerator: Accelerator
    stop: Callable[[], str] | None
    evaluate: Evaluate | None
    networks: StageNetworks

    def prepare(self, number: int) -> _Prepared:
        recipe, stage = self.recipe, self.recipe.stages[number]
        method, cast = self.networks.build(number, stage)
        student = cast.student
        assert isinstance(student, DiffusersDenoiser)

        def scores(state: State) -> Mapping[str, float]:
            assert self.evaluate is not None
            with trainer.averaged("student"):
                return self.evaluate(student, method.plan)

        roles = {name: role.module for name, role in method.trainable().items()}
        steps, guidance = teacher_draws(recipe)
        prompts = recipe.preview_prompts or self.sources.prompts[:8]
        trainer = Trainer(
            method,
            self._stream(number, method),
            stage.trainer,
            output=Path(recipe.output),
            stage=number,
            record={
                "recipe": to_plain(recipe),
                "student": student_record(student, method.plan),
                "networks": {n: network_record(m, stage.lora) for n, m in roles.items()},
                "previews": {
                    "prompts": list(prompts),
                    "num_inference_steps": steps,
                    "guidance": guidance,
                },
            },
            fixed={
                "method": stage.method,
                "settings": to_plain(stage.settings),
                "data": {p: i for p, i in self.sources.identities().items() if p in method.reads},
            },
            stop=self.stop,
            evaluate=None if self.evaluate is None else scores,
            reference=lambda: teacher_latents(self.pipeline, self.sources.prompts, steps, guidance),
            accelerator=self.accelerator,
        )
        previewer = Previewer(self.pipeline, prompts, method.plan, steps, guidance)
        return _Prepared(trainer, student, previewer)

    def _stream(self, number: int, method: DistillationMethod) -> Callable[[int], Batch]:
        config = self.recipe.stages[number].trainer
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return together(
            [
                BatchStream(source, config.seed, config.batch_size, rank, world, stage=number)
                for source in self.sources.of(method.reads)
            ]
        )


def _states(runner: _Runner) -> Iterator[State]:
    recipe, accelerator = runner.recipe, runner.accelerator
    output = Path(recipe.output)
    with ExitStack() as stack:
        if accelerator.num_processes > 1:
            ended = "another one has ended, or did not answer in time"
            stack.enter_context(meeting(PATIENCE, ended))
        stack.callback(runner.networks.restore)
        # what stands in a later stage needs no earlier one again, whatever is left of that
        first = on_main(accelerator, lambda: newest_stage(output))
        assert isinstance(first, int)
        prepared = runner.prepare(first)
        stack.callback(accelerator.end_training)
        accelerator.wait_for_everyone()  # all have checked the folder before one of them writes

        def own() -> None:
            stack.enter_context(owned(output, recipe, accelerator))

        on_main(accelerator, own)
        for number in range(first, len(recipe.stages)):
            if number > first:
                del prepared  # its networks go before the next are made
                accelerator.free_memory()
                prepared = runner.prepare(number)
            for state in prepared.states(output):
                yield state
                if state.stopped:
                    return
