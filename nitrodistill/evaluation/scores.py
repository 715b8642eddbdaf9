"""From what the meters kept to metrics with intervals and floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nitrodistill.evaluation.discrepancy import KernelDistance
from nitrodistill.evaluation.features import Extractor, FeatureSet, frechet_replicates
from nitrodistill.evaluation.intervals import (
    Interval,
    Resampler,
    mean_interval,
    percentile_interval,
    ratio_interval,
    share_interval,
    t_interval,
)
from nitrodistill.evaluation.manifold import MIN_SAMPLES, manifold_scores
from nitrodistill.evaluation.meters import Meter
from nitrodistill.evaluation.nearest import COPY_QUANTILE
from nitrodistill.evaluation.result import Metric

MEANS = ("clip_score", "latent_distance", "pixel_distance", "ssim", "lpips")
RATIOS = {
    "edge_ratio": "edge",
    "gradient_energy_ratio": "gradient_energy",
    "high_frequency_ratio": "high_frequency",
}
KERNEL_METRICS = {"cubic": "kid", "gaussian": "cmmd"}


class Scorer:
    """Compares models with the teacher and with real pictures.

    Args:
        extractors: in the order of the results; the first one's metrics have no suffix.
        resampler: of the intervals.
    """

    def __init__(self, extractors: Sequence[Extractor], resampler: Resampler) -> None:
        self._extractors = {
            f"@{extractor.name}" if number else "": extractor
            for number, extractor in enumerate(extractors)
        }
        self._resampler = resampler

    def metrics(
        self, mine: Meter, teacher: Meter, real: Meter | None, floors: Mapping[str, float]
    ) -> dict[str, Metric]:
        """All metrics of a model; what a model would be compared with itself is left out."""
        found = self._means(mine)
        found |= self._ratios(mine, teacher)
        found |= self._nearest(mine, teacher)
        if mine is not teacher and mine.latent_shape == teacher.latent_shape:
            found["fd_latents"] = self._frechet(mine.latents, teacher.latents, "latents")
        if mine is not teacher:
            found["fd_texture"] = self._frechet(mine.texture, teacher.texture, "texture")
            found["fd_colour"] = self._frechet(mine.colour, teacher.colour, "colour")
        for suffix, extractor in self._extractors.items():
            for word, other in (("real", real), ("teacher", teacher)):
                if other is not None and other is not mine:
                    sets = mine.features[extractor.name], other.features[extractor.name]
                    found[f"fd_{word}{suffix}"] = self._frechet(*sets, extractor.name)
                    found |= self._kernel(*sets, extractor, word, suffix)
            reference = teacher if real is None else real
            if mine is not reference:
                sets = mine.features[extractor.name], reference.features[extractor.name]
                found |= self._manifold(*sets, extractor.name, suffix)
        return {name: replace(m, floor=floors.get(name)) for name, m in found.items()}

    def floors(self, teacher: Meter, again: Meter | None) -> dict[str, float]:
        """What the teacher is to itself: with other noise (`again`), or from its halves."""
        if again is None:
            return self._halves(teacher, "teacher") | self._half_ratios(teacher)
        found = self.metrics(again, teacher, None, {})
        return {name: metric.value for name, metric in found.items() if name != "clip_score"}

    def known_floors(self, teacher: Meter) -> dict[str, float]:
        """What takes no second set: the teacher's alignment, and what `copied` is by its definition."""
        copied = {"copied": COPY_QUANTILE} if "nearest" in teacher.columns else {}
        return _alignments(teacher) | copied

    def real_floors(self, real: Meter, again: Meter | None) -> dict[str, float]:
        """What real pictures are to others (`again`), or one half of them to the other."""
        if again is None:
            return self._halves(real, "real")
        found = _alignments(real)
        for suffix, extractor in self._extractors.items():
            sets = again.features[extractor.name], real.features[extractor.name]
            found[f"fd_real{suffix}"] = sets[0].distance(sets[1])
            metrics = self._kernel(*sets, extractor, "real", suffix)
            metrics |= self._manifold(*sets, extractor.name, suffix)
            found |= {name: metric.value for name, metric in metrics.items()}
        return found

    def _halves(self, meter: Meter, word: str) -> dict[str, float]:
        found: dict[str, float | None] = {}
        if word == "teacher":
            found["fd_latents"] = meter.latents.floor()
            found["fd_texture"] = meter.texture.floor()
            found["fd_colour"] = meter.colour.floor()
        for suffix, extractor in self._extractors.items():
            found[f"fd_{word}{suffix}"] = meter.features[extractor.name].floor()
            first, second = meter.features[extractor.name].halves()
            if extractor.kernel is not None and len(first) > 1:
                name = f"{KERNEL_METRICS[extractor.kernel]}_{word}{suffix}"
                found[name] = KernelDistance(first, second, extractor.kernel).value()
            if len(first) >= MIN_SAMPLES:
                scores = manifold_scores(first, second)
                found |= {f"{name}{suffix}": score.value for name, score in scores.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _half_ratios(self, teacher: Meter) -> dict[str, float]:
        found: dict[str, float | None] = {}
        for name, column in RATIOS.items():
            found[name] = _ratio(*(half.mean() for half in teacher.columns.halves(column)))
        if "nearest" in teacher.columns:
            halves = teacher.columns.halves("nearest")
            found["nearest_ratio"] = _ratio(*(half.median() for half in halves))
        spreads = [spread.spread() for spread in teacher.spreads]
        if spreads[0] is not None and spreads[1]:
            found["diversity"] = spreads[0] / spreads[1]
        return {name: value for name, value in found.items() if value is not None}

    def _means(self, mine: Meter) -> dict[str, Metric]:
        found = {}
        for name in mine.columns.names():
            values = mine.columns[name]
            mean, count = float(values.mean()), len(values)
            if _is_alignment(name):
                found[name] = _metric(mean, share_interval(mean, count), count)
            elif name in MEANS:
                found[name] = _metric(mean, mean_interval(values), count)
        return found

    def _ratios(self, mine: Meter, teacher: Meter) -> dict[str, Metric]:
        found = {}
        for name, column in RATIOS.items():
            a, b = mine.columns[column], teacher.columns[column]
            value = _ratio(a.mean(), b.mean())
            if value is not None:
                found[name] = _metric(value, ratio_interval(a, b), len(a))
        spreads = [meter.spreads[0] + meter.spreads[1] for meter in (mine, teacher)]
        a, b = spreads[0].spread(), spreads[1].spread()
        if a is not None and b and mine.latent_shape == teacher.latent_shape:
            variances = torch.stack([spread.variances() for spread in spreads], dim=1)
            squares = ratio_interval(*variances[~variances.isnan().any(1)].T)
            interval = None if squares is None else (squares[0] ** 0.5, squares[1] ** 0.5)
            found["diversity"] = _metric(a / b, interval, mine.latents.count)
        return found

    def _nearest(self, mine: Meter, teacher: Meter) -> dict[str, Metric]:
        if "nearest" not in mine.columns:
            return {}
        a, b = mine.columns["nearest"], teacher.columns["nearest"]
        value = _ratio(a.median(), b.median())
        if value is None:
            return {}
        drawn = [(a[rows], b[rows]) for rows in self._resampler.rows(len(a))]
        ratios = torch.stack([x.median() / y.median() for x, y in drawn])
        shares = torch.tensor([_copied(x, y) for x, y in drawn], dtype=torch.float64)
        interval = percentile_interval(ratios) if bool(ratios.isfinite().all()) else None
        share = _copied(a, b)
        ends = zip(percentile_interval(shares), share_interval(share, len(a)), strict=True)
        (low, least), (high, most) = ends
        return {
            "nearest_ratio": _metric(value, interval, len(a)),
            "copied": _metric(share, (min(low, least), max(high, most)), len(a)),
        }

    def _frechet(self, mine: FeatureSet, other: FeatureSet, extractor: str) -> Metric:
        replicates, shrink = frechet_replicates(mine, other, self._counts)
        value = mine.distance(other)
        deviation = shrink * float(replicates.std())
        low, high = t_interval(value, deviation, min(mine.count, other.count) - 1)
        return _metric(value, (max(low, 0.0), high), mine.count, extractor)

    def _counts(self, size: int, replicates: int) -> list[Tensor]:
        return list(self._resampler.counts(size, replicates))

    def _kernel(
        self, mine: FeatureSet, other: FeatureSet, extractor: Extractor, word: str, suffix: str
    ) -> dict[str, Metric]:
        if extractor.kernel is None:
            return {}
        a, b = mine.kept(), other.kept()
        size = min(len(a), len(b))
        distance = KernelDistance(a[:size], b[:size], extractor.kernel)
        name = f"{KERNEL_METRICS[extractor.kernel]}_{word}{suffix}"
        return {name: _metric(distance.value(), distance.interval(), size, extractor.name)}

    def _manifold(
        self, mine: FeatureSet, reference: FeatureSet, extractor: str, suffix: str
    ) -> dict[str, Metric]:
        a, b = mine.kept(), reference.kept()
        if min(len(a), len(b)) < MIN_SAMPLES:
            return {}
        return {
            f"{name}{suffix}": _metric(score.value, score.interval(), len(a), extractor)
            for name, score in manifold_scores(a, b).items()
        }


def _metric(
    value: float, interval: Interval | None, num_samples: int, extractor: str | None = None
) -> Metric:
    low, high = interval or (None, None)
    return Metric(value, low, high, num_samples=num_samples, extractor=extractor)


def _copied(mine: Tensor, teachers: Tensor) -> float:
    return float((mine < teachers.quantile(COPY_QUANTILE)).double().mean())


def _is_alignment(name: str) -> bool:
    return name.partition("@")[0] == "alignment"


def _alignments(meter: Meter) -> dict[str, float]:
    columns = meter.columns
    return {n: float(columns[n].mean()) for n in columns.names() if _is_alignment(n)}


def _ratio(mine: Tensor, teachers: Tensor) -> float | None:
    return float(mine / teachers) if float(teachers) else None
