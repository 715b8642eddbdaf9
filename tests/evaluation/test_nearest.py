"""The nearest training pair: copies are near, others as far as they are."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.evaluation.nearest import NearestPair


def test_copies_are_near_and_others_as_far_as_they_are() -> None:
    training = torch.eye(6)[:5] * 3
    nearest = NearestPair(training)
    assert len(nearest) == 5
    found = nearest.distances(torch.cat([training[:2], torch.zeros(1, 6), -training[:1]]))
    expected = [0, 0, 3 / 6**0.5, 18**0.5 / 6**0.5]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-3, rtol=1e-5)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(M, F\), M >= 1"):
        NearestPair(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="equal dimensions"):
        NearestPair(torch.zeros(2, 4)).distances(torch.zeros(2, 5))
