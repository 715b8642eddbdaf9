"""Alignment: shares of right pictures, and callables that return something else."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.evaluation.alignment import check_verdicts


def test_a_picture_is_aligned_when_every_attribute_is() -> None:
    colour, shape = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    found = check_verdicts({"colour": colour, "shape": shape})
    assert list(found) == ["alignment", "alignment@colour", "alignment@shape"]
    assert found["alignment"].tolist() == [True, False, False]
    assert torch.equal(found["alignment@colour"], colour)


@pytest.mark.parametrize(
    "verdicts",
    [
        {},
        {"colour": torch.ones(3)},
        {"colour": torch.ones(3, 1, dtype=torch.bool)},
        {"colour": torch.ones(3, dtype=torch.bool), "shape": torch.ones(2, dtype=torch.bool)},
    ],
)
def test_other_returns_are_refused(verdicts: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="an alignment callable returned"):
        check_verdicts(verdicts)
