"""A teacher of the user's own, with the pairs that it made."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.teachers import TEACHERS
from benchmarks.teachers.base import Quality, Teacher, Trained
from benchmarks.teachers.compare import BATCH_SIZE, PAIRS, Place
from nitrodistill.data import PairStore
from nitrodistill.data.sources import Generated
from nitrodistill.evaluation import Extractor, ImageFolder, TextureFeatures
from nitrodistill.evaluation.student import MetricNetworks
from nitrodistill.files import blake2
from nitrodistill.models import Pipeline
from nitrodistill.teachers import load_teacher


class Given(Teacher):
    """Any teacher that `nitrodistill generate` made pairs with, whose guidance and steps are those of the pairs.

    Args:
        path: a folder, or a name on the Hub.
        store: of its pairs.
        networks: real pictures and features; without features there are those of texture.
        num_samples: pictures of each model in an evaluation.
        timestep: see `Teacher`.

    Raises:
        ValueError: if the pairs were made elsewhere, so that it is not known how.
    """

    embedded = True

    def __init__(
        self,
        path: str,
        store: PairStore,
        networks: MetricNetworks,
        num_samples: int,
        timestep: float | None = None,
    ) -> None:
        source = store.manifest.sources[0]
        if not isinstance(source, Generated):
            raise ValueError(
                f"the pairs in {store.path} were imported, and nothing says with which guidance; make them with "
                "`nitrodistill generate`."
            )
        self.path, self.store, self.networks, self.num_samples = path, store, networks, num_samples
        self.name = re.sub(r"\W+", "-", Path(path).name).strip("-")
        self.guidance, self.num_inference_steps = source.guidance, source.num_inference_steps
        self.timestep = timestep

    def folder_name(self, quality: Quality) -> str:
        """Its name and a hash of all that its students and their measures depend on, for the folder of its cells.

        Of networks of yours that is their name: what `module:callable` computes is not looked at.
        """
        real = quality.real.fingerprint() if isinstance(quality.real, ImageFolder) else None
        about = [
            _in_full(self.path),
            self.settings(),
            self.store.identity(),
            self.networks.features,
            _in_full(self.networks.real),
            real,
            self.num_samples,
        ]
        return f"{self.name}-{blake2(json.dumps(about, sort_keys=True)).hex()[:8]}"

    def prompts(self) -> list[str]:
        """Those of the pairs."""
        return list(self.store.prompts)

    def training_set(self, count: int, seed: int) -> Tensor:
        """It is trained already."""
        raise NotImplementedError(f"{self.name} is trained already.")

    def untrained(self) -> Any:
        """It is trained already."""
        raise NotImplementedError(f"{self.name} is trained already.")

    def train(self, folder: Path, share: float = 1.0) -> Trained:
        """It is trained already."""
        raise NotImplementedError(f"{self.name} is trained already.")

    def load(self, folder: Path) -> Pipeline:
        """The pipeline."""
        return load_teacher(self.path)

    def quality(self, reader: Path | None, seed: int) -> Quality:
        """The given features, or those of texture; real pictures where a folder is given."""
        pipeline = self.load(Path())
        found = self.networks.extractors(pipeline.device)
        found = found or [Extractor("texture", TextureFeatures(), fingerprint="texture 1")]
        real = self.networks.settings(pipeline).get("real_images")
        return Quality(found[0], real, num_samples=self.num_samples)


def _in_full(path: str | None) -> str | None:
    """A path in full; a name on the Hub, or none, as it is."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def add_options(parser: ArgumentParser, teachers: list[str]) -> None:
    """The options that say which teachers, and with what they are measured."""
    parser.add_argument(
        "--teacher",
        nargs="+",
        default=teachers,
        help=f"{', '.join(TEACHERS)}; or a folder, or a name on the Hub, with --pairs",
    )
    parser.add_argument(
        "--pairs", help="the store of your teacher's pairs; a number for a listed one"
    )
    parser.add_argument(
        "--features", help="module:callable, pictures -> (B, F), for your teacher's distances"
    )
    parser.add_argument("--real", help="folder of real pictures, for your teacher")
    parser.add_argument("--timestep", type=float, help="that of a one-step student of your teacher")
    parser.add_argument("--samples", type=int, help="pictures of each model in an evaluation")
    parser.add_argument("--batch", type=int, default=BATCH_SIZE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def places(options: Namespace, cache: Path) -> list[Place]:
    """The teachers that were asked for, ready to be distilled."""
    count = options.pairs or str(PAIRS)
    return [
        _listed(name, int(count), options, cache)
        if name in TEACHERS and count.isdigit()
        else _given(name, options)
        for name in options.teacher
    ]


def _listed(name: str, count: int, options: Namespace, cache: Path) -> Place:
    own = ("--features", "--real", "--timestep")
    told = [word for word in own if getattr(options, word[2:]) is not None]
    if told:
        raise SystemExit(
            f"{', '.join(told)}: --teacher {name} has its own; leave it out, or give --pairs, a store of yours."
        )
    place = Place.of(TEACHERS[name], cache, options.output, count, batch_size=options.batch)
    if not options.samples:
        return place
    quality = replace(place.quality, num_samples=options.samples)
    return replace(place, quality=quality, folder=place.folder / f"{options.samples}-samples")


def _given(name: str, options: Namespace) -> Place:
    if not options.pairs:
        raise SystemExit(f"--teacher {name} needs --pairs, the store that it made.")
    networks = MetricNetworks(real=options.real, features=options.features)
    store = PairStore.open(options.pairs)
    if len(store) < options.batch:
        raise SystemExit(
            f"{options.pairs} holds {len(store)} pairs; give a --batch of no more, not {options.batch}."
        )
    teacher = Given(name, store, networks, options.samples or 512, options.timestep)
    quality = teacher.quality(None, 0)
    return Place(
        teacher,
        teacher.load(Path()),
        quality,
        options.output / teacher.folder_name(quality),
        store.path,
        len(store),
        options.batch,
    )
