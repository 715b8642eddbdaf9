"""NaN and infinity in, a good number out: never, in any public metric."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nitrodistill import evaluation
from nitrodistill.evaluation import (
    Extractor,
    GaussianStatistics,
    KernelDistance,
    Metric,
    NearestPair,
    PromptSpread,
    TextureFeatures,
    extrapolated_floor,
    frechet_distance,
    gaussian_distance,
    manifold_scores,
)
from nitrodistill.evaluation.colour import colour_features
from nitrodistill.evaluation.features import FeatureSet
from nitrodistill.evaluation.frechet import finite
from nitrodistill.evaluation.meters import Columns
from nitrodistill.evaluation.paired import latent_distance, paired_distances
from nitrodistill.evaluation.sharpness import gradient_magnitude

BAD = (torch.nan, torch.inf, -torch.inf)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def paired(images: Tensor) -> Tensor:
    found = paired_distances(images, normal(*images.shape), lambda a, b: (a - b).mean((1, 2, 3)))
    return torch.stack([*found.values()])


def statistics(features: Tensor) -> GaussianStatistics:
    """Made by hand, as those of a cache would be."""
    centred = features - features.mean(0)
    return GaussianStatistics(len(features), features.mean(0), centred.T @ centred)


def spread(features: Tensor) -> float | None:
    found = PromptSpread(2)
    found.update(torch.arange(len(features)) % 2, features)
    return found.spread()


def columns(features: Tensor) -> Tensor:
    found = Columns()
    found.update({"a": features.mean(1)}, torch.arange(len(features)))
    return found["a"]


def kept(features: Tensor) -> Tensor:
    found = FeatureSet("test")
    found.update(features, torch.arange(len(features)))
    return found.kept()


OF_IMAGES: dict[str, Callable[[Tensor], object]] = {
    "TextureFeatures": TextureFeatures(),
    "colour_features": colour_features,
    "edge_strength": evaluation.edge_strength,
    "gradient_energy": evaluation.gradient_energy,
    "gradient_magnitude": lambda x: gradient_magnitude(x).mean((1, 2)),
    "high_frequency_energy": evaluation.high_frequency_energy,
    "latent_distance": lambda x: latent_distance(x, normal(*x.shape)),
    "paired_distances": paired,
    "Extractor": Extractor("bytes", lambda x: x.byte().flatten(1).float()),
}
OF_FEATURES: dict[str, Callable[[Tensor], object]] = {
    "GaussianStatistics": lambda x: GaussianStatistics.of(x).mean,
    "KernelDistance": lambda x: KernelDistance(x, normal(*x.shape)).value(),
    "KernelDistance, gaussian": lambda x: KernelDistance(normal(*x.shape), x, "gaussian").value(),
    "NearestPair": lambda x: NearestPair(x).distances(normal(3, x.shape[1])),
    "NearestPair, student": lambda x: NearestPair(normal(3, x.shape[1])).distances(x),
    "PromptSpread": spread,
    "extrapolated_floor": lambda x: extrapolated_floor(statistics(x), statistics(normal(9, 4))),
    "finite": finite,
    "frechet_distance": lambda x: frechet_distance(statistics(normal(9, 4)), statistics(x)),
    "gaussian_distance": lambda x: gaussian_distance(
        x.mean(0), torch.eye(4), torch.zeros(4), torch.eye(4)
    ),
    "manifold_scores": lambda x: manifold_scores(x, normal(*x.shape))["recall"].value,
    "manifold_scores, reference": lambda x: manifold_scores(normal(*x.shape), x)["coverage"].value,
    "Metric": lambda x: Metric(x.mean().item(), None, 1.0).value,
    "Columns": columns,
    "FeatureSet": kept,
}
NO_METRIC = {"Alignment", "EvaluateConfig", "Evaluation", "ImageFolder", "MetricInfo", "Pictures"}
NO_METRIC |= {"RealImages", "Sample", "TextScore", "Timing", "count_flops"}
NO_METRIC |= {"draw_grid", "evaluate", "help_draw", "info", "measure", "peak_memory"}


def told(measure: Callable[[Tensor], object], given: Tensor) -> bool:
    """Whether it refuses, or gives NaN or infinity for the one that is bad."""
    try:
        found = measure(given)
    except ValueError as error:
        return "NaN" in str(error) or "finite" in str(error)
    last = found[..., -1:] if isinstance(found, Tensor) and found.ndim == 1 else found
    if isinstance(found, Tensor) and found.ndim == 2:
        last = found[-1] if len(found) == 3 and found.shape[1] != 3 else found[:, -1]
    return not torch.as_tensor(last).isfinite().any()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", OF_IMAGES)
def test_of_a_picture_with_one_bad_pixel(name: str, bad: float) -> None:
    images = normal(3, 3, 16, 16).clamp(-1, 1)
    images[-1, :, 5, 6] = bad
    assert told(OF_IMAGES[name], images)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", OF_FEATURES)
def test_of_features_with_one_bad_number(name: str, bad: float) -> None:
    features = normal(9, 4)
    features[-1] = bad
    assert told(OF_FEATURES[name], features)


def test_every_public_metric_is_held_to_it() -> None:
    names = {name.partition(",")[0] for name in (*OF_IMAGES, *OF_FEATURES)}
    assert {*evaluation.__all__} - names == NO_METRIC


def test_good_numbers_pass() -> None:
    """So that refusing everything does not."""
    for measure in OF_IMAGES.values():
        assert not told(measure, normal(3, 3, 16, 16).clamp(-1, 1))
    for measure in OF_FEATURES.values():
        assert not told(measure, normal(9, 4))
    for name in ("low", "high", "floor"):
        with pytest.raises(ValueError, match=f"a metric's {name} is nan; it must be a finite"):
            Metric(1.0, **{name: math.nan})
