from __future__ import annotations

import math

import pytest
import torch

from tools.toy.loop import build, seeded
from tools.toy.train_vae import (
    LATENT_NOISE,
    encode,
    make_vae,
    normalise_latents,
    psnr,
    random_scenes,
)


def test_vae_has_the_stated_size():
    assert sum(p.numel() for p in make_vae().parameters()) == 224_835


def test_normalised_latents_are_standard_and_pictures_unchanged():
    vae = build(make_vae, 0).eval().requires_grad_(False)
    images = random_scenes(64, seeded(0, "test"), "cpu")[1]
    before = vae.decode(vae.encode(images).latent_dist.mean).sample
    normalise_latents(vae, seed=0, count=256)
    posterior = vae.encode(images).latent_dist
    torch.testing.assert_close(vae.decode(posterior.mean).sample, before, atol=1e-4, rtol=1e-4)

    latents = encode(vae, random_scenes(256, seeded(0, "statistics"), "cpu")[1])
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=2e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=2e-3, rtol=0)
    # The posterior's deviation is a constant per channel.
    assert posterior.std.flatten(2).std(-1).max().item() < 1e-6
    assert 0 < posterior.std.max().item() < 20 * LATENT_NOISE


def test_psnr_is_the_closed_form():
    assert psnr(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.2)) == pytest.approx(
        20.0, abs=1e-5
    )
    assert math.isclose(psnr(torch.ones(1), -torch.ones(1)), 0.0, abs_tol=1e-6)


def test_scenes_follow_the_generator():
    indices, images = random_scenes(8, seeded(1), "cpu")
    again, same = random_scenes(8, seeded(1), "cpu")
    assert torch.equal(indices, again)
    assert torch.equal(images, same)
