from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from nitrodistill.kernels.lpips_head import lpips_head


def features(channels: int = 6, side: tuple[int, ...] = (4, 3), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, channels, *side, generator=generator, dtype=dtype) for _ in range(2))
    return x, y, torch.rand(channels, generator=generator, dtype=dtype)


def test_agrees_with_lpips():
    lpips = pytest.importorskip("lpips")
    x, y, _ = features()
    head = lpips.NetLinLayer(6, use_dropout=False).double()
    difference = (lpips.normalize_tensor(x) - lpips.normalize_tensor(y)) ** 2
    theirs = lpips.spatial_average(head.model(difference)).flatten()
    ours = lpips_head(x, y, head.model[0].weight.flatten())
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


def test_known_values():
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1)
    y = torch.tensor([1.0, 0.0]).view(1, 2, 1)
    weight = torch.tensor([2.0, 10.0])
    expected = 2 * (0.6 - 1) ** 2 + 10 * 0.8**2
    assert lpips_head(x, y, weight).item() == pytest.approx(expected, rel=1e-6)
    assert lpips_head(7 * x, y, weight).item() == pytest.approx(expected, rel=1e-6)
    assert lpips_head(x, x, weight).item() == 0


def test_mask_weights_the_positions():
    x, y, weight = features()
    mask = torch.zeros(2, 1, 4, 3, dtype=torch.float64)
    mask[0, 0, 1, 2] = 0.7
    distance = lpips_head(x, y, weight, mask=mask)
    torch.testing.assert_close(
        distance[0], lpips_head(x[:1, :, 1:2, 2:], y[:1, :, 1:2, 2:], weight)[0]
    )
    assert distance[1] == 0


@pytest.mark.parametrize("side", [(3,), (2, 2), (1, 2, 2)])
def test_derivatives(side):
    x, y, weight = features(3, side)
    inputs = [x.requires_grad_(), y.requires_grad_(), weight.requires_grad_()]
    assert gradcheck(lpips_head, inputs)
    assert gradgradcheck(lpips_head, inputs)


def test_zero_features_have_zero_gradient():
    x, y, weight = features()
    x[0, :, 1, 1] = 0
    y[1, :, 2, 2] = 0
    x.requires_grad_()
    y.requires_grad_()
    found = torch.autograd.grad(lpips_head(x, y, weight).sum(), (x, y))
    assert all(gradient.isfinite().all() for gradient in found)
    assert not found[0][0, :, 1, 1].any()
    assert not found[1][1, :, 2, 2].any()


def test_half_precision_is_computed_in_single():
    x, y, weight = features()
    x, y = 1000 * x.half(), 1000 * y.half()  # squares overflow in float16
    loss = lpips_head(x, y, weight.float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss.double(), lpips_head(x.double(), y.double(), weight), rtol=1e-5, atol=0
    )
