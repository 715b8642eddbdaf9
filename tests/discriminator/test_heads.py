"""Heads: sizes as published, what a logit sees, and projections against their formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nitrodistill.discriminator import ConvHead, DiscriminatorHeads, MLPHead, TokenHead, named_head
from nitrodistill.discriminator.heads import ConditionEmbedding, ProjectionHead


def number_of_parameters(module: nn.Module) -> int:
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


def test_the_mlp_head_sees_the_mean_of_a_map(generator):
    head = MLPHead(6, 4)
    x = torch.randn(2, 6, 3, 5, generator=generator)
    shuffled = x.flatten(2)[:, :, torch.randperm(15, generator=generator)].view_as(x)
    assert head(x).shape == (2, 1)
    torch.testing.assert_close(head(x), head(shuffled))
    mean = x.mean((2, 3))[:, :, None, None]
    torch.testing.assert_close(head(x), head(mean))
    assert not torch.allclose(head(x), head(2 - x))


def without_norm(head: nn.Module) -> nn.Module:
    for module in head.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
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


KINDS = [ConvHead, TokenHead, MLPHead]


@pytest.mark.parametrize("make", KINDS)
def test_a_logit_does_not_depend_on_the_rest_of_the_batch(make, generator):
    embedding = ConditionEmbedding(16, timestep=True, text_channels=3)
    heads = DiscriminatorHeads([ProjectionHead(make(8, 8), 16)], embedding).eval()
    x = torch.randn(5, 8, 4, 4, generator=generator)
    u, text = (torch.rand(5, *shape, generator=generator) for shape in ((), (3,)))
    (all_of_them,), (two,) = heads([x], u, text), heads([x[:2]], u[:2], text[:2])
    torch.testing.assert_close(all_of_them[:2], two)


def test_the_token_heads_convolutions_have_spectral_norm_one():
    head = TokenHead(16, 12)
    for _ in range(50):
        head(torch.zeros(1, 16, 2, 2))  # a power iteration for each forward pass in train mode
    weights = [m.weight for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert len(weights) == 3
    for weight in weights:
        norm = torch.linalg.matrix_norm(weight.detach().flatten(1), 2)
        assert float(norm) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("make", KINDS)
def test_a_projection_adds_the_inner_product(make, generator):
    """psi(phi) + <V e, phi> / sqrt(K), at every position of phi."""
    head = make(8, 6).eval()
    conditioned = ProjectionHead(head, 5)
    x, e = (torch.randn(3, *shape, generator=generator) for shape in ((8, 4, 4), (5,)))
    phi = head.hidden(x)
    direction = e @ conditioned.projection.weight.T + conditioned.projection.bias
    inner = torch.einsum("bk...,bk->b...", phi, direction)[:, None] / math.sqrt(6)
    torch.testing.assert_close(conditioned(x, e), head(x) + inner)
    nn.init.zeros_(conditioned.projection.weight)
    nn.init.zeros_(conditioned.projection.bias)
    torch.testing.assert_close(conditioned(x, e), head(x))


@pytest.mark.parametrize(("timestep", "text"), [(True, 0), (False, 3), (True, 3)])
def test_conditioning_changes_logits_by_what_it_knows_alone(timestep, text, generator):
    embedding = ConditionEmbedding(16, timestep, text)
    heads = DiscriminatorHeads([ProjectionHead(ConvHead(8), 16)], embedding)
    x = torch.randn(1, 8, 4, 4, generator=generator)
    u, other_u = torch.tensor([0.3]), torch.tensor([0.31])
    words, other_words = (torch.randn(1, 3, generator=generator) for _ in range(2))

    def differ(*how) -> bool:
        return not torch.equal(heads([x], u, words)[0], heads([x], *how)[0])

    assert differ(other_u, words) == timestep
    assert differ(u, other_words) == bool(text)


def test_own_heads_that_cannot_be_conditioned_say_why():
    with pytest.raises(
        TypeError, match=r"conditioning needs a head with hidden\(features\), logit"
    ):
        ProjectionHead(nn.Conv2d(8, 1, 1), 16)


def test_statistics_of_a_batch_of_one():
    heads = DiscriminatorHeads([nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))])
    with pytest.raises(
        ValueError, match="normalises over the batch, and this batch holds 1 sample"
    ):
        heads([torch.zeros(1, 8, 4, 4)])
    assert heads([torch.zeros(2, 8, 4, 4)])[0].shape == (2, 64)
    assert heads.eval()([torch.zeros(1, 8, 4, 4)])[0].shape == (1, 64)


def test_heads_without_weights_and_below_a_backbone_in_half_precision():
    features = torch.ones(2, 8, 4, 4, dtype=torch.bfloat16)
    (mean,) = DiscriminatorHeads([nn.AdaptiveAvgPool2d(1)])([features])
    assert torch.equal(mean, torch.ones(2, 8, dtype=torch.bfloat16))
    assert DiscriminatorHeads([MLPHead(8)])([features])[0].dtype == torch.float32


def test_heads_by_name():
    names = ["conv", "token", "mlp", "nitrodistill.discriminator:MLPHead"]
    assert [named_head(name) for name in names] == [ConvHead, TokenHead, MLPHead, MLPHead]
    with pytest.raises(ValueError, match="the head 'tokens' is unknown; did you mean 'token'"):
        named_head("tokens")
