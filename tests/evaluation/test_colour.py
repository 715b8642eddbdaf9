"""Colour features: casts and contrast move them, places do not."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.evaluation.colour import colour_features


def test_casts_and_contrast_are_seen_and_places_are_not() -> None:
    images = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    found = colour_features(images)
    assert found.shape == (2, 6)
    cast = torch.tensor([0.3, 0.0, -0.1])
    moved = colour_features(2 * images + cast[:, None, None])
    torch.testing.assert_close(moved[:, :3], 2 * found[:, :3] + cast)
    torch.testing.assert_close(moved[:, 3:], 2 * found[:, 3:])
    torch.testing.assert_close(colour_features(images.flip(2).mT), found)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        colour_features(torch.zeros(3, 8, 8))
