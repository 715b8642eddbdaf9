"""SSIM against piq, kornia, pytorch-msssim, torchmetrics and a naive definition."""

from __future__ import annotations

import kornia
import numpy as np
import piq
import pytest
import pytorch_msssim
import torch
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.image import structural_similarity_index_measure

from nitrodistill import losses as nl
from nitrodistill.losses import functional as nf


def test_piq(make_pair):
    x, y = make_pair(2, 3, 40, 37)
    for size, sigma in ((11, 1.5), (7, 1.0)):
        options = {"kernel_size": size, "kernel_sigma": sigma, "downsample": False}
        peer = 1 - piq.ssim(x, y, reduction="none", **options)
        value = nf.ssim_loss(x, y, data_range=1.0, window_size=size, sigma=sigma)
        torch.testing.assert_close(value, peer, rtol=0, atol=1e-12)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(nl.SSIMLoss(1.0)(x, y), x)
    peer_loss = piq.SSIMLoss(downsample=False)
    torch.testing.assert_close(grad, torch.autograd.grad(peer_loss(x, y), x)[0], atol=1e-12, rtol=0)


def test_pytorch_msssim_whose_window_is_float32(make_pair):
    x, y = make_pair(2, 4, 30, 41)
    peer = 1 - pytorch_msssim.ssim(255 * x, 255 * y, data_range=255, size_average=False)
    value = nf.ssim_loss(255 * x, 255 * y, data_range=255.0)
    torch.testing.assert_close(value, peer, rtol=0, atol=1e-6)


def test_kornia_with_reflected_borders(make_pair):
    x, y = make_pair(2, 3, 24, 19)
    peer = 1 - kornia.metrics.ssim(x, y, 11).flatten(1).mean(1)
    value = nf.ssim_loss(x, y, data_range=1.0, padding="reflect")
    torch.testing.assert_close(value, peer, rtol=0, atol=1e-7)


def test_torchmetrics(make_pair):
    x, y = make_pair(2, 3, 24, 31)
    peer = 1 - structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    value = nf.ssim_loss(x, y, data_range=1.0, padding="reflect")
    torch.testing.assert_close(value, peer, rtol=0, atol=1e-7)


def naive_maps(x, y, data_range):
    """l and cs under scipy's Gaussian with mirrored borders, in float64."""

    def mean(image):
        return gaussian_filter(image, 1.5, mode="mirror", radius=5)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mx, my = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return (2 * mx * my + c1) / (mx**2 + my**2 + c1), (2 * xy + c2) / (xx + yy + c2)


@pytest.mark.parametrize("mode", ["plain", "shift", "structure"])
def test_latents_against_scipy(mode):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 2, 16, 12, generator=generator, dtype=torch.float64)
    y = x + 0.3 * torch.randn(1, 2, 16, 12, generator=generator, dtype=torch.float64)
    shift = {"plain": 0.0, "shift": 4.0, "structure": 0.0}[mode]
    expected = []
    for c in range(2):
        light, structure = naive_maps(x[0, c].numpy() + shift, y[0, c].numpy() + shift, 8.0)
        expected.append(1 - np.mean(structure if mode == "structure" else light * structure))
    value = nl.LatentSSIMLoss(8.0, mode=mode)(x, y)
    assert value.item() == pytest.approx(np.mean(expected), abs=1e-12)


def test_mask_weights_the_map_by_its_window_mean(make_pair):
    x, y = make_pair(1, 1, 16, 14)
    mask = torch.rand(1, 1, 16, 14, dtype=torch.float64)
    light, structure = naive_maps(x[0, 0].numpy(), y[0, 0].numpy(), 1.0)
    weight = gaussian_filter(mask[0, 0].numpy(), 1.5, mode="mirror", radius=5)
    expected = (weight * (1 - light * structure)).sum() / weight.sum()
    value = nl.SSIMLoss(1.0, padding="reflect")(x, y, mask=mask)
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_opposite_latents_are_not_similar():
    generator = torch.Generator().manual_seed(0)
    x = 1 + torch.randn(2, 4, 32, 32, generator=generator)
    assert nl.LatentSSIMLoss(8.0, mode="plain")(x, -x) < 0.3  # the failure that peers share
    assert nl.LatentSSIMLoss(8.0)(x, -x) > 1.5
    assert nl.LatentSSIMLoss(8.0, mode="shift")(x, -x) > 0.9


def test_structure_ignores_a_constant_offset():
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert nl.LatentSSIMLoss(8.0)(x, x + 3).item() == pytest.approx(0, abs=1e-12)
    assert nl.LatentSSIMLoss(8.0, mode="shift")(x, x + 3) > 0.05


def test_shift_is_a_shift(make_pair):
    x, y = make_pair(2, 3, 16, 16)
    shifted = nf.ssim_loss(x - 0.5, y - 0.5, data_range=1.0, mode="shift")
    torch.testing.assert_close(shifted, nf.ssim_loss(x, y, data_range=1.0))
    given = nf.ssim_loss(x - 2, y - 2, data_range=1.0, mode="shift", offset=2.0)
    torch.testing.assert_close(given, nf.ssim_loss(x, y, data_range=1.0))


def test_bright_flat_image_in_half_precision():
    """Where peers cancel: `benchmarks/losses.py --accuracy`."""
    generator = torch.Generator().manual_seed(0)
    x, y = (0.9 + 0.01 * torch.randn(1, 3, 64, 64, generator=generator) for _ in range(2))
    for dtype in (torch.bfloat16, torch.float16):
        a, b = x.to(dtype), y.to(dtype)
        true = 1 - piq.ssim(a.double(), b.double(), downsample=False)
        assert nl.SSIMLoss(1.0)(a, b).item() == pytest.approx(true.item(), abs=1e-6)


def test_offset_of_a_hundred_in_float32():
    """Where float32 peers are off by 2 to 30 percent."""
    generator = torch.Generator().manual_seed(0)
    x, y = (100 + 0.1 * torch.randn(1, 1, 32, 32, generator=generator) for _ in range(2))
    true = nf.ssim_loss(x.double(), y.double(), data_range=1.0)
    torch.testing.assert_close(nf.ssim_loss(x, y, data_range=1.0).double(), true, atol=1e-6, rtol=0)


def test_one_range_per_channel_is_a_rescaling(make_pair):
    x, y = make_pair(2, 3, 16, 16)
    scale = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).view(1, 3, 1, 1)
    ranges = (1.0, 2.0, 4.0)
    for mode in ("plain", "shift", "structure"):
        value = nf.ssim_loss(scale * x, scale * y, data_range=ranges, mode=mode)
        torch.testing.assert_close(value, nf.ssim_loss(x, y, data_range=1.0, mode=mode))
    by_std = nl.LatentSSIMLoss(std=(0.125, 0.25, 0.5))
    torch.testing.assert_close(by_std(x, y), nl.LatentSSIMLoss((1.0, 2.0, 4.0))(x, y))


def test_symmetric_zero_at_equality_and_below_two(make_pair):
    x, y = make_pair(2, 3, 16, 16)
    loss = nl.SSIMLoss(1.0, reduction="none")
    torch.testing.assert_close(loss(x, y), loss(y, x))
    assert loss(x, x).abs().max() < 1e-15
    assert (loss(x, 1 - x) <= 2).all()


def test_second_derivative(make_pair):
    x, y = (t[:, :1, :7, :6].clone().requires_grad_() for t in make_pair(1, 1, 7, 6))
    for mode in ("plain", "structure"):
        loss = nl.SSIMLoss(1.0, window_size=3, mode=mode, padding="reflect")
        assert torch.autograd.gradgradcheck(loss, (x, y))


@pytest.mark.parametrize(
    ("size", "padding", "fits"),
    [
        ((11, 11), "valid", True),
        ((10, 40), "valid", False),
        ((6, 6), "reflect", True),
        ((5, 64), "reflect", False),
        ((1, 1), "reflect", False),
    ],
)
def test_the_size_rule(size, padding, fits):
    x = torch.rand(1, 1, *size)
    loss = nl.SSIMLoss(1.0, padding=padding)
    if fits:
        assert loss(x, x.flip(-1)).isfinite()
    else:
        with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}; a 11-tap window"):
            loss(x, x)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nl.SSIMLoss(0.0), "data_range is 0.0"),
        (lambda: nl.SSIMLoss((1.0, -1.0)), "data_range is -1.0"),
        (lambda: nl.SSIMLoss(1.0, window_size=10), "window_size is 10; it must be odd"),
        (lambda: nl.SSIMLoss(1.0, sigma=0.0), "sigma is 0.0"),
        (lambda: nl.SSIMLoss(1.0, padding="same"), "padding is 'same'"),
        (lambda: nl.SSIMLoss(1.0, mode="signed"), "mode is 'signed'"),
        (lambda: nl.LatentSSIMLoss(), "give exactly one"),
        (lambda: nl.LatentSSIMLoss(8.0, std=1.0), "give exactly one"),
        (lambda: nl.LatentSSIMLoss(8.0, offset=4.0), "only 'shift' uses it"),
    ],
)
def test_bad_options(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_wrong_channel_count():
    x = torch.rand(1, 4, 16, 16)
    with pytest.raises(ValueError, match="data_range has 3 values but the data 4 channels"):
        nl.SSIMLoss((1.0, 1.0, 1.0))(x, x)
    with pytest.raises(ValueError, match=r"images \(B, C, H, W\)"):
        nl.SSIMLoss(1.0)(x[0], x[0])
