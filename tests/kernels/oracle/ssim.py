"""ssim_loss in Triton against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nitrodistill.kernels.ssim import reference, ssim_loss


def gaussian(size: int = 11, sigma: float = 1.5) -> tuple[float, ...]:
    taps = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return tuple(tap / sum(taps) for tap in taps)


CONSTANTS = {"taps": gaussian(), "c1": 1e-4, "c2": 9e-4}


def images(device, shape=(1, 2, 21, 37), dtype=torch.float32) -> list[Tensor]:
    return [torch.rand(shape).to(device, dtype) for _ in range(2)]


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("mode", ["full", "structure"])
@pytest.mark.parametrize("padding", ["valid", "reflect"])
def test_modes(check, device, mode, padding, wanted):
    check(
        ssim_loss, reference.ssim_loss, images(device), wanted, mode=mode, padding=padding, **CONSTANTS
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bright_flat_images_in_half_precision(check, device, dtype):
    """Squares of nearly equal numbers: where `w * x^2 - mu^2` in half precision gives nonsense."""
    x, y = (0.9 + 0.02 * (image - 0.5) for image in images(device))
    check(ssim_loss, reference.ssim_loss, [x.to(dtype), y.to(dtype)], (True, True), **CONSTANTS)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("padding", ["valid", "reflect"])
def test_weight_maps_and_constants_per_channel(check, device, padding, channels):
    side = (21, 37) if padding == "reflect" else (11, 27)
    constants = {
        "taps": gaussian(),
        "c1": torch.tensor([1e-4, 2e-4], device=device),
        "c2": 9e-4,
        "offset": torch.tensor([0.3, 0.1], device=device),
        "weight_map": torch.rand(1, channels, *side, device=device) / 300,
    }
    check(
        ssim_loss, reference.ssim_loss, images(device), (True, True), padding=padding, **constants
    )


@pytest.mark.parametrize("size", [3, 7])
def test_small_windows_and_images(check, device, size):
    constants = {**CONSTANTS, "taps": gaussian(size)}
    for padding in ("valid", "reflect"):
        data = images(device, (2, 1, size, size + 1))
        check(ssim_loss, reference.ssim_loss, data, (True, True), padding=padding, **constants)


def test_equal_and_constant_images_give_zero(device):
    x = torch.full((1, 1, 16, 16), 0.7, device=device, requires_grad=True)
    loss = ssim_loss(x, x.detach().clone(), **CONSTANTS)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert not loss.any()
    assert gradient.isfinite().all()
    assert not gradient.any()


def test_second_derivative_goes_through_the_reference(device):
    x, y = images(device, (1, 1, 12, 12))
    x.requires_grad_()

    def penalty(function) -> Tensor:
        loss = function(x, y, **CONSTANTS)
        (first,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    torch.testing.assert_close(
        penalty(ssim_loss), penalty(reference.ssim_loss), rtol=1e-4, atol=1e-6
    )


def test_reproducible(device):
    data = images(device)
    assert torch.equal(ssim_loss(*data, **CONSTANTS), ssim_loss(*data, **CONSTANTS))
