"""A forward and backward pass of each fused operation: what is tuned, and what tests of a GPU run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nitrodistill.kernels.dmd import dmd
from nitrodistill.kernels.laplacian import laplacian_loss
from nitrodistill.kernels.lpips_head import lpips_head
from nitrodistill.kernels.ssim import ssim_loss
from nitrodistill.kernels.x0_loss import x0_loss, x0_loss_mean
from nitrodistill.losses.windows import gaussian_taps

OPERATIONS = ("x0_loss", "lpips_head", "dmd", "ssim", "laplacian")


def step(
    operation: str,
    shape: tuple[int, ...],
    device: torch.device | str,
    dtype: torch.dtype,
) -> Callable[[], object]:
    """A function that runs an operation forward and backward on data of this shape.

    Raises:
        ValueError: for an operation that is not in `OPERATIONS`.
    """
    generator = torch.Generator(device).manual_seed(0)
    x, y, z = (
        torch.rand(shape, device=device, generator=generator).to(dtype).requires_grad_(first)
        for first in (True, False, False)
    )
    ones = torch.ones(shape[0], device=device)
    if operation == "x0_loss":
        return lambda: [
            _differentiate(function(x, y, z, ones, ones, prediction_type="epsilon", loss="l2"), x)
            for function in (x0_loss, x0_loss_mean)
        ]
    if operation == "lpips_head":
        weight = torch.ones(shape[1], device=device)
        return lambda: _differentiate(lpips_head(x, y, weight), x)
    if operation == "dmd":
        return lambda: _differentiate(dmd(x, y, z), x)
    if operation == "ssim":
        taps = gaussian_taps(11, 1.5)
        return lambda: _differentiate(ssim_loss(x, y, taps=taps, c1=1e-4, c2=9e-4), x)
    if operation == "laplacian":
        return lambda: _differentiate(laplacian_loss(x, y, weights=(1.0, 1.0, 1.0)), x)
    raise ValueError(f"operation {operation!r} is unknown; use one of {', '.join(OPERATIONS)}.")


def _differentiate(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss.mean(), x)[0]
