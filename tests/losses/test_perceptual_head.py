"""The CPU head against the definition in the kernel's reference."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.kernels.lpips_head.reference import lpips_head
from nitrodistill.losses import perceptual_head
from nitrodistill.losses.perceptual_head import perceptual_distance


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("masked", [False, True])
def test_definition(layout, masked, monkeypatch):
    monkeypatch.setattr(perceptual_head, "_BLOCK", 64)  # several blocks, the last one short
    generator = torch.Generator().manual_seed(0)
    fx, fy = (
        torch.randn(3, 7, 5, 6, generator=generator, dtype=torch.float64)
        .contiguous(memory_format=layout)
        .requires_grad_()
        for _ in range(2)
    )
    weight = torch.rand(7, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 1, 5, 6, generator=generator, dtype=torch.float64) if masked else None
    value = perceptual_distance(fx, fy, weight, mask)
    expected = lpips_head(fx, fy, weight, eps=1e-20, mask=mask)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    factor = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    mine = torch.autograd.grad(value @ factor, (fx, fy))
    for grad, other in zip(mine, torch.autograd.grad(expected @ factor, (fx, fy)), strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-10, atol=1e-15)


def test_nearly_equal_features_do_not_cancel():
    """The regime that distillation converges into."""
    generator = torch.Generator().manual_seed(0)
    fx = torch.randn(1, 64, 8, 8, generator=generator)
    fy = fx * (1 + 1e-3 * torch.randn(1, 64, 8, 8, generator=generator))
    weight = torch.rand(64, generator=generator)
    value = perceptual_distance(fx, fy, weight, None)
    true = lpips_head(fx.double(), fy.double(), weight.double(), eps=1e-20)
    torch.testing.assert_close(value.double(), true, rtol=1e-5, atol=0)


def test_large_half_precision_features_do_not_overflow():
    fx = torch.full((1, 4, 2, 2), 3e4, dtype=torch.float16, requires_grad=True)
    fy = torch.full((1, 4, 2, 2), -3e4, dtype=torch.float16)
    value = perceptual_distance(fx, fy, torch.ones(4), None)
    assert value.item() == pytest.approx(4.0)
    assert torch.autograd.grad(value.sum(), fx)[0].dtype == torch.float16
