"""Losses on pictures for latents."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nitrodistill import losses as nl


class Decoder(nn.Module):
    """A frozen decoder that counts what it decodes and how much of it at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3, padding=1), nn.Tanh()
        ).double()
        self.requires_grad_(False)
        self.sizes: list[int] = []

    def forward(self, z: Tensor) -> Tensor:
        self.sizes.append(z.shape[0])
        return self.net(z)


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder()


@pytest.mark.parametrize("chunk", [1, 2, 5, None])
def test_value_and_gradients_are_those_of_decoding_by_hand(decoder, chunk, make_pair):
    z, w = (t.requires_grad_() for t in make_pair(5, 4, 6, 5))
    inner = nl.SSIMLoss(2.0, window_size=3, mode="shift")
    expected = inner.per_sample(decoder(z), decoder(w))
    wanted = torch.autograd.grad(expected.sum(), (z, w))
    value = nl.DecodedLoss(inner, decoder, chunk, reduction="none")(z, w)
    torch.testing.assert_close(value, expected)
    for got, want in zip(torch.autograd.grad(value.sum(), (z, w)), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_what_is_drawn_for_a_whole_batch_is_not_cut_into_chunks(make_pair):
    def decode(z):
        return z[:, :3]

    x, y = make_pair(3, 4, 8, 8)
    inner = nl.LatentLPIPSLoss(lambda z: [z, z.square()], augment="bg")
    with pytest.raises(
        ValueError, match="draws at random for a whole batch, and chunk is 2; leave"
    ):
        nl.DecodedLoss(nl.MultiScaleLoss(inner, [1.0]), decode, chunk=2)
    loss = nl.DecodedLoss(inner, decode, chunk=None)
    r = torch.rand(3, 14, generator=torch.Generator().manual_seed(0))
    loss.draw(lambda name, count: r)
    expected = inner(decode(x), decode(y))
    torch.testing.assert_close(loss(x, y), expected)
    assert expected != inner.eval()(decode(x), decode(y))


def test_one_chunk_is_in_memory_and_is_computed_again(decoder, make_pair):
    z, w = make_pair(4, 4, 6, 5)
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    def saved(chunk):
        nonlocal kept
        kept = 0
        loss = nl.DecodedLoss(nl.L1Loss(), decoder, chunk)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            return loss(z.requires_grad_(), w)

    saved(None)
    everything = kept
    decoder.sizes.clear()
    value = saved(1)
    assert kept < everything / 4  # the latents and the values, not the pictures
    assert decoder.sizes == [1] * 8
    value.backward()
    assert decoder.sizes == [1] * 16
    decoder.sizes.clear()
    nl.DecodedLoss(nl.L1Loss(), decoder, 3)(z.detach(), w)
    assert decoder.sizes == [3, 3, 1, 1]


def test_the_target_gets_no_graph_unless_it_asks(decoder, make_pair):
    z, w = make_pair(2, 4, 6, 5)
    graphs = []

    def decode(latents):
        graphs.append(torch.is_grad_enabled())
        return decoder(latents)

    nl.DecodedLoss(nl.L1Loss(), decode, None)(z.requires_grad_(), w)
    assert graphs == [True, False]


def test_a_mask_on_latents_is_one_on_their_pixels(decoder, make_pair):
    z, w = make_pair(2, 4, 6, 5)
    mask = torch.zeros(2, 1, 6, 5)
    mask[:, :, 1:3, 2:] = 1
    x, y = decoder(z), decoder(w)
    expected = (x - y)[:, :, 2:6, 4:].abs().mean((1, 2, 3))
    loss = nl.DecodedLoss(nl.L1Loss(), decoder, reduction="none")
    torch.testing.assert_close(loss(z, w, mask=mask), expected)
    one = torch.ones(1, 1, 1, 1)
    torch.testing.assert_close(loss(z, w, mask=one), loss(z, w))
    with pytest.raises(ValueError, match="the channels of latents are not those of pictures"):
        loss(z, w, mask=torch.ones(2, 4, 6, 5))


def test_losses_of_one_decoder_in_a_sum_decode_once(decoder, make_pair):
    z, w = make_pair(3, 4, 6, 5)
    other = Decoder()
    losses = {
        "a": nl.DecodedLoss(nl.L1Loss(), decoder),
        "latent": nl.L1Loss(),
        "b": nl.DecodedLoss(nl.L2Loss(), decoder),
        "c": nl.DecodedLoss(nl.L2Loss(), other),
    }
    total = nl.WeightedSum({name: (0.5, loss) for name, loss in losses.items()})
    decoder.sizes.clear()
    parts = total.parts(z, w)
    assert list(parts) == list(losses)
    assert len(decoder.sizes) == len(other.sizes) == 6
    for name, value in parts.items():
        torch.testing.assert_close(value, losses[name].per_sample(z, w))


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda d: nl.DecodedLoss(nl.L1Loss(), d, 0), ValueError, "chunk is 0"),
        (lambda d: nl.DecodedLoss(nl.L1Loss(), d, 1.5), TypeError, "chunk is 1.5"),
        (lambda d: nl.DecodedLoss(nl.L1Loss(), None), TypeError, "decode is a NoneType"),
        (lambda d: nl.DecodedLoss(d, d), TypeError, "the loss is a Decoder"),
        (lambda d: nl.DecodedLoss(nl.L1Loss(reduction="sum"), d), ValueError, "reduction 'sum'"),
        (lambda d: nl.DecodedLoss(nl.L1Loss(), d.requires_grad_()), ValueError, "would train"),
        (lambda d: nl.DecodedLoss(nl.L1Loss(), d)(torch.rand(0, 4, 2, 2), torch.rand(0, 4, 2, 2)),
         ValueError, "not empty"),
    ],
)  # fmt: skip
def test_what_is_refused(decoder, make, error, sentence):
    with pytest.raises(error, match=sentence):
        make(decoder)
