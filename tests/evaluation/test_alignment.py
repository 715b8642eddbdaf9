"""Alignment: joint is the conjunction of the attributes."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.evaluation import AlignmentCounts


def test_accuracies_are_counted_over_batches() -> None:
    counts = AlignmentCounts()
    assert counts.joint() is None
    counts.update({"colour": torch.tensor([True, True]), "shape": torch.tensor([True, False])})
    counts.update({"colour": torch.tensor([False, True]), "shape": torch.tensor([False, True])})
    assert counts.joint() == 0.5
    assert counts.by_attribute() == {"colour": 0.75, "shape": 0.5}


@pytest.mark.parametrize(
    "verdicts",
    [
        {},
        {"a": torch.tensor([True]), "b": torch.tensor([True, False])},
        {"a": torch.tensor([0.5, 0.9])},
        {"a": torch.tensor([[True]])},
    ],
)
def test_other_verdicts_are_refused(verdicts: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="alignment callable returned"):
        AlignmentCounts().update(verdicts)
