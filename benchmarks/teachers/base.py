"""What a teacher of the comparison is: a pipeline, its data, its prompts, and how its pictures are measured."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.evaluation import EvaluateConfig, Extractor
from nitrodistill.evaluation.alignment import Alignment
from nitrodistill.files import atomic_folder, damage, record_of, write_json
from nitrodistill.method import Draws
from nitrodistill.models import Pipeline

MANIFEST, PIPELINE, READER = "manifest.json", "pipeline", "reader.safetensors"


@dataclass(frozen=True)
class Quality:
    """How pictures of one teacher are measured.

    Attributes:
        features: pictures `(B, 3, H, W)` in [-1, 1] -> `(B, F)`, of the Fréchet distance.
        real: held-out pictures of a prompt, which no training set holds (`RealImages`); of a user's own teacher an
            `ImageFolder`, or None.
        alignment: whether a picture shows its prompt; None where there are no prompts.
        num_samples: pictures of each model.
    """

    features: Extractor
    real: Any
    alignment: Alignment | None = None
    num_samples: int = 512


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        pipeline: a diffusers pipeline.
        reader: the network that reads its pictures, for features and alignment; None where one is at hand.
    """

    pipeline: Any
    reader: nn.Module | None = None


class Teacher(ABC):
    """One of the teachers.

    Attributes:
        name: of it.
        guidance: its guidance scale; 1 is none.
        num_inference_steps: of its sampler.
        timestep: what a one-step student is told (the setting `timestep` of the methods); None is the last. A
            network that predicts epsilon and whose schedule leaves a little signal at the last timestep says
            nothing of x0 there.
        embedded: whether it ships with the package, so that nothing is trained.
    """

    name: str
    guidance: float = 3.0
    num_inference_steps: int = 25
    timestep: float | None = None
    embedded: bool = False

    @abstractmethod
    def prompts(self) -> list[str]:
        """All that may be asked for, in an order of which any beginning is a fair sample."""

    @abstractmethod
    def training_set(self, count: int, seed: int) -> Tensor:
        """Pictures `(N, C, H, W)` in [-1, 1] that it is trained on, N at most `count`."""

    @abstractmethod
    def untrained(self) -> Any:
        """Its diffusers pipeline with random weights (seeded) in the network that is trained."""

    @abstractmethod
    def train(self, folder: Path, share: float = 1.0) -> Trained:
        """Trains it; goes on with what `folder` holds.

        Args:
            folder: of checkpoints.
            share: of the full number of steps, for trials.
        """

    @abstractmethod
    def quality(self, reader: Path | None, seed: int) -> Quality:
        """How its pictures are measured.

        Args:
            reader: weights of `Trained.reader`.
            seed: of the held-out pictures.
        """

    def load(self, folder: Path) -> Pipeline:
        """The trained teacher from the folder that `built` gives."""
        return Pipeline.load(folder / PIPELINE)

    def settings(self) -> dict[str, Any]:
        """What methods must be told of it."""
        return {} if self.timestep is None else {"timestep": self.timestep}

    def evaluation(self, quality: Quality, seed: int) -> EvaluateConfig:
        """How students are evaluated: without times, and without pictures."""
        return EvaluateConfig(
            num_samples=quality.num_samples,
            seed=seed,
            num_inference_steps=self.num_inference_steps,
            guidance=self.guidance,
            cost_repeats=0,
            num_pictures=0,
        )


def built(teacher: Teacher, root: Path, share: float = 1.0) -> Path:
    """The folder of a trained teacher below `root`; trains it where there is none.

    It holds `pipeline/`, which diffusers and `nitrodistill generate --teacher` read, `reader.safetensors`, and
    `manifest.json` with a hash of every file, the CPU seconds of training and the number of parameters.

    Raises:
        ValueError: if a file is not what was written.
    """
    folder = root / teacher.name
    if teacher.embedded:
        return folder
    if not (folder / MANIFEST).is_file():
        _train(teacher, folder, root / f"{teacher.name}.training", share)
    manifest = json.loads((folder / MANIFEST).read_text())
    wrong = damage(folder, manifest["files"])
    if wrong is not None:
        raise ValueError(
            f"the teacher in {folder} is damaged: {wrong}; delete the folder to train it anew."
        )
    return folder


def _train(teacher: Teacher, folder: Path, work: Path, share: float) -> None:
    from safetensors.torch import save_file

    work.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    found = teacher.train(work, share)
    seconds = time.process_time() - start
    with atomic_folder(folder) as new:
        found.pipeline.save_pretrained(new / PIPELINE, safe_serialization=True)
        if found.reader is not None:
            save_file(found.reader.state_dict(), new / READER)
        files = sorted(file for file in new.rglob("*") if file.is_file())
        network = Pipeline.from_diffusers(found.pipeline).denoiser.module
        manifest = {
            "files": {file.relative_to(new).as_posix(): record_of(file) for file in files},
            "cpu_seconds": round(seconds, 1),
            "share": share,
            "parameters": sum(p.numel() for p in network.parameters()),
        }
        write_json(new / MANIFEST, manifest)


def shuffled(values: Sequence[str], seed: int = 0) -> list[str]:
    """Values in a random order."""
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    return [values[i] for i in order.tolist()]


def held_out(seed: int, index: Tensor, count: int) -> Tensor:
    """Uniforms `(B, count)` of held-out pictures: a function of the sample's number."""
    return Draws(seed, 0, index, purpose="evaluation").uniform("scene", (count,))
