"""Paired distances: piq's SSIM, closed forms, and unlike resolutions."""

from __future__ import annotations

import piq
import pytest
import torch

from nitrodistill.evaluation.paired import latent_distance, paired_distances


def test_distances_are_rms() -> None:
    a = torch.zeros(2, 4, 3, 3)
    b = torch.tensor([0.5, 2.0])[:, None, None, None].expand_as(a)
    assert latent_distance(a, b).tolist() == [0.5, 2.0]
    found = paired_distances(torch.zeros(1, 3, 12, 12), torch.full((1, 3, 12, 12), 0.1))
    assert found["pixel_distance"].item() == pytest.approx(0.1)


def test_ssim_is_piqs() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 3, 24, 20, generator=generator) * 2 - 1 for _ in range(2))
    b = 0.7 * a + 0.3 * b
    expected = piq.ssim(a / 2 + 0.5, b / 2 + 0.5, reduction="none", downsample=False)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(paired_distances(a, b)["ssim"], expected, atol=1e-5, rtol=1e-5)


def test_small_pictures_have_no_ssim_and_lpips_is_the_callers() -> None:
    a = torch.zeros(2, 3, 8, 8)
    found = paired_distances(a, a, lambda x, y: (x - y).mean((1, 2, 3)) + 7)
    assert set(found) == {"pixel_distance", "lpips"}
    assert found["lpips"].tolist() == [7, 7]


def test_unlike_resolutions_are_refused() -> None:
    with pytest.raises(ValueError, match="equal resolutions"):
        paired_distances(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 32, 32))
