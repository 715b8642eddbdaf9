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
    assert found["precision"].value == pytest.approx(precision, abs=1e-6)
    assert found["recall"].value == pytest.approx(recall, abs=1e-6)


def test_density_and_coverage_are_their_definitions() -> None:
    pictures, reference = normal(40, 0, 0.5), normal(30, 1)
    found = manifold_scores(pictures, reference, 3)
    hits = []
    for j in range(30):
        radius = (reference - reference[j]).norm(dim=1).sort().values[3]
        hits.append((pictures - reference[j]).norm(dim=1) <= radius)
    assert found["coverage"].value == pytest.approx(sum(bool(h.any()) for h in hits) / 30)
    assert found["density"].value == pytest.approx(sum(int(h.sum()) for h in hits) / 40 / 3)


def test_changes_are_those_of_the_scores_without_a_sample() -> None:
    pictures, reference = normal(20, 0, 0.8), normal(17, 1)
    found = manifold_scores(pictures, reference, 3)
    for name, score in found.items():
        for i in range(17):
            rest = torch.arange(20) != i
            without = manifold_scores(pictures[rest], reference, 3)[name].value
            assert score.pictures[i].item() == pytest.approx(without - score.value, abs=1e-9)
            rest = torch.arange(17) != i
            without = manifold_scores(pictures, reference[rest], 3)[name].value
            assert score.reference[i].item() == pytest.approx(without - score.value, abs=1e-9)


def test_all_of_24_is_not_all() -> None:
    pictures = normal(24, 0)
    low, high = manifold_scores(pictures, pictures)["precision"].interval()
    assert (low, high) == (pytest.approx(0.84, abs=0.01), 1.0)


def test_sets_of_one_distribution() -> None:
    """Naeem et al. 2020: density is 1 and coverage 1 - 2^-k in the mean, for large sets."""
    found = manifold_scores(normal(2000, 0), normal(2000, 1))
    assert found["coverage"].value == pytest.approx(1 - 2**-5, abs=0.015)
    assert found["density"].value == pytest.approx(1, abs=0.05)


def test_a_missing_mode_costs_recall_and_a_strange_one_precision() -> None:
    two = torch.cat([normal(150, 0), normal(150, 1, 20.0)])
    lost = manifold_scores(normal(300, 2), two)
    assert lost["recall"].value == pytest.approx(0.5, abs=0.05)
    assert lost["coverage"].value == pytest.approx(0.5, abs=0.05)
    assert lost["precision"].value > 0.9
    strange = manifold_scores(two, normal(300, 2))
    assert strange["precision"].value == pytest.approx(0.5, abs=0.05)
    assert strange["recall"].value > 0.9


def test_too_few_and_unlike_features_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 6 samples and 5 neighbours"):
        manifold_scores(normal(6, 0), normal(9, 1))
    with pytest.raises(ValueError, match="same feature extractor"):
        manifold_scores(normal(9, 0), normal(9, 1)[:, :3])
