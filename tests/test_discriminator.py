from __future__ import annotations

import pytest
import torch

from nitrodistill.discriminator import ConvHead, LatentDiscriminator, TokenHead
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


def test_the_token_head_has_the_published_size():
    """Per head at PixArt's width C: Conv1d C->C of 1 and of 9 taps, two norms, Conv1d C->1: 10 C^2 + 7 C + 1."""
    with torch.device("meta"):
        head = TokenHead(1152)
        logits = head(torch.empty(2, 1152, 3, 5))
    assert number_of_parameters(head) == 10 * 1152**2 + 7 * 1152 + 1
    assert logits.shape == (2, 1, 3, 5)


def without_norm(head: torch.nn.Module) -> torch.nn.Module:
    for module in head.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    return head.eval()


def test_a_token_head_sees_neighbours_on_the_grid_and_none_around_its_edges(generator):
    head = without_norm(TokenHead(6))
    x = torch.randn(1, 6, 4, 5, generator=generator, requires_grad=True)
    for row, column in ((1, 0), (0, 4), (2, 2)):
        (gradient,) = torch.autograd.grad(head(x)[0, 0, row, column], x, retain_graph=True)
        seen = {(i, j) for i, j in (gradient[0].abs().sum(0) > 0).nonzero().tolist()}
        near = {
            (row + i, column + j)
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
            if 0 <= row + i < 4 and 0 <= column + j < 5
        }
        assert seen == near


@pytest.mark.parametrize("make", [ConvHead, TokenHead])
def test_a_logit_does_not_depend_on_the_rest_of_the_batch(make, generator):
    head = make(8, 8).eval()
    x = torch.randn(5, 8, 4, 4, generator=generator)
    torch.testing.assert_close(head(x)[:2], head(x[:2]))


def test_the_token_heads_convolutions_have_spectral_norm_one():
    head = TokenHead(16, 12)
    for _ in range(50):
        head(torch.zeros(1, 16, 2, 2))  # a power iteration for each forward pass in train mode
    weights = [m.weight for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(weights) == 3
    for weight in weights:
        norm = torch.linalg.matrix_norm(weight.detach().flatten(1), 2)
        assert float(norm) == pytest.approx(1.0, abs=1e-3)


def test_logits_a_patch_for_every_tap(tiny_denoiser, tiny_condition):
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, width=12)
    logits = discriminator(torch.zeros(3, 4, 8, 8), torch.tensor(10), tiny_condition)
    assert [tuple(scale.shape) for scale in logits] == [(3, 25), (3, 9)]


def test_any_head(tiny_denoiser, tiny_condition):
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, head=TokenHead, width=12)
    logits = discriminator(torch.zeros(3, 4, 8, 8), torch.tensor(10), tiny_condition)
    assert [tuple(scale.shape) for scale in logits] == [(3, 64), (3, 16)]


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
