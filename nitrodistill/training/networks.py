"""The networks of a stage: the cast that its method is built from, and where each of them is placed.

teacher    the pipeline's own network; with bf16 or fp16 a copy in that, unless it was loaded in that; with
           `parallel: fsdp` a copy of which each process holds a part, which then stands in the pipeline too, so
           that no device holds the whole
student    a float32 copy of it, with `prune` of fewer blocks, or with `lora` a role on it (`add_lora`)
others     what the method asks its cast for: a copy or a role; where a stage goes on with the student of the one
           before and has the recipe's teacher, they go on too
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from nitrodistill.losses import Loss
from nitrodistill.method import Cast, DistillationMethod
from nitrodistill.methods import find_method
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.models.denoiser import dtype_of, frozen, trainable
from nitrodistill.models.lora import add_lora, base_copy
from nitrodistill.models.pruning import prune
from nitrodistill.models.wrappers import role_in
from nitrodistill.teachers import TeacherSettings, load_teacher
from nitrodistill.training.checkpoint import Checkpoint, newest_checkpoint
from nitrodistill.training.parallel import prepare_frozen
from nitrodistill.training.recipe import Stage
from nitrodistill.training.record import free_name, load_denoiser, load_weights
from nitrodistill.training.roles import checkpoint_gradients
from nitrodistill.types import Condition, Denoiser

STUDENT, TEACHER = "student", "teacher"


class StageNetworks:
    """The networks of a run's stages, one stage at a time.

    Args:
        pipeline: whose network is the recipe's teacher.
        accelerator: whose device and processes.
        output: folder of the run, where students of earlier stages are.

    Attributes:
        own: the pipeline's own network, whole; students are copies of it.
    """

    def __init__(self, pipeline: Pipeline, accelerator: Accelerator, output: Path) -> None:
        self.own: DiffusersDenoiser = pipeline.denoiser
        self._pipeline = pipeline
        self._accelerator = accelerator
        self._output = output

    def build(self, number: int, stage: Stage) -> tuple[DistillationMethod, Cast]:
        """The stage's method on its networks, placed; and what it took of them.

        Raises:
            ValueError: if its settings do not fit the networks, or it leaves one of them out.
        """
        self.restore()
        self._place_pipeline(stage)
        cast = self._cast(number, stage)
        method = find_method(stage.method).build(stage.settings, cast)
        check_cast(method, cast)
        place_frozen(method, self._accelerator, stage)
        if stage.trainer.parallel == "fsdp":
            self._put(self._shared_out(cast, stage))
        return method, cast

    def restore(self) -> None:
        """Gives the pipeline its own network again."""
        if self._pipeline.denoiser is not self.own:
            self._put(self.own)

    def _cast(self, number: int, stage: Stage) -> Cast:
        """Float32 students, and a teacher of its own where that one is cast, or shared out by the processes."""
        before = self._before(number) if "previous" in (stage.teacher, stage.student) else None
        whole = self.own
        if stage.teacher == "previous" and stage.lora is None:
            assert before is not None
            whole = load_denoiser(before, whole)
        elif stage.teacher not in ("recipe", "previous"):
            whole = another_teacher(stage.teacher, load_teacher, whole)

        def teacher() -> DiffusersDenoiser:
            copied = is_cast(stage, whole) or stage.trainer.parallel == "fsdp"
            made = base_copy(whole) if copied else whole
            if half := stage.trainer.half:
                cast_base(made.network, half)
            if stage.teacher == "previous" and stage.lora is not None:
                assert before is not None
                made = load_denoiser(before, made)
            return made

        def start(name: str, network: DiffusersDenoiser) -> DiffusersDenoiser:
            """The student's average; with the same teacher also other roles of that name, as they were."""
            assert before is not None
            average = name == STUDENT
            if not average and not (stage.teacher == "recipe" and name in _networks(before)):
                return network
            if stage.lora is None:  # perhaps of other blocks
                return load_denoiser(before, network, name, average=average)
            load_weights(network, before, name, average=average)
            return network

        return stage_cast(
            stage,
            teacher,
            whole,
            self._pipeline.null_condition() if self._pipeline.adapter.has_null else None,
            self._pipeline,
            start if stage.student == "previous" else None,
        )

    def _before(self, number: int) -> Checkpoint:
        """The checkpoint that the stage before ended with."""
        found = newest_checkpoint(self._output, number - 1)
        if found is None:
            raise ValueError(
                f"stage {number} goes on with the student of stage {number - 1}, of which {str(self._output)!r} "
                "has no checkpoint any more; bring it back, or choose another output."
            )
        return found

    def _place_pipeline(self, stage: Stage) -> None:
        shared = self._pipeline.adapter.network if stage.trainer.parallel == "fsdp" else ""
        self._pipeline.to(self._accelerator.device, but=shared)

    def _shared_out(self, cast: Cast, stage: Stage) -> DiffusersDenoiser:
        """The recipe's teacher as previews and evaluations run it: the method's, if that is it, else a copy."""
        teacher = cast.taken.get(TEACHER)
        is_recipes = stage.teacher == "recipe" and not is_cast(stage, self.own)
        if is_recipes and isinstance(teacher, DiffusersDenoiser):
            return teacher
        copied = base_copy(self.own)
        prepare_frozen(frozen(copied.module), self._accelerator, "fsdp")
        return copied

    def _put(self, denoiser: DiffusersDenoiser) -> None:
        self._pipeline.denoiser = denoiser
        setattr(self._pipeline.diffusers, self._pipeline.adapter.network, denoiser.module)


def stage_cast(
    stage: Stage,
    teacher: Callable[[], DiffusersDenoiser],
    whole: DiffusersDenoiser,
    empty: Condition | None,
    pipeline: Pipeline | None,
    start: Callable[[str, DiffusersDenoiser], DiffusersDenoiser] | None = None,
) -> Cast:
    """The cast of a stage.

    Args:
        stage: whose `lora` and `prune` decide.
        teacher: makes the teacher.
        whole: the float32 network that copies are made of.
        empty: see `Cast`.
        pipeline: whose VAE losses decode with; None decodes nothing.
        start: what a network starts as, by its name, made of `whole` (a role: with weights put into it); None
            takes that.
    """
    made: list[DiffusersDenoiser] = []

    def taught() -> DiffusersDenoiser:
        if not made:
            made.append(teacher())
            frozen(made[0].module)
        return made[0]

    def make(name: str) -> Denoiser:
        if name == TEACHER:
            return taught()
        if stage.lora is not None:
            network = add_lora(taught(), free_name(taught(), name), stage.lora)
            if role_in(taught().module) is not None:  # the student of a stage before
                network.module.load_state_dict(taught().module.state_dict())
            return network if start is None else start(name, network)
        network = whole if start is None else start(name, whole)
        if name == STUDENT and stage.prune is not None:
            network = prune(network, stage.prune)
        elif network is whole:
            network = base_copy(whole)
        network.module.float()
        return trainable(network)

    return Cast(make, empty, pipeline and pipeline.decode, pipeline and pipeline.vae)


def _networks(checkpoint: Checkpoint) -> Collection[str]:
    """The names of the trained networks in a checkpoint."""
    found = checkpoint.state().get("networks")
    return [name for name, one in found.items() if one] if isinstance(found, dict) else []


def another_teacher(
    name: str, load: Callable[[str, TeacherSettings], Pipeline], own: DiffusersDenoiser
) -> DiffusersDenoiser:
    """The network of another pipeline as a stage's teacher, on the schedule and in the precision of the recipe's.

    Args:
        name: its place.
        load: loads it, or its shapes.
        own: the recipe's teacher.

    Raises:
        ValueError: if the networks are of two classes or predict two kinds.
    """
    dtype: Any = str(dtype_of(own.network)).removeprefix("torch.")
    other = load(name, TeacherSettings(weights_dtype=dtype)).denoiser
    kinds = [(type(d.network).__name__, d.prediction_type) for d in (other, own)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"the stage's teacher is a {' of '.join(kinds[0])} and the recipe's a {' of '.join(kinds[1])}; take "
            "one of the same family."
        )
    return own.with_module(other.module)


def check_cast(method: DistillationMethod, cast: Cast) -> None:
    """Checks that a method trains or freezes all that it took, and says how its student samples.

    Raises:
        ValueError: naming what it left out.
    """
    kind = type(method).__name__
    named = [role.module for role in method.trainable().values()]
    named += [entry.module for entry in method.frozen().values()]
    for name, denoiser in cast.taken.items():
        if not any(denoiser.module is module for module in named):
            raise ValueError(
                f"{kind} took {name!r} from its cast, but neither trains nor freezes it; name its module in "
                "trainable() or in frozen()."
            )
    both = method.trainable().keys() & method.frozen().keys()
    if both:
        raise ValueError(f"{kind} names {min(both)!r} in trainable() and in frozen(); choose one.")
    if not hasattr(method, "plan"):
        raise ValueError(f"{kind} has no plan; a StepPlan says how its student samples.")


def place_frozen(method: DistillationMethod, accelerator: Accelerator, stage: Stage) -> None:
    """Places what a method uses and does not train: device, precision, share; all in place.

    Example:
        >>> accelerator = nd.training.make_accelerator(cpu=True)
        >>> stage = nd.training.load_run_recipe(run).stages[0]
        >>> nd.training.place_frozen(method, accelerator, stage)
    """
    trainer = stage.trainer
    for entry in method.frozen().values():
        if entry.as_it_is:
            modes = {m: m.training for m in entry.module.modules() if isinstance(m, Loss)}
            frozen(entry.module).to(accelerator.device)
            # a loss in eval mode would not augment; the networks in it stay in eval mode
            for loss, mode in modes.items():
                loss.training = mode
            continue
        frozen(entry.module)
        if trainer.half is not None and not entry.follows:
            cast_base(entry.module, trainer.half)
        if trainer.gradient_checkpointing:  # the student's gradient goes through the frozen ones
            checkpoint_gradients(entry.module)
        prepare_frozen(entry.module, accelerator, trainer.parallel, entry.taps)


def is_cast(stage: Stage, teacher: DiffusersDenoiser) -> bool:
    """Whether a stage computes with a teacher in another precision than it has."""
    half = stage.trainer.half
    return half is not None and not _holds(teacher.network, half)


def cast_base(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts a network's weights, but for those of LoRA roles on it; one that has them already is left alone."""
    if not _holds(module, dtype):
        for value in _base((*module.named_parameters(), *module.named_buffers())):
            value.data = value.data.to(dtype)


def _holds(module: nn.Module, dtype: torch.dtype) -> bool:
    return all(value.dtype == dtype for value in _base(module.named_parameters()))


def _base(weights: Iterable[tuple[str, torch.Tensor]]) -> list[torch.Tensor]:
    return [value for name, value in weights if value.is_floating_point() and ".lora_" not in name]
