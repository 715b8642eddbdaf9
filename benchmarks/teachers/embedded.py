"""The two teachers that ship with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.teachers.base import Quality, Teacher, Trained, held_out
from nitrodistill import toy
from nitrodistill.demo.demo import shuffled_captions
from nitrodistill.evaluation import Extractor
from nitrodistill.models import Pipeline
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.teachers import load_teacher
from nitrodistill.toy import scenes
from tools.toy.loop import seeded
from tools.toy.train_vae import random_scenes


class Embedded(Teacher):
    """A teacher of the package, with its own oracle."""

    embedded = True

    def __init__(self, name: str, timestep: float | None = None) -> None:
        self.name = name
        self.timestep = timestep

    def prompts(self) -> list[str]:
        """The captions."""
        return shuffled_captions()

    def training_set(self, count: int, seed: int) -> Tensor:
        """Renders."""
        return random_scenes(count, seeded(seed, "pool", 0), "cpu")[1]

    def untrained(self) -> Any:
        """The trained one: it ships with its weights."""
        return self.load(Path()).diffusers

    def train(self, folder: Path, share: float = 1.0) -> Trained:
        """It is trained already."""
        raise NotImplementedError(f"{self.name} ships with the package; load it.")

    def load(self, folder: Path) -> Pipeline:
        """From the package."""
        return load_teacher(self.name)

    def quality(self, reader: Path | None, seed: int) -> Quality:
        """The oracle's features and verdicts; fresh renders."""
        oracle = toy.load_oracle()

        def real(texts: Sequence[str], index: Tensor) -> Tensor:
            uniforms = held_out(seed, index, scenes.NUM_UNIFORMS)
            return scenes.draw(scenes.attribute_indices(texts), uniforms)

        features = Extractor("oracle", oracle.features, fingerprint=fingerprint(oracle))
        return Quality(features, real, oracle.alignment)
