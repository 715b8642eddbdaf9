"""Compile what a training step will need before it starts.

Triton compiles a kernel at its first call for a dtype, a layout and a class of sizes: seconds, on every
rank, inside the first step. `warmup` makes those first calls; the compiled kernels stay in Triton's cache
on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from nitrodistill.kernels.dmd import dmd
from nitrodistill.kernels.laplacian import laplacian_loss
from nitrodistill.kernels.lpips_head import lpips_head
from nitrodistill.kernels.ssim import ssim_loss
from nitrodistill.kernels.x0_loss import ElementwiseLoss, x0_loss, x0_loss_mean
from nitrodistill.types import PredictionType

OPERATIONS = ("x0_loss", "lpips_head", "dmd", "ssim", "laplacian")


def gaussian_window(size: int = 11, sigma: float = 1.5) -> tuple[float, ...]:
    """A normalised one-dimensional Gaussian of an odd number of taps."""
    taps = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return tuple(tap / sum(taps) for tap in taps)


def warmup(
    shapes: Iterable[tuple[int, ...]],
    *,
    device: torch.device | str = "cuda",
    dtype: torch.dtype = torch.float32,
    operations: Iterable[str] = OPERATIONS,
    prediction_type: PredictionType = "epsilon",
    loss: ElementwiseLoss = "l2",
) -> None:
    """Run every operation once, forward and backward, at the shapes that training will use.

    Args:
        shapes: shapes of the data (B, C, H, W), or of the features for `lpips_head`.
        device: where training runs.
        dtype: of the data.
        operations: which of `OPERATIONS`; those whose kernel is not in use do nothing of interest.
        prediction_type: the one that training uses, for `x0_loss`.
        loss: likewise.
    """
    for shape in shapes:
        for operation in operations:
            step(operation, shape, device, dtype, prediction_type, loss)()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def step(
    operation: str,
    shape: tuple[int, ...],
    device: torch.device | str,
    dtype: torch.dtype,
    prediction_type: PredictionType = "epsilon",
    loss: ElementwiseLoss = "l2",
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
            _differentiate(
                function(x, y, z, ones, ones, prediction_type=prediction_type, loss=loss), x
            )
            for function in (x0_loss, x0_loss_mean)
        ]
    if operation == "lpips_head":
        weight = torch.ones(shape[1], device=device)
        return lambda: _differentiate(lpips_head(x, y, weight), x)
    if operation == "dmd":
        return lambda: _differentiate(dmd(x, y, z), x)
    if operation == "ssim":
        taps = gaussian_window()
        return lambda: _differentiate(ssim_loss(x, y, taps=taps, c1=1e-4, c2=9e-4), x)
    if operation == "laplacian":
        return lambda: _differentiate(laplacian_loss(x, y, weights=(1.0, 1.0, 1.0)), x)
    raise ValueError(f"operation {operation!r} is unknown; use one of {', '.join(OPERATIONS)}.")


def _differentiate(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss.mean(), x)[0]
