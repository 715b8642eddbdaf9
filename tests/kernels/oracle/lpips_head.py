"""lpips_head in Triton against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nitrodistill.kernels.lpips_head import lpips_head, reference


def features(device, channels, side, dtype=torch.float32, layout=torch.contiguous_format, far=0.3):
    x = torch.randn(2, channels, *side).relu()
    y = (x + far * torch.randn(x.shape)).relu()
    return [t.to(device, dtype).to(memory_format=layout) for t in (x, y)]


def on_maps(function, weight):
    return lambda fx, fy, **keywords: function(fx, fy, weight, **keywords)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("channels", "side"), [(64, (9, 13)), (70, (8, 5)), (200, (5, 7)), (512, (4, 4)), (5, (3, 3))]
)
def test_values_and_gradients(check, device, channels, side, dtype, layout):
    weight = torch.rand(channels, device=device)
    check(
        on_maps(lpips_head, weight),
        on_maps(reference.lpips_head, weight),
        features(device, channels, side, dtype, layout),
        (True, True),
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 9, 13), (1, 1, 9, 13), (9, 1)])
def test_masks(check, device, shape, layout):
    weight = torch.rand(64, device=device)
    mask = torch.rand(shape, device=device) > 0.3
    if shape[0] == 2:
        mask[1] = False
    check(
        on_maps(lpips_head, weight),
        on_maps(reference.lpips_head, weight),
        features(device, 64, (9, 13), layout=layout),
        (True, False),
        mask=mask,
    )


def test_zero_features_have_zero_gradient(device):
    fx, fy = features(device, 64, (4, 5))
    fx[0, :, 1, 1] = 0
    fx[1, :, 2, 2] = fy[1, :, 2, 2] = 0
    fx.requires_grad_()
    lpips_head(fx, fy, torch.rand(64, device=device)).sum().backward()
    assert fx.grad is not None
    assert fx.grad.isfinite().all()
    assert not fx.grad[0, :, 1, 1].any()
    assert not fx.grad[1, :, 2, 2].any()


@pytest.mark.parametrize("far", [1e-2, 1e-3])
def test_nearly_equal_features_keep_their_digits(check, device, far):
    """Where training converges to: expanding the square would leave 1% error at 1e-3."""
    weight = torch.rand(128, device=device)
    x = torch.rand(2, 128, 6, 6, device=device) + 0.1
    y = x * (1 + far * torch.randn(x.shape, device=device))
    check(on_maps(lpips_head, weight), on_maps(reference.lpips_head, weight), [x, y], (True, True))


def test_equal_features_give_zero(device):
    fx, _ = features(device, 64, (4, 4))
    fx.requires_grad_()
    loss = lpips_head(fx, fx.detach().clone(), torch.rand(64, device=device))
    (gradient,) = torch.autograd.grad(loss.sum(), fx)
    assert not loss.any()
    assert not gradient.any()


def test_one_spatial_axis_and_mixed_layouts(check, device):
    weight = torch.rand(32, device=device)
    x, y = torch.randn(2, 32, 50, device=device), torch.randn(2, 32, 50, device=device)
    check(on_maps(lpips_head, weight), on_maps(reference.lpips_head, weight), [x, y], (True, True))
    x, y = features(device, 32, (5, 6))
    y = y.to(memory_format=torch.channels_last)
    check(on_maps(lpips_head, weight), on_maps(reference.lpips_head, weight), [x, y], (True, True))


def test_second_derivative_goes_through_the_reference(device):
    fx, fy = features(device, 8, (3, 3))
    fx.requires_grad_()
    weight = torch.rand(8, device=device)

    def penalty(function) -> Tensor:
        (first,) = torch.autograd.grad(function(fx, fy, weight).sum(), fx, create_graph=True)
        return torch.autograd.grad(first.square().sum(), fx)[0]

    torch.testing.assert_close(penalty(lpips_head), penalty(reference.lpips_head))


def test_reproducible(device):
    fx, fy = features(device, 64, (9, 13))
    weight = torch.rand(64, device=device)
    first = lpips_head(fx, fy, weight)
    assert torch.equal(first, lpips_head(fx, fy, weight))
