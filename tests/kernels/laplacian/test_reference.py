"""The Laplacian pyramid by banded matrices against the same by whole ones."""

from __future__ import annotations

import itertools

import pytest
import torch

from nitrodistill.kernels.laplacian.reference import (
    _DOWN,
    _UP,
    _mirror,
    laplacian_loss,
    pyramid_shapes,
)


def plain(x, y, weights, convention, maps):
    """The definition in products with whole matrices, through which autograd goes by itself."""

    def both(image, shape, matrix):
        height, width = (matrix(*s).to(image) for s in zip(image.shape[-2:], shape, strict=True))
        return height @ image @ width.T

    shapes, band, loss = pyramid_shapes(*x.shape[-2:], len(weights), convention), x - y, 0
    if shapes[0] != tuple(x.shape[-2:]):
        band = both(band, shapes[0], _mirror)
    for j, weight in enumerate(weights):
        coarser = 0
        if j + 1 < len(weights):
            coarser = both(band, shapes[j + 1], _DOWN[convention])
            band = band - both(coarser, shapes[j], _UP[convention])
        size = band.abs()
        term = size.mean((1, 2, 3)) if maps is None else (size * maps[j]).sum((1, 2, 3))
        loss, band = loss + weight * term, coarser
    return loss


@pytest.mark.parametrize(
    ("size", "convention", "weighted"),
    list(
        itertools.product(
            [(32, 32), (33, 20), (5, 7), (4, 1)],
            ("burt_adelson", "kornia"),
            (False, True),
        )
    ),
)
def test_value_and_gradients(size, convention, weighted):
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.rand(3, 2, *size, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    )
    weights = (0.5, 2.0, 1.0) if min(size) > 3 else (0.7,)
    maps = None
    if weighted:
        shapes = pyramid_shapes(*size, len(weights), convention)
        maps = tuple(
            torch.rand(3, 1 + j % 2, *shape, generator=generator, dtype=torch.float64)
            for j, shape in enumerate(shapes)
        )
    value = laplacian_loss(x, y, weights=weights, convention=convention, weight_maps=maps)
    whole = plain(x, y, weights, convention, maps)
    torch.testing.assert_close(value, whole, rtol=1e-12, atol=1e-13)
    factor = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    mine = torch.autograd.grad(value @ factor, (x, y))
    for grad, peer in zip(mine, torch.autograd.grad(whole @ factor, (x, y)), strict=True):
        torch.testing.assert_close(grad, peer, rtol=1e-9, atol=1e-13)
    with torch.no_grad():
        again = laplacian_loss(x, y, weights=weights, convention=convention, weight_maps=maps)
    assert torch.equal(again, value)


@pytest.mark.parametrize("convention", ["burt_adelson", "kornia"])
def test_a_smooth_image_is_in_the_lowpass(convention):
    """A constant passes down and up unchanged, at even, odd and tiny sizes."""
    for size in ((16, 16), (7, 5), (4, 4)):
        x = torch.full((1, 1, *size), 3.0, dtype=torch.float64)
        bands = laplacian_loss(x, 0 * x, weights=(1.0, 1.0, 0.0), convention=convention)
        lowpass = laplacian_loss(x, 0 * x, weights=(0.0, 0.0, 1.0), convention=convention)
        assert bands.item() == pytest.approx(0, abs=1e-12)
        assert lowpass.item() == pytest.approx(3)


def test_shapes():
    assert pyramid_shapes(33, 20, 3, "burt_adelson") == ((33, 20), (17, 10), (9, 5))
    assert pyramid_shapes(33, 20, 3, "kornia") == ((64, 32), (32, 16), (16, 8))
    assert pyramid_shapes(64, 96, 3, "kornia") == ((64, 96), (32, 48), (16, 24))
