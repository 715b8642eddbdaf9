from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tools.toy.resuming import check_resumed_is_bit_equal
from tools.toy.loop import build, seeded
from tools.toy.train_teacher import (
    Teacher,
    make_latents,
    make_scheduler,
    make_unet,
    random_timesteps,
)
from tools.toy.train_vae import make_vae


def test_unet_has_the_stated_size():
    assert sum(p.numel() for p in make_unet().parameters()) == 2_220_820


def test_scheduler_ends_in_pure_noise_and_starts_there():
    scheduler = make_scheduler()
    assert scheduler.alphas_cumprod[-1].item() == 0.0
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [999]
    noise, v = torch.randn(2, 1, 4, 8, 8, generator=seeded(0)).unbind()
    assert torch.equal(scheduler.step(v, 999, noise).prev_sample, -v)  # x0 = alpha x - sigma v = -v


def test_timesteps_follow_the_law():
    t = random_timesteps(20_000, seeded(0))
    assert t.min().item() >= 0
    assert t.max().item() <= 999
    # Medians agree with 0.8 * logit-normal + 0.2 * uniform: P(u < 1/2) = 0.8 * Phi(0.3) + 0.1.
    phi = 0.5 * (1 + torch.erf(torch.tensor(0.3 / 2**0.5)).item())
    assert (t < 500).double().mean().item() == pytest.approx(0.8 * phi + 0.1, abs=0.01)


def test_an_ideal_prediction_has_no_loss():
    pool = make_latents(build(make_vae, 0), 16, seed=0)
    alphas_cumprod = make_scheduler().alphas_cumprod

    def ideal(x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Knows the pool: picks the x0 that explains x_t with the smallest noise."""
        alpha = alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
        candidates = (x_t[:, None] - alpha[:, None] * pool.x0[None]) / sigma[:, None]
        best = candidates.square().flatten(2).sum(-1).argmin(1)
        x0 = pool.x0[best]
        return alpha * (x_t - alpha * x0) / sigma - sigma * x0

    loss = pool.loss(ideal, 32, seeded(3))  # pyright: ignore[reportArgumentType] - a stand-in with its signature
    assert loss.item() < 0.05


def test_teacher_killed_and_resumed_is_bit_equal(tmp_path: Path):
    pool = make_latents(build(make_vae, 0), 16, seed=0)
    check_resumed_is_bit_equal(Teacher, pool.loss, 3, tmp_path)
