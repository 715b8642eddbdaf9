"""Augmentations against flips, rolls and slices by hand."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from nitrodistill.discriminator import Augmentation

LATENTS = torch.randn(3, 2, 8, 12, generator=torch.Generator().manual_seed(0))


def draws(flip: float = 0.9, x: float = 0.5, y: float = 0.5, crop: float = 1.0) -> Tensor:
    return torch.tensor([[flip, x, y, crop, 0.5, 0.5]]).expand(3, -1)


def test_nothing_asked_for_changes_nothing():
    assert torch.equal(Augmentation()(LATENTS, draws(flip=0.0)), LATENTS)


def test_a_flip_is_a_flip():
    moved = Augmentation(flip=0.5)(LATENTS, draws(flip=0.49))
    assert torch.equal(moved, LATENTS.flip(3))
    assert torch.equal(Augmentation(flip=0.5)(LATENTS, draws(flip=0.5)), LATENTS)


@pytest.mark.parametrize(("x", "y"), [(0.999, 0.5), (0.0, 0.999), (0.4, 0.2)])
def test_a_translation_is_by_whole_pixels_and_mirrors_at_the_edge(x, y):
    """A quarter of 8 and 12 is at most 2 rows and 3 columns either way."""
    moved = Augmentation(translation=0.25)(LATENTS, draws(x=x, y=y))
    right, down = int(x * 7) - 3, int(y * 5) - 2
    columns, rows = torch.arange(12) - right, torch.arange(8) - down
    inside = [
        torch.where(i < 0, -i, torch.where(i >= n, 2 * n - 2 - i, i))
        for i, n in ((rows, 8), (columns, 12))
    ]
    assert torch.equal(moved, LATENTS[:, :, inside[0]][:, :, :, inside[1]])


def test_a_crop_is_stretched_bilinearly():
    """Half of the sides' length between the outermost centres, from the middle."""
    moved = Augmentation(crop=0.5)(LATENTS, draws(crop=0.0))
    y, x = torch.linspace(1.75, 5.25, 8), torch.linspace(2.75, 8.25, 12)
    rows = torch.lerp(LATENTS[:, :, y.long()], LATENTS[:, :, y.long() + 1], (y % 1)[:, None])
    both = torch.lerp(rows[..., x.long()], rows[..., x.long() + 1], x % 1)
    torch.testing.assert_close(moved, both, rtol=1e-4, atol=1e-5)


def test_every_sample_has_its_own():
    r = torch.tensor([[0.1], [0.9], [0.1]]).expand(-1, 6)
    moved = Augmentation(flip=0.5)(LATENTS, r)
    flipped = [torch.equal(moved[i], LATENTS[i].flip(2)) for i in range(3)]
    assert flipped == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_flow(dtype):
    latents = LATENTS.to(dtype).requires_grad_()
    moved = Augmentation(0.5, 0.25)(latents, torch.rand(3, 6, generator=torch.Generator()))
    assert moved.dtype == dtype
    (gradient,) = torch.autograd.grad(moved.float().sum(), latents)
    assert (
        float(gradient.float().sum()) == LATENTS.numel()
    )  # each result is one pixel of the latent


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"flip": 1.5}, r"flip is 1.5; it must be in \[0, 1\]"),
        ({"translation": 0.6}, "translation is 0.6"),
        ({"crop": 0.0}, "crop is 0.0"),
    ],
)
def test_bad_values(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Augmentation(**settings)


def test_without_kornia(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.geometry.transform", None)
    monkeypatch.setitem(sys.modules, "kornia.geometry", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install kornia"):
        Augmentation(0.5)(LATENTS, draws())
