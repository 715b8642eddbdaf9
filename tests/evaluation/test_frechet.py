"""Fréchet distance: closed forms, an independent implementation, the bias it has."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from nitrodistill.evaluation.frechet import (
    GaussianStatistics,
    extrapolated_floor,
    frechet_distance,
    gaussian_distance,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_diagonal_gaussians_have_a_closed_form() -> None:
    mean_a, mean_b = normal(6, seed=1), normal(6, seed=2)
    scale_a, scale_b = normal(6, seed=3).abs(), normal(6, seed=4).abs()
    expected = (mean_a - mean_b).square().sum() + (scale_a - scale_b).square().sum()
    found = gaussian_distance(mean_a, scale_a.square().diag(), mean_b, scale_b.square().diag())
    assert found == pytest.approx(float(expected), rel=1e-12)


def test_agrees_with_scipys_matrix_root() -> None:
    roots = [normal(8, 8, seed=seed) for seed in (1, 2)]
    cov_a, cov_b = (root @ root.T for root in roots)
    mean = torch.zeros(8, dtype=torch.float64)
    root = scipy.linalg.sqrtm((cov_a @ cov_b).numpy())
    expected = float(cov_a.trace() + cov_b.trace()) - 2 * np.trace(root).real
    assert gaussian_distance(mean, cov_a, mean, cov_b) == pytest.approx(expected, rel=1e-9)


def test_a_shift_of_the_same_features_is_its_square() -> None:
    features = normal(200, 5)
    shift = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    a, b = GaussianStatistics.of(features), GaussianStatistics.of(features + shift)
    assert frechet_distance(a, b) == pytest.approx(5.0, rel=1e-10)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_more_dimensions_than_samples_are_no_obstacle() -> None:
    a = GaussianStatistics.of(normal(10, 64))
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_parts_add_up_to_the_whole() -> None:
    features = normal(50, 4) + 1e4  # where a sum of squares would lose the variance
    parts = [GaussianStatistics.of(part) for part in features.split([1, 9, 25, 15])]
    whole = parts[0] + parts[1] + parts[2] + parts[3]
    assert whole.count == 50
    torch.testing.assert_close(whole.mean, features.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(whole.covariance, features.T.cov(), rtol=1e-9, atol=1e-9)


def test_the_floor_of_halves_foretells_that_of_wholes() -> None:
    floors, truths = [], []
    for seed in range(12):
        a, b, c, d = (GaussianStatistics.of(x) for x in normal(1600, 16, seed=seed).split(400))
        floors.append(extrapolated_floor(a, b))
        truths.append(frechet_distance(a + b, c + d))
    assert np.mean(floors) == pytest.approx(np.mean(truths), rel=0.1)
    uneven = GaussianStatistics.of(normal(200, 16)), GaussianStatistics.of(normal(600, 16, seed=9))
    assert extrapolated_floor(*uneven) == pytest.approx(np.mean(truths), rel=0.4)


def test_bad_features_are_refused() -> None:
    good = GaussianStatistics.of(normal(5, 3))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        GaussianStatistics.of(torch.zeros(3))
    with pytest.raises(ValueError, match="NaN or infinity"):
        GaussianStatistics.of(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance(good, GaussianStatistics.of(normal(5, 4)))
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        good + GaussianStatistics.of(normal(5, 4))
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_distance(good, GaussianStatistics.of(normal(1, 3)))
