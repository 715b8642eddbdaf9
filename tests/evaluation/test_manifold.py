"""Precision, recall, density, coverage: torch-fidelity's numbers, brute force, and known answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import calculate_precision_recall_full

from nitrodistill.evaluation.manifold import manifold_scores


def normal(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + shift


def test_precision_and_recall_are_torch_fidelitys() -> None:
    pictures, reference = normal(700, 0, 0.8), normal(550, 1)
    found = manifold_scores(pictures, reference)
    precision, recall = calculate_precision_recall_full(pictures, reference, neighborhood=5)
    assert found.precision.mean().item() == pytest.approx(precision, abs=1e-6)
    assert found.recall.mean().item() == pytest.approx(recall, abs=1e-6)


def test_density_and_coverage_are_their_definitions() -> None:
    pictures, reference = normal(40, 0, 0.5), normal(30, 1)
    found = manifold_scores(pictures, reference, 3)
    for j in range(30):
        radius = (reference - reference[j]).norm(dim=1).sort().values[3]
        hits = (pictures - reference[j]).norm(dim=1) <= radius
        assert found.coverage[j].item() == float(hits.any())
    inside = torch.zeros(40)
    for i in range(40):
        for j in range(30):
            radius = (reference - reference[j]).norm(dim=1).sort().values[3]
            inside[i] += (pictures[i] - reference[j]).norm() <= radius
    torch.testing.assert_close(found.density, inside.double() / 3)


def test_sets_of_one_distribution() -> None:
    """Naeem et al. 2020: density is 1 and coverage 1 - 2^-k in the mean, for large sets."""
    found = manifold_scores(normal(2000, 0), normal(2000, 1))
    assert found.coverage.mean().item() == pytest.approx(1 - 2**-5, abs=0.015)
    assert found.density.mean().item() == pytest.approx(1, abs=0.05)


def test_a_missing_mode_costs_recall_and_a_strange_one_precision() -> None:
    two = torch.cat([normal(150, 0), normal(150, 1, 20.0)])
    lost = manifold_scores(normal(300, 2), two)
    assert lost.recall.mean().item() == pytest.approx(0.5, abs=0.05)
    assert lost.coverage.mean().item() == pytest.approx(0.5, abs=0.05)
    assert lost.precision.mean() > 0.9
    strange = manifold_scores(two, normal(300, 2))
    assert strange.precision.mean().item() == pytest.approx(0.5, abs=0.05)
    assert strange.recall.mean() > 0.9


def test_too_few_and_unlike_features_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 5 samples; 5 neighbours need at least 6"):
        manifold_scores(normal(5, 0), normal(9, 1))
    with pytest.raises(ValueError, match="same feature extractor"):
        manifold_scores(normal(9, 0), normal(9, 1)[:, :3])
