"""The Laplacian-pyramid loss against kornia and a naive pyramid."""

from __future__ import annotations

import kornia
import pytest
import torch
import torch.nn.functional as F

from nitrodistill import losses as nl
from nitrodistill.losses import functional as nf


def naive_bands(x, levels):
    """Burt & Adelson with padded convolutions; sides of 3 or more at every level but the last."""
    line = torch.tensor([1.0, 4, 6, 4, 1], dtype=x.dtype) / 16
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 5, 5)

    def blur(image):
        return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])

    bands = []
    for _ in range(levels - 1):
        coarse = blur(x)[..., ::2, ::2]
        up = torch.zeros_like(x)
        up[..., ::2, ::2] = coarse
        bands.append(x - 4 * blur(up))
        x = coarse
    return [*bands, x]


@pytest.mark.parametrize("size", [(32, 32), (33, 20), (17, 31)])
def test_burt_adelson(size, make_pair):
    x, y = make_pair(2, 3, *size)
    weights = (1.0, 2.0, 4.0)
    pairs = zip(naive_bands(x, 3), naive_bands(y, 3), weights, strict=True)
    expected = sum(w * (a - b).abs().flatten(1).mean(1) for a, b, w in pairs)
    value = nf.laplacian_pyramid_loss(x, y, levels=3, weights=weights)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(32, 32), (33, 20), (64, 96), (20, 64)])
def test_kornia(size, make_pair):
    x, y = (tensor.requires_grad_() for tensor in make_pair(2, 3, *size))
    pyramids = [kornia.geometry.build_laplacian_pyramid(image, 3) for image in (x, y)]
    peer = sum((a - b).abs().mean() for a, b in zip(*pyramids, strict=True))
    value = nl.LaplacianPyramidLoss(3, convention="kornia")(x, y)
    torch.testing.assert_close(value, peer, rtol=0, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(value, (x, y)), torch.autograd.grad(peer, (x, y)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_mask_weights_every_band(make_pair):
    x, y = make_pair(2, 3, 17, 20)
    mask = torch.rand(2, 3, 17, 20, dtype=torch.float64)
    expected, level = torch.zeros(2, dtype=torch.float64), mask
    for a, b in zip(naive_bands(x, 3), naive_bands(y, 3), strict=True):
        if level.shape != a.shape:
            level = F.avg_pool2d(level, 2, ceil_mode=True, count_include_pad=False)
        terms, sums = ((level * (a - b).abs()).flatten(1), level.flatten(1))
        expected += terms.sum(1) / sums.sum(1)
    torch.testing.assert_close(nf.laplacian_pyramid_loss(x, y, levels=3, mask=mask), expected)
    padded = nl.LaplacianPyramidLoss(3, convention="kornia")
    assert padded(x, y, mask=torch.ones(2, 1, 17, 20)) == pytest.approx(padded(x, y).item())


def test_lowpass_is_the_last_band(make_pair):
    x, y = make_pair(2, 3, 16, 16)
    without = nl.LaplacianPyramidLoss(3, lowpass=False)(x, y)
    lowpass = (naive_bands(x, 3)[-1] - naive_bands(y, 3)[-1]).abs().mean()
    torch.testing.assert_close(nl.LaplacianPyramidLoss(3)(x, y), without + lowpass)
    # A constant is in the low-pass alone.
    assert nl.LaplacianPyramidLoss(3, lowpass=False)(x, x + 1).item() == pytest.approx(0, abs=1e-12)
    assert nl.LaplacianPyramidLoss(3)(x, x + 1).item() == pytest.approx(1)


@pytest.mark.parametrize("convention", ["burt_adelson", "kornia"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 5), (8, 8)])
def test_small_and_odd_sizes(convention, size):
    x = torch.rand(1, 2, *size, dtype=torch.float64, requires_grad=True)
    levels = min(size).bit_length()
    value = nl.LaplacianPyramidLoss(levels, convention=convention)(x, torch.zeros_like(x))
    (grad,) = torch.autograd.grad(value, x)
    assert value > 0
    assert grad.isfinite().all()


def test_second_derivative(make_pair):
    x, y = (tensor.requires_grad_() for tensor in make_pair(1, 1, 6, 5))
    assert torch.autograd.gradgradcheck(nl.LaplacianPyramidLoss(2), (x, y))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nl.LaplacianPyramidLoss(4)(*torch.rand(2, 1, 1, 7, 9)), "needs sides of 8"),
        (lambda: nl.LaplacianPyramidLoss(0), "levels is 0"),
        (lambda: nl.LaplacianPyramidLoss(1, lowpass=False), "at least one band"),
        (lambda: nl.LaplacianPyramidLoss(3, (1.0, 1.0)), "weights has 2 entries"),
        (lambda: nl.LaplacianPyramidLoss(2, (1.0, -1.0)), "of weights is -1.0"),
        (lambda: nl.LaplacianPyramidLoss(2, convention="opencv"), "convention is 'opencv'"),
    ],
)
def test_bad_options(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
