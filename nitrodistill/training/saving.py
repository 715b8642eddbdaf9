"""What a trainer's checkpoints hold, and how all processes write and read them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from nitrodistill.training.averages import Averages
from nitrodistill.training.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    find_checkpoint,
    find_checkpoints,
    newest_checkpoint,
    prune,
)
from nitrodistill.training.config import TrainerConfig
from nitrodistill.training.parallel import any_process, on_main
from nitrodistill.training.roles import TrainedRole, kept


@dataclass(frozen=True)
class RunCheckpoints:
    """The checkpoints of a stage: weights and optimizer of every role, and all averages.

    Attributes:
        output: folder of the run.
        stage: number of the stage.
        config: the trainer's settings.
        accelerator: in use.
        trained: role -> its prepared module.
        averages: of those roles.
    """

    output: Path
    stage: int
    config: TrainerConfig
    accelerator: Accelerator
    trained: Mapping[str, TrainedRole]
    averages: Averages

    def write(
        self, step: int, state: Mapping[str, object], best: int | None, calm: int | None = None
    ) -> Checkpoint:
        """Writes a checkpoint and removes the oldest; all processes call it, the main one writes.

        Args:
            step: steps done.
            state: what is not a tensor.
            best: the step whose checkpoint is kept however old it is.
            calm: a step; the newest checkpoint up to it is kept too. None keeps none for that.

        Raises:
            OSError: if it cannot be written.
            FloatingPointError: if a weight is not finite; then nothing is written.
            RuntimeError: if the processes' copies of a network have come apart.
        """
        self._check_weights(step)
        output, stage, failed = self.output, self.stage, None
        writer: CheckpointWriter | None = None
        for name, gather in self._contents().items():
            tensors = gather()  # by all processes, even when the main one cannot write any more
            try:
                if self.accelerator.is_main_process and failed is None:
                    writer = writer or CheckpointWriter(output, stage, step)
                    writer.add(name, tensors)
            except OSError as error:
                failed = error

        def finish() -> None:
            if failed is not None:
                raise failed
            assert writer is not None
            writer.finish(state)
            prune(output, stage, self.config.keep_checkpoints, best, calm)

        on_main(self.accelerator, finish)
        return find_checkpoint(output, stage, step)

    def read(self, checkpoint: Checkpoint) -> None:
        """Puts what a checkpoint holds into the roles, their optimizers and the averages.

        Raises:
            ValueError: if it lacks a file, or its weights are another network's.
        """
        for name, trained in self.trained.items():
            trained.load(checkpoint.tensors(name))
            trained.load_optimizer(checkpoint.tensors(f"{name}.optimizer"))
        for name, average in self.averages.files().items():
            average.load_state_dict(checkpoint.tensors(name))

    def _contents(self) -> dict[str, Callable[[], dict[str, Tensor]]]:
        """File name -> what gathers its tensors, whole in the main process and nothing in the others."""
        main, frozen = self.accelerator.is_main_process, self.config.save_frozen
        contents: dict[str, Callable[[], dict[str, Tensor]]] = {}
        for name, trained in self.trained.items():
            contents[name] = lambda trained=trained: trained.tensors(frozen, main)
            contents[f"{name}.optimizer"] = lambda trained=trained: trained.optimizer_tensors(main)
        for name, average in self.averages.files().items():
            contents[name] = lambda average=average: kept(average.state_dict(), main)
        return contents

    def _check_weights(self, step: int) -> None:
        holders = {f"weights of {n!r}": t for n, t in self.trained.items()}
        averages = {f"averages in {n!r}": a for n, a in self.averages.files().items()}
        for name, holder in {**holders, **averages}.items():
            (broken,) = any_process(self.accelerator, [~holder.is_finite()])
            if broken:
                raise FloatingPointError(
                    f"the {name} are not finite after step {step}; {last_good(self.output, self.stage)}."
                )
        if self.config.parallel != "ddp":
            return
        for name, trained in self.trained.items():
            if apart := trained.disagreements(self.accelerator):
                raise RuntimeError(
                    f"the processes' copies of {name!r} have come apart after step {step} ({apart[0]}): its "
                    "gradients were not averaged. Its method must use the module that the Role holds, in its "
                    "whole forward pass, alike in all processes."
                )


def to_resume(
    accelerator: Accelerator, output: Path | None, stage: int, resume: str
) -> Checkpoint | None:
    """The checkpoint that a stage goes on from, which the main process chooses; None: it starts anew.

    Raises:
        FileExistsError: if `resume` is "never" and there is a checkpoint.
        ValueError: if all checkpoints are damaged.
    """
    if output is None:
        return None

    def choose() -> int | None:
        if resume == "auto":
            newest = newest_checkpoint(output, stage)
            return None if newest is None else newest.step
        if find_checkpoints(output, stage):
            raise FileExistsError(
                f"{output} holds checkpoints already; resume from them, or choose another output."
            )
        return None

    step = on_main(accelerator, choose)
    return find_checkpoint(output, stage, step) if isinstance(step, int) else None


def last_good(output: Path | None, stage: int) -> str:
    """The end of a message: which checkpoint there is to go on from."""
    saved = find_checkpoints(output, stage) if output is not None else []
    return f"the last good checkpoint is {saved[0].path}" if saved else "there is no checkpoint"
