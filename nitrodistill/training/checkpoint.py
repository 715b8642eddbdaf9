"""Checkpoints: folders of safetensors and JSON that are whole or not there.

    checkpoints/stage-0-step-00000500/
        student.safetensors, student.optimizer.safetensors, student.ema.safetensors, ...
        state.json       what is not a tensor: stage, step, settings
        manifest.json    name -> bytes and BLAKE2 hash of every other file

A checkpoint is written aside, flushed to the disk and renamed, so a name that exists is complete. It is
verified when it is read. There is no pickle in it.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nitrodistill.files import (
    complete_folder,
    damage,
    read_text,
    record_of,
    remove_stale,
    replace_folder,
    temporary_of,
)

_FOLDER = "checkpoints"
_NAME = re.compile(r"stage-(\d{1,9})-step-(\d{1,18})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk.

    Attributes:
        path: its folder.
        stage: number of the recipe's stage.
        step: optimizer steps done in that stage.

    Example:
        >>> checkpoint = nd.training.find_student(run)
        >>> checkpoint.step, checkpoint.has("student")
        (1, True)
    """

    path: Path
    stage: int
    step: int

    def verify(self) -> None:
        """Compares every file with the manifest, and the folder's name with the state.

        Raises:
            ValueError: if a file is missing, of another size or damaged, or this is a copy of another checkpoint.
        """
        records = self._json("manifest.json")
        found = damage(self.path, records)
        for file in self.path.glob("*.safetensors"):
            if found is None and file.name not in records:
                found = f"{file.name} is not in its manifest"
        state = {} if found is not None else self.state()
        if found is None and (state.get("stage"), state.get("step")) != (self.stage, self.step):
            found = f"it holds stage {state.get('stage')}, step {state.get('step')}"
        if found is not None:
            raise ValueError(f"checkpoint {self.path} is damaged: {found}.")

    def state(self) -> dict[str, object]:
        """What `finish` of a `CheckpointWriter` got as `state`, compared with the manifest.

        Raises:
            ValueError: if it is damaged.
        """
        name = "state.json"
        found = damage(self.path, {name: self._json("manifest.json").get(name)})
        if found is not None:
            raise ValueError(f"checkpoint {self.path} is damaged: {found}.")
        return self._json(name)

    def has(self, name: str) -> bool:
        """Whether there is a tensor file of this name."""
        return (self.path / f"{name}.safetensors").is_file()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One of the tensor files, on the CPU.

        Raises:
            ValueError: if there is no such file, or it cannot be read.
        """
        try:
            return load_file(self.path / f"{name}.safetensors")
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"checkpoint {self.path} holds no readable {name} ({error})."
            ) from error

    def _json(self, name: str) -> dict[str, object]:
        try:
            value = json.loads(read_text(self.path / name))
        except (OSError, ValueError) as error:
            raise ValueError(f"checkpoint {self.path} is damaged: {name} ({error}).") from error
        if not isinstance(value, dict):
            raise ValueError(f"checkpoint {self.path} is damaged: {name} is not an object.")
        return value


class CheckpointWriter:
    """Writes a checkpoint below `output`, whole or not at all: a file at a time, then `finish`.

    Args:
        output: folder of the run.
        stage: number of the stage.
        step: steps done in it.

    Raises:
        OSError: from any call, if it cannot be written; nothing is left behind then.
    """

    def __init__(self, output: Path, stage: int, step: int) -> None:
        self.checkpoint: Checkpoint = find_checkpoint(output, stage, step)
        self._aside = temporary_of(self.checkpoint.path)
        with self._whole_or_gone():
            self._aside.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(self._aside.parent)
            self._aside.mkdir()

    def add(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes `name`.safetensors; the tensors are on the CPU, contiguous, and share no memory."""
        with self._whole_or_gone():
            save_file(dict(tensors), self._aside / f"{name}.safetensors")

    def finish(self, state: Mapping[str, object]) -> Checkpoint:
        """Writes what is not a tensor, and gives the checkpoint its name."""
        aside = self._aside
        with self._whole_or_gone():
            of = {"stage": self.checkpoint.stage, "step": self.checkpoint.step}
            _write_json(aside / "state.json", {**state, **of})
            _write_json(
                aside / "manifest.json", {f.name: record_of(f) for f in sorted(aside.iterdir())}
            )
            complete_folder(aside)
            replace_folder(aside, self.checkpoint.path)
        return self.checkpoint

    @contextmanager
    def _whole_or_gone(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            shutil.rmtree(self._aside, ignore_errors=True)
            raise OSError(
                f"the checkpoint {self.checkpoint.path} could not be written: {error}."
            ) from error


def find_checkpoint(output: Path, stage: int, step: int) -> Checkpoint:
    """The checkpoint after a step, which may not be there yet."""
    return Checkpoint(output / _FOLDER / f"stage-{stage}-step-{step:08d}", stage, step)


def find_checkpoints(output: Path, stage: int | None = None) -> list[Checkpoint]:
    """The checkpoints below `output` (of one stage, if given), newest first; not verified.

    Raises:
        ValueError: if the name of a folder there is nearly that of a checkpoint.

    Example:
        >>> from pathlib import Path
        >>> [found.step for found in nd.training.find_checkpoints(Path(run))]
        [1]
    """
    found = []
    for path in (output / _FOLDER).glob("stage-*"):
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            checkpoint = find_checkpoint(output, int(match[1]), int(match[2]))
            if checkpoint.path != path:
                raise ValueError(
                    f"{str(path)!r} is not how a checkpoint is named ({checkpoint.path.name} would be); move it "
                    "away, or give it its name again."
                )
            found.append(checkpoint)
    chosen = [c for c in found if stage is None or c.stage == stage]
    return sorted(chosen, key=lambda c: (c.stage, c.step), reverse=True)


def newest_checkpoint(output: Path, stage: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint, verified; None if there is none at all.

    A damaged one is named in a warning and the one before it is taken: the steps in between are
    computed again, to the same result.

    Raises:
        ValueError: if there are checkpoints and all are damaged.

    Example:
        >>> from pathlib import Path
        >>> nd.training.newest_checkpoint(Path(run)).step
        1
    """
    checkpoints = find_checkpoints(output, stage)
    for checkpoint in checkpoints:
        try:
            checkpoint.verify()
        except ValueError as error:
            warnings.warn(f"{error} Looking for an older one.", RuntimeWarning, stacklevel=2)
            continue
        return checkpoint
    if checkpoints:
        raise ValueError(
            f"every checkpoint in {output / _FOLDER} is damaged; remove that folder to start again."
        )
    return None


def best_checkpoint(output: Path, stage: int) -> Checkpoint | None:
    """The checkpoint with the best evaluation of a stage, verified; None if none was compared.

    Which one it is stands in the newest checkpoint.

    Raises:
        ValueError: if it is damaged, or all are.

    Example:
        >>> from pathlib import Path
        >>> nd.training.best_checkpoint(Path(run), stage=0)  # None: nothing was evaluated
    """
    newest = newest_checkpoint(output, stage)
    best = None if newest is None else newest.state().get("best")
    if not isinstance(best, Mapping):
        return None
    checkpoint = find_checkpoint(output, stage, int(best["step"]))
    checkpoint.verify()
    return checkpoint


def prune(
    output: Path, stage: int, keep: int, best: int | None = None, calm: int | None = None
) -> None:
    """Removes all but the newest `keep` checkpoints of a stage, that of step `best`, and those around step `calm`.

    These are the newest up to `calm` and the oldest after it, which takes its place as `calm` moves on.
    """
    found = find_checkpoints(output, stage)  # the newest first
    kept = {best}
    if calm is not None:
        kept.update([c.step for c in found if c.step <= calm][:1])
        kept.update([c.step for c in found if c.step > calm][-1:])
    for checkpoint in found[keep:]:
        if checkpoint.step not in kept:
            shutil.rmtree(checkpoint.path)


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=1), encoding="utf-8")
