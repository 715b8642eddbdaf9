"""The augmentations against float64 arithmetic of numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.stats import norm

from nitrodistill.losses.latent_augmentation import NUM_DRAWS, augment_latents


def draw(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, NUM_DRAWS, generator=generator, dtype=torch.float64)


def reference(z, r, groups):
    """One sample `(C, H, W)`."""
    _, height, width = z.shape
    sides = np.array([width, height])
    matrix, shift = np.eye(2), np.zeros(2)

    def turn(angle):
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    if "b" in groups:
        matrix = (
            matrix
            @ np.diag([-1 if r[0] < 0.5 else 1, 1])
            @ turn(math.floor(4 * r[1]) * math.pi / 2)
        )
        shift = shift + np.round((2 * r[2:4] - 1) * sides / 8)
    if "g" in groups:
        scale, unequal = 2 ** (0.2 * norm.ppf(r[4])), 2 ** (0.2 * norm.ppf(r[5]))
        matrix = matrix @ turn(2 * math.pi * r[8]) @ np.diag([scale * unequal, scale / unequal])
        shift = shift + norm.ppf(r[6:8]) * sides / 8
    rows, columns = np.mgrid[:height, :width]
    centre = (sides - 1) / 2
    at = np.stack([columns, rows], -1) - centre
    x, y = np.moveaxis(at @ matrix.T + shift + centre, -1, 0)
    if "b" in groups or "g" in groups:
        z = np.stack([map_coordinates(c, [y, x], order=1, mode="reflect") for c in z])
    if "c" in groups:
        z = z + r[9] - 0.5
        z = z.mean() + (r[10] + 0.5) * (z - z.mean())
        z = z.mean(0) + 2 * r[11] * (z - z.mean(0))
    if "o" in groups:
        cut = (abs((columns + 0.5) / width - r[12]) < 0.25) & (
            abs((rows + 0.5) / height - r[13]) < 0.25
        )
        z = np.where(cut, 0, z)
    return z


@pytest.mark.parametrize("groups", ["b", "g", "c", "o", "bg", "bgco", ""])
@pytest.mark.parametrize("shape", [(5, 4, 8, 8), (3, 2, 10, 16)])
def test_equal_to_float64_arithmetic(groups, shape):
    z, r = (
        torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
        draw(shape[0]),
    )
    expected = np.stack(
        [reference(a, b, groups) for a, b in zip(z.numpy(), r.numpy(), strict=True)]
    )
    torch.testing.assert_close(
        augment_latents(z, r, groups), torch.from_numpy(expected), rtol=0, atol=1e-10
    )
    single = augment_latents(z.float(), r.float(), groups)
    assert (single.double() - torch.from_numpy(expected)).abs().max() < 1e-4


def test_shift_and_turn_only_move_values():
    z = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = augment_latents(z, draw(64).float(), "b")
    for before, after in zip(z, moved, strict=True):
        assert set(after.flatten().tolist()) <= set(before.flatten().tolist())


def test_half_precision_is_computed_in_float32():
    z, r = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16(), draw(4)
    expected = augment_latents(z.double(), r, "bgco")
    with torch.autocast("cpu", torch.bfloat16):
        found = augment_latents(z, r, "bgco")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-4)


def test_a_videos_frames_are_treated_alike():
    z, r = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), draw(2)
    found = augment_latents(z, r, "bgco")
    for k in range(4):
        assert torch.equal(found[:, :, k], augment_latents(z[:, :, k], r, "bgco"))


def test_gradients_flow():
    z = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(
        lambda x: augment_latents(x, draw(1), "bgco"), z.requires_grad_()
    )


@pytest.mark.parametrize("groups", ["x", "bb", 3, None])
def test_unknown_groups(groups):
    with pytest.raises(ValueError, match=r"groups is .*; give letters of"):
        augment_latents(torch.zeros(1, 4, 8, 8), draw(1), groups)


def test_wrong_shapes():
    with pytest.raises(ValueError, match="they must be"):
        augment_latents(torch.zeros(2, 4, 8, 8), draw(1))
