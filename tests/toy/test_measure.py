from __future__ import annotations

import pytest
import torch

from nitrodistill.toy.loop import seeded
from nitrodistill.toy.measure import edge, frechet_distance, random_captions
from nitrodistill.toy.scenes import captions


def test_frechet_distance_of_shifted_and_scaled_features():
    """d(N(m, C), N(m + s, C)) = |s|^2 and d(N(0, C), N(0, k^2 C)) = (k - 1)^2 tr C."""
    features = torch.randn(500, 8, generator=seeded(0), dtype=torch.float64)
    features = features - features.mean(0)
    shift = torch.arange(8, dtype=torch.float64)
    assert frechet_distance(features, features + shift) == pytest.approx(140.0, rel=1e-9)
    trace = features.T.cov().trace().item()
    assert frechet_distance(features, 3 * features) == pytest.approx(4 * trace, rel=1e-9)
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-6)


def test_edge_of_a_ramp_is_its_slope():
    ramp = torch.arange(32.0).expand(2, 3, 32, 32) * 0.01
    assert edge(ramp) == pytest.approx(0.01 * 3**0.5, rel=1e-5)


def test_captions_are_drawn_from_the_grammar():
    drawn = random_captions(2000, seeded(0))
    assert set(drawn) <= set(captions())
    assert len(set(drawn)) > 320
