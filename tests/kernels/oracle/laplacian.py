"""laplacian_loss in Triton against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nitrodistill.kernels.laplacian import laplacian_loss, pyramid_shapes, reference


def images(device, side, dtype=torch.float32, channels=1) -> list[Tensor]:
    return [torch.randn(1, channels, *side).to(device, dtype) for _ in range(2)]


@pytest.mark.parametrize(("side", "levels"), [((13, 18), 3), ((3, 4), 2), ((5, 3), 2), ((8, 8), 1)])
def test_sizes(check, device, side, levels):
    """Odd and even sides, down to the smallest whose mirrored borders one reflection covers."""
    weights = (1.0, 0.5, 2.0)[:levels]
    check(
        laplacian_loss,
        reference.laplacian_loss,
        images(device, side),
        (True, True),
        weights=weights,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_beyond_one_tile(check, device, dtype):
    data = images(device, (33, 36), dtype)
    check(laplacian_loss, reference.laplacian_loss, data, (True, False), weights=(1.0, 1.0))


@pytest.mark.parametrize("channels", [1, 2])
def test_weight_maps(check, device, channels):
    shapes = pyramid_shapes(9, 12, 2, "burt_adelson")
    maps = tuple(torch.rand(1, channels, *shape, device=device) for shape in shapes)
    data = images(device, (9, 12), channels=2)
    check(
        laplacian_loss, reference.laplacian_loss, data, (True, True), weights=(1.0, 2.0), weight_maps=maps
    )  # fmt: skip


def test_equal_images_give_zero(device):
    x = torch.randn(1, 1, 8, 8, device=device, requires_grad=True)
    loss = laplacian_loss(x, x.detach().clone(), weights=(1.0, 1.0))
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert not loss.any()
    assert not gradient.any()


def test_reproducible(device):
    data = images(device, (8, 9))
    first = laplacian_loss(*data, weights=(1.0, 1.0))
    assert torch.equal(first, laplacian_loss(*data, weights=(1.0, 1.0)))
