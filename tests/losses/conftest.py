"""Images and losses that the tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nitrodistill import losses as nl

torch.set_num_threads(1)

LOSSES: dict[str, Callable[..., nl.Loss]] = {
    "l1": nl.L1Loss,
    "l2": nl.L2Loss,
    "smooth_l1": lambda **k: nl.SmoothL1Loss(0.3, **k),
    "huber": lambda **k: nl.HuberLoss(0.3, **k),
    "pseudo_huber": lambda **k: nl.PseudoHuberLoss(0.1, **k),
    "pseudo_huber_sample": lambda **k: nl.PseudoHuberLoss(dim="sample", **k),
    "charbonnier": lambda **k: nl.CharbonnierLoss(0.1, **k),
    "ssim": lambda **k: nl.SSIMLoss(1.0, window_size=7, **k),
    "ssim_reflect": lambda **k: nl.SSIMLoss(1.0, padding="reflect", mode="shift", **k),
    "latent_ssim": lambda **k: nl.LatentSSIMLoss(std=(0.1, 0.2, 0.3), **k),
    "ms_ssim": lambda **k: nl.MSSSIMLoss(1.0, weights=(0.4, 0.6), window_size=5, **k),
    "laplacian": lambda **k: nl.LaplacianPyramidLoss(3, weights=(4.0, 2.0, 1.0), **k),
    "laplacian_kornia": lambda **k: nl.LaplacianPyramidLoss(
        3, convention="kornia", lowpass=False, **k
    ),
    "weighted_sum": lambda **k: nl.WeightedSum(
        {"l1": (1.0, nl.L1Loss()), "structure": (0.5, nl.LatentSSIMLoss(8.0, window_size=5))}, **k
    ),
    "multi_scale": lambda **k: nl.MultiScaleLoss(nl.L1Loss(), (1.0, 0.5), **k),
}


@pytest.fixture(params=LOSSES)
def make_loss(request: pytest.FixtureRequest) -> Callable[..., nl.Loss]:
    """Every loss on two tensors: a constructor that takes `reduction`."""
    return LOSSES[request.param]


@pytest.fixture
def make_pair() -> Callable[..., tuple[Tensor, Tensor]]:
    """Two similar images in [0, 1], seeded."""

    def make(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(shape, generator=generator, dtype=torch.float64)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return x.to(dtype), (x + 0.1 * noise).clamp(0, 1).to(dtype)

    return make
