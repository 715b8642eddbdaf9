"""The decoder's features of VAEs that are not as the toy's, and decoding in float16."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from nitrodistill.models import DecoderFeatures
from nitrodistill.models.autoencoder import decode_latents
from tests import parts


def make(**settings: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return parts.vae(4, 1.0, **settings).eval().requires_grad_(False)


def draw() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_slicing_and_tiling_leave_nothing_out():
    vae, z = make(), draw()
    features = DecoderFeatures(vae)
    expected = features(z)
    vae.enable_slicing()
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 4, 8
    for found, map in zip(features(z), expected, strict=True):
        assert torch.equal(found, map)
    assert vae.use_slicing
    assert vae.use_tiling


def test_a_decoder_that_would_be_trained_is_refused():
    with pytest.raises(ValueError, match="the VAE's decoder has parameters that require gradients"):
        DecoderFeatures(make().requires_grad_(True))


def test_a_vae_of_videos_has_maps_of_its_frame():
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    maps = DecoderFeatures(vae.eval().requires_grad_(False))(draw())
    assert [tuple(m.shape) for m in maps] == [(2, 16, 8, 8), (2, 8, 16, 16)]


def test_gradients_flow_through_a_float16_vae_that_is_widened():
    narrow = make(force_upcast=True).half()
    wide = make()
    wide.load_state_dict(narrow.state_dict())
    for decode in (
        lambda vae, z: decode_latents(vae, z, 2).sum(),
        lambda vae, z: torch.cat([m.flatten() for m in DecoderFeatures(vae)(z)]).sum(),
    ):
        gradients = []
        for vae in (narrow, wide):
            z = draw().requires_grad_()
            decode(vae, z).backward()
            gradients.append(z.grad)
        torch.testing.assert_close(*gradients)
    assert {p.dtype for p in narrow.parameters()} == {torch.float16}
