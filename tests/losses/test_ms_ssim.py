"""MS-SSIM against piq and pytorch-msssim."""

from __future__ import annotations

import piq
import pytest
import pytorch_msssim
import torch

from nitrodistill import losses as nl
from nitrodistill.losses import functional as nf

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def test_piq_on_even_and_odd_sizes(make_pair):
    normalised = tuple(w / sum(WEIGHTS) for w in WEIGHTS)
    for size in ((176, 192), (165, 197)):
        x, y = make_pair(1, 2, *size)
        x, y = x.flip(-1, -2), y.flip(-1, -2)  # piq repeats the first row and column, not the last
        peer = 1 - piq.multi_scale_ssim(x, y, scale_weights=torch.tensor(WEIGHTS).double())
        value = nl.MSSSIMLoss(1.0, normalised)(x.flip(-1, -2), y.flip(-1, -2))
        torch.testing.assert_close(value, peer, rtol=0, atol=1e-7)


def test_pytorch_msssim(make_pair):
    x, y = make_pair(2, 3, 176, 176)
    x.requires_grad_()
    peer = 1 - pytorch_msssim.ms_ssim(x, y, data_range=1)
    value = nl.MSSSIMLoss(1.0)(x, y)
    torch.testing.assert_close(value, peer, rtol=0, atol=1e-6)
    (grad,), (peer_grad,) = torch.autograd.grad(value, x), torch.autograd.grad(peer, x)
    torch.testing.assert_close(grad, peer_grad, rtol=0, atol=2e-5 * peer_grad.abs().max().item())


def test_one_scale_is_ssim_per_channel(make_pair):
    x, y = make_pair(2, 3, 16, 16)
    per_channel = torch.stack(
        [nf.ssim_loss(x[:, c : c + 1], y[:, c : c + 1], data_range=1.0) for c in range(3)]
    )
    torch.testing.assert_close(
        nf.ms_ssim_loss(x, y, data_range=1.0, weights=(1.0,)), per_channel.mean(0)
    )


def test_negative_similarity_has_no_nan():
    """Where other implementations differentiate 0^0.0448."""
    x = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = nl.MSSSIMLoss(1.0, (0.3, 0.7), window_size=5)
    value = loss(x, (1 - x).detach())
    value.backward()
    assert value == 1
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_masked_half_is_that_half(make_pair):
    x, y = make_pair(1, 2, 32, 32)
    spoiled = x.clone()
    spoiled[..., 16:] = 0.5
    mask = torch.zeros(1, 1, 1, 32)
    mask[..., :6] = 1  # out of reach of the spoiled half at both scales
    loss = nl.MSSSIMLoss(1.0, (0.5, 0.5), window_size=3)
    torch.testing.assert_close(loss(x, y, mask=mask), loss(spoiled, y, mask=mask))
    assert loss(x, y) != loss(spoiled, y)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nl.MSSSIMLoss(1.0)(*torch.rand(2, 1, 1, 160, 160)), "10 on the short side"),
        (lambda: nl.MSSSIMLoss(1.0, ()), "weights is empty"),
        (lambda: nl.MSSSIMLoss(1.0, (0.5, -0.5)), "of weights is -0.5"),
        (lambda: nl.MSSSIMLoss(-1.0), "data_range is -1.0"),
        (lambda: nl.MSSSIMLoss(1.0, mode="x"), "mode is 'x'"),
        (lambda: nl.MSSSIMLoss(1.0, padding="x"), "padding is 'x'"),
    ],
)
def test_bad_options(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_nan_is_no_similarity(make_pair):
    x, y = make_pair(1, 1, 24, 24, dtype=torch.float32)
    x[0, 0, 3, 4] = float("nan")
    loss = nl.MSSSIMLoss(1.0, weights=(0.5, 0.5), window_size=3)
    assert loss(x, y).isnan()
    assert loss(torch.full_like(x, float("nan")), y).isnan()
