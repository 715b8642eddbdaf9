"""The meters of all models, and what feeds them batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nitrodistill.evaluation.alignment import Alignment
from nitrodistill.evaluation.config import SamplePlan
from nitrodistill.evaluation.drawing import NOISE, OTHER_NOISE, Drawing
from nitrodistill.evaluation.features import Extractor
from nitrodistill.evaluation.intervals import Resampler
from nitrodistill.evaluation.meters import Columns, Meter
from nitrodistill.evaluation.models import Model
from nitrodistill.evaluation.nearest import NearestPair
from nitrodistill.evaluation.notes import left_out
from nitrodistill.evaluation.paired import PerceptualDistance, latent_distance, paired_distances
from nitrodistill.evaluation.real import RealImages, check_resolution
from nitrodistill.evaluation.result import Evaluation, Metric, Pictures, Sample
from nitrodistill.evaluation.scores import Scorer
from nitrodistill.evaluation.sharpness import TextureFeatures
from nitrodistill.evaluation.text import TextScore

PAIRED = ("latent_distance", "pixel_distance", "ssim", "lpips")
RANKED_BY = "pixel_distance"


@dataclass
class Drawn:
    """A batch of one model."""

    latents: Tensor
    images: Tensor


class Measurement:
    """Draws and measures all models.

    Args:
        models: by name.
        samples: which prompt and which half each belongs to.
        drawing: where latents come from.
        extractors: feature extractors.
        alignment: the oracle, or None.
        text_score: or None.
        perceptual: a paired distance, or None.
        real: real pictures by prompt, or None.
        folder: what was measured of a folder of real pictures, or None.
        nearest: finds the nearest training pair, or None.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        samples: SamplePlan,
        drawing: Drawing,
        extractors: Sequence[Extractor],
        alignment: Alignment | None,
        text_score: TextScore | None,
        perceptual: PerceptualDistance | None,
        real: RealImages | None,
        folder: Meter | None,
        nearest: NearestPair | None,
    ) -> None:
        self._models, self._samples, self._drawing = models, samples, drawing
        self._perceptual, self._text_score = perceptual, text_score
        self._real, self._folder = real, folder
        self._fresh_floor = samples.config.floor == "fresh"
        self._scorer = Scorer(extractors, Resampler(samples.config.bootstrap, samples.config.seed))
        self._remembers = nearest is not None
        texture = TextureFeatures()
        self._same_latents = {
            name: model.pipeline.latent_shape == models["teacher"].pipeline.latent_shape
            for name, model in models.items()
        }
        self._meters = {
            name: Meter(
                len(samples.prompts),
                extractors,
                alignment,
                text_score,
                nearest if self._same_latents.get(name, True) else None,
                texture,
            )
            for name in (*models, "again", "real", "real again")
        }
        self._side = 0  # of the pictures, in pixels
        self._baseline = Columns()
        self._first: Drawn | None = None
        self._examples: dict[str, list[Tensor]] = {name: [] for name in models}
        self._worst: dict[str, Tensor] = {}
        self._worst_rows = torch.zeros(0, dtype=torch.int64)

    def add(self, number: int, rows: Tensor) -> None:
        """Draws and measures samples `rows`, batch `number`, in every model."""
        drawn = {name: self._draw(name, number, rows, NOISE) for name in self._models}
        for name, batch in drawn.items():
            self._measure(name, batch, rows)
        teacher = drawn["teacher"]
        self._side = min(teacher.images.shape[-2:])
        paired = {
            name: self._compare(batch, teacher)
            for name, batch in drawn.items()
            if name != "teacher"
        }
        for name, distances in paired.items():
            self._meters[name].columns.update(distances, self._places(rows))
        self._measure_baseline(teacher, number, rows)
        if self._real is not None:
            for i, name in enumerate(("real", "real again")):
                images = self._real(self._samples.texts(rows), rows + i * len(self._samples.ids))
                check_resolution(images, teacher.images)
                self._update(name, images, rows)
        self._keep_examples(drawn, rows, paired["student"][RANKED_BY])

    def _draw(self, name: str, number: int, rows: Tensor, stream: str) -> Drawn:
        latents = self._drawing.latents(name, number, rows, stream)
        images = self._models[name].pipeline.decode(latents)
        if not bool(images.isfinite().all()):
            raise ValueError(
                f"the pictures of the {name} hold NaN or infinity, though its latents do not: its VAE overflows "
                "in this dtype; load the pipeline in float32 or bfloat16."
            )
        return Drawn(latents, images)

    def _measure(self, meter: str, batch: Drawn, rows: Tensor) -> None:
        self._update(meter, batch.images, rows)
        ids, places = self._samples.ids[rows], self._places(rows)
        self._meters[meter].update_latents(batch.latents, ids, places)

    def _update(self, meter: str, images: Tensor, rows: Tensor) -> None:
        device = self._models["teacher"].pipeline.device
        self._meters[meter].update(images.to(device), self._samples.texts(rows), self._places(rows))

    def _places(self, rows: Tensor) -> Tensor:
        return self._samples.places[rows]

    def _compare(self, mine: Drawn, teacher: Drawn) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if mine.latents.shape == teacher.latents.shape:  # a student may have a VAE of its own
            found["latent_distance"] = latent_distance(mine.latents, teacher.latents)
        return found | paired_distances(mine.images, teacher.images, self._perceptual)

    def _measure_baseline(self, teacher: Drawn, number: int, rows: Tensor) -> None:
        """How far apart the teacher's pictures of one prompt are, and how well other prompts fit."""
        if self._text_score is not None and len(self._samples.prompts) > 1:
            others = [self._samples.prompts[i - 1] for i in self._samples.ids[rows].tolist()]
            score = self._text_score(teacher.images, others)
            self._baseline.update({"clip_score": score}, self._places(rows))
        if self._fresh_floor:
            again = self._draw("teacher", number, rows, OTHER_NOISE)
            self._measure("again", again, rows)
            self._baseline.update(self._compare(again, teacher), self._places(rows))
            return
        if self._first is None:
            self._first = teacher
        count, period = len(self._first.images), len(self._samples.prompts)
        same = (rows >= period) & (rows - period < count)  # the first batch's prompts, once more
        if bool(same.any()):
            mine = Drawn(teacher.latents[same], teacher.images[same])
            before = rows[same] - period
            theirs = Drawn(self._first.latents[before], self._first.images[before])
            self._baseline.update(self._compare(mine, theirs), self._places(rows[same]))

    def _keep_examples(self, drawn: Mapping[str, Drawn], rows: Tensor, distance: Tensor) -> None:
        wanted = self._samples.config.num_pictures
        for name, batch in drawn.items():
            left = wanted - int(rows[0])
            if left > 0:
                first = batch.images[:left].to("cpu", copy=True)  # a view would keep the batch
                self._examples[name].append(first)
        if not wanted:
            return
        distances = self._meters["student"].columns[RANKED_BY]
        candidates = torch.cat([self._worst_rows, rows])
        order = distances[candidates].argsort(descending=True, stable=True)[:wanted]
        for name, batch in drawn.items():
            here = batch.images.cpu()
            known = torch.cat([self._worst[name], here]) if name in self._worst else here
            self._worst[name] = known[order]
        self._worst_rows = candidates[order]

    def result(
        self, cost: Mapping[str, Mapping[str, Metric]], settings: Mapping[str, Any]
    ) -> Evaluation:
        """All metrics, samples and pictures."""
        if self._folder is not None:
            self._meters["real"] = self._folder
        has_real = self._real is not None or self._folder is not None
        real = self._meters["real"] if has_real else None
        floors = self._floors(real)
        names = [*self._models, *(["real"] if has_real else [])]
        teacher = self._meters["teacher"]
        models = {
            name: {
                **self._scorer.metrics(self._meters[name], teacher, real, floors),
                **cost.get(name, {}),
            }
            for name in names
        }
        notes = left_out(
            models,
            self._samples,
            side=self._side,
            same_latents=self._same_latents["student"],
            memorisation=self._remembers,
            num_real=None if real is None else real.count,
        )
        return Evaluation(models, settings, self._distances(), *self._pictures(), notes)

    def _floors(self, real: Meter | None) -> dict[str, float]:
        teacher, again = self._meters["teacher"], self._meters["again"]
        found = self._scorer.known_floors(teacher)
        if self._fresh_floor or self._samples.has_halves:
            found |= self._scorer.floors(teacher, again if self._fresh_floor else None)
        found |= {n: float(self._baseline[n].mean()) for n in self._baseline.names()}
        if real is not None:
            others = None if self._folder is not None else self._meters["real again"]
            found |= self._scorer.real_floors(real, others)
        return found

    def _distances(self) -> tuple[Sample, ...]:
        columns = self._meters["student"].columns
        known = {name: columns[name].tolist() for name in PAIRED if name in columns}
        texts = self._samples.texts(torch.arange(len(self._samples.ids)))
        return tuple(
            Sample(i, text, {name: values[i] for name, values in known.items()})
            for i, text in enumerate(texts)
        )

    def _pictures(self) -> tuple[Pictures | None, Pictures | None]:
        count = min(self._samples.config.num_pictures, len(self._samples.ids))
        if not count:
            return None, None
        first = {name: torch.cat(parts) for name, parts in self._examples.items()}
        rows = torch.arange(count)
        return (
            Pictures(tuple(self._samples.texts(rows)), first, tuple(rows.tolist())),
            Pictures(
                tuple(self._samples.texts(self._worst_rows)),
                self._worst,
                tuple(self._worst_rows.tolist()),
            ),
        )
