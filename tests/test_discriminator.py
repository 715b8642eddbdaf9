from __future__ import annotations

import pytest
import torch

from nitrodistill.discriminator import ConvHead, LatentDiscriminator
from nitrodistill.types import Condition

TAPS = ("conv_in", "mid_block")


def number_of_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("channels", "millions"), [(320, 0.41), (640, 1.64), (1280, 6.56)])
def test_heads_have_the_published_size(channels, millions):
    with torch.device("meta"):
        head = ConvHead(channels)
        side = {320: 32, 640: 16, 1280: 8}[channels]
        logits = head(torch.empty(2, channels, side, side))
    assert number_of_parameters(head) / 1e6 == pytest.approx(millions, abs=0.005)
    assert logits.shape == (2, 1, side // 2 + 1, side // 2 + 1), "17^2 + 9^2 + 5^2 logits at 512 px"


def test_logits_a_patch_for_every_tap(tiny_denoiser, tiny_condition):
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, width=12)
    logits = discriminator(torch.zeros(3, 4, 8, 8), torch.tensor(10), tiny_condition)
    assert [tuple(scale.shape) for scale in logits] == [(3, 25), (3, 9)]


def test_gradients_reach_the_latents_and_the_heads_alone(tiny_denoiser, tiny_condition, generator):
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS)
    x_t = torch.randn(3, 4, 8, 8, generator=generator, requires_grad=True)
    logits = discriminator(x_t, torch.tensor(10), tiny_condition)
    sum(scale.square().sum() for scale in logits).backward()
    assert x_t.grad is not None
    assert float(x_t.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in discriminator.heads.parameters())
    assert all(p.grad is None for p in tiny_denoiser.module.parameters())
    assert not tiny_denoiser.module.training


def test_the_backbone_is_not_among_the_heads(tiny_denoiser):
    heads = LatentDiscriminator(tiny_denoiser, TAPS).heads
    assert number_of_parameters(heads) == sum(
        number_of_parameters(ConvHead(channels)) for channels in (32, 64)
    )


def test_a_seed_gives_the_heads_and_leaves_the_global_generator(tiny_denoiser):
    before = torch.random.get_rng_state()
    one, two, other = (
        LatentDiscriminator(tiny_denoiser, TAPS, seed=seed).heads.state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_any_backbone_with_an_example(generator):
    class Backbone:
        module = torch.nn.Sequential(torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.SiLU())
        schedule = None
        prediction_type = "sample"

        def __call__(self, x_t, t, condition):
            return self.module(x_t)

    example = (torch.zeros(1, 2, 6, 6), torch.tensor(0), Condition())
    with pytest.raises(TypeError, match="example="):
        LatentDiscriminator(Backbone(), ["0"])
    discriminator = LatentDiscriminator(Backbone(), ["0"], example=example)
    assert discriminator(*example)[0].shape == (1, 16)


def test_bad_width(tiny_denoiser):
    with pytest.raises(ValueError, match="width is 0"):
        LatentDiscriminator(tiny_denoiser, TAPS, width=0)
