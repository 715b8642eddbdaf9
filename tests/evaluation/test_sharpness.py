"""Sharpness and texture: closed forms on edges and waves, and what they are blind to."""

from __future__ import annotations

import math

import pytest
import torch

from nitrodistill.evaluation.sharpness import (
    TextureFeatures,
    edge_strength,
    gradient_energy,
    high_frequency_energy,
)


def test_a_step_has_its_height_as_edge_strength() -> None:
    images = torch.zeros(2, 3, 16, 16)
    images[0, :, :, 8:] = 0.5
    images[1, 0, :, 8:] = 0.5  # in one channel of three
    expected = torch.tensor([0.5, 0.5 / math.sqrt(3)])
    torch.testing.assert_close(edge_strength(images), expected)


def test_the_gradient_energy_of_a_ramp_is_its_slope_squared() -> None:
    down, right = torch.arange(5.0)[:, None], torch.arange(7.0)
    plane = (0.3 * down + 0.4 * right).expand(2, 3, 5, 7)
    torch.testing.assert_close(gradient_energy(plane), torch.full((2,), 0.25))


def test_edge_strength_is_the_98th_percentile() -> None:
    ramp = torch.zeros(1, 1, 11, 101)
    ramp[..., 1:] = torch.arange(1, 101.0).cumsum(0)  # gradients 1..100, ten rows of each
    assert edge_strength(ramp).item() == 98.0


@pytest.mark.parametrize(("cycles", "share"), [(3, 0.0), (8, 0.0), (9, 0.5), (15, 0.5)])
def test_a_wave_is_high_above_a_quarter_cycle_per_pixel(cycles: int, share: float) -> None:
    wave = torch.cos(2 * math.pi * cycles * torch.arange(32) / 32)
    images = wave.expand(1, 3, 32, 32)
    assert high_frequency_energy(images).item() == pytest.approx(share, abs=1e-6)
    assert high_frequency_energy(images.mT).item() == pytest.approx(share, abs=1e-6)


def test_texture_features_see_texture_and_not_colour() -> None:
    texture = TextureFeatures(num_filters=8)
    images = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    found = texture(images)
    assert found.shape == (2, 16)
    cast = torch.tensor([0.3, -0.2, 0.1])[:, None, None]
    torch.testing.assert_close(texture(images + cast), found, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(texture(0.5 * images), 0.5 * found)
    assert torch.equal(TextureFeatures(num_filters=8)(images), found)
    assert not torch.equal(TextureFeatures(num_filters=8, seed=1)(images), found)


def test_texture_features_of_small_pictures_are_those_of_the_first_resolution() -> None:
    texture = TextureFeatures(num_filters=8)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert texture(images).shape == (2, 8)
    tiled = images.repeat(1, 1, 2, 2)  # 16 pixels: both resolutions
    assert texture(tiled).shape == (2, 16)
    inner = texture(images)[0].square() * 16  # sums over the 4x4 places of the filters
    responses = torch.nn.functional.conv2d(images[:1], texture._filters).square().sum((0, 2, 3))
    torch.testing.assert_close(inner, responses)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        edge_strength(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        high_frequency_energy(torch.zeros(1, 3, 1, 8))
    with pytest.raises(ValueError, match="at least 5 pixels"):
        TextureFeatures()(torch.zeros(1, 3, 8, 4))
