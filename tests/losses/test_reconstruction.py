"""Elementwise losses against torch, numpy and their formulas."""

from __future__ import annotations

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nitrodistill import losses as nl
from nitrodistill.losses import functional as nf

FUNCTIONS = {
    "l1": (nf.l1_loss, {}, lambda d: abs(d)),
    "l2": (nf.l2_loss, {}, lambda d: d**2),
    "smooth_l1": (
        nf.smooth_l1_loss,
        {"beta": 0.1},
        lambda d: np.where(abs(d) < 0.1, d**2 / 0.2, abs(d) - 0.05),
    ),
    "huber": (
        nf.huber_loss,
        {"delta": 0.1},
        lambda d: np.where(abs(d) <= 0.1, d**2 / 2, 0.1 * (abs(d) - 0.05)),
    ),
    "pseudo_huber": (nf.pseudo_huber_loss, {"c": 0.2}, lambda d: np.sqrt(d**2 + 0.04) - 0.2),
    "charbonnier": (nf.charbonnier_loss, {"eps": 0.2}, lambda d: np.sqrt(d**2 + 0.04)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_formula_with_and_without_a_mask(name, make_pair):
    function, options, formula = FUNCTIONS[name]
    x, y = make_pair(3, 4, 5, 6)
    e = formula((x - y).numpy())
    expected = torch.from_numpy(e.reshape(3, -1).mean(1))
    torch.testing.assert_close(function(x, y, **options), expected, rtol=1e-12, atol=1e-14)
    mask = torch.rand(3, 1, 5, 1, dtype=torch.float64)
    m = np.broadcast_to(mask.numpy(), e.shape)
    expected = torch.from_numpy((m * e).reshape(3, -1).sum(1) / m.reshape(3, -1).sum(1))
    torch.testing.assert_close(function(x, y, **options, mask=mask), expected)


@pytest.mark.parametrize(
    ("loss", "peer"),
    [
        (nl.L1Loss(), F.l1_loss),
        (nl.L2Loss(), F.mse_loss),
        (nl.SmoothL1Loss(0.2), lambda x, y: F.smooth_l1_loss(x, y, beta=0.2)),
        (nl.SmoothL1Loss(0.0), F.l1_loss),
        (nl.HuberLoss(0.2), lambda x, y: F.huber_loss(x, y, delta=0.2)),
        (nl.PseudoHuberLoss(1.0), lambda x, y: kornia.losses.charbonnier_loss(x, y).mean()),
    ],
)
def test_equal_to_torch_and_kornia(loss, peer, make_pair):
    x, y = make_pair(3, 4, 5, 6)
    torch.testing.assert_close(loss(x, y), peer(x, y), rtol=1e-12, atol=1e-14)
    weight = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(loss(x, y, weight=weight), peer(x, y), rtol=1e-12, atol=1e-14)


def test_pseudo_huber_of_tiny_differences():
    c, d = 1e-3, 1e-8
    x = torch.full((1, 4), d)
    expected = d**2 / (2 * c)  # sqrt(d^2 + c^2) - c cancels to 0 in float32
    torch.testing.assert_close(
        nf.pseudo_huber_loss(x, torch.zeros(1, 4), c=c).item(), expected, rtol=1e-5, atol=0
    )


def test_pseudo_huber_of_whole_samples(make_pair):
    x, y = make_pair(3, 4, 5, 6)
    norm = (x - y).flatten(1).norm(dim=1)
    expected = (norm**2 + 0.25).sqrt() - 0.5
    value = nf.pseudo_huber_loss(x, y, c=0.5, dim="sample")
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    c = 0.00054 * 120**0.5  # iCT's default
    torch.testing.assert_close(
        nf.pseudo_huber_loss(x, y, dim="sample"), (norm**2 + c**2).sqrt() - c
    )
    half = torch.zeros(3, 4, 5, 6, dtype=torch.float64)
    half[:, :2] = 1
    masked = 2 * ((x - y)[:, :2] ** 2).flatten(1).sum(1)
    torch.testing.assert_close(
        nf.pseudo_huber_loss(x, y, c=0.5, dim="sample", mask=half), (masked + 0.25).sqrt() - 0.5
    )


def test_vectors_are_losses_too():
    x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2)
    torch.testing.assert_close(nf.l1_loss(x, y), torch.tensor([1.5, 3.5]))
    torch.testing.assert_close(nf.l1_loss(x[:, 0], y[:, 0]), torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivative(name, make_pair):
    function, options, _ = FUNCTIONS[name]
    x, y = (tensor.requires_grad_() for tensor in make_pair(2, 2, 3, 3))
    assert torch.autograd.gradgradcheck(lambda a, b: function(a, b, **options), (x, y))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap(name, make_pair):
    function, options, _ = FUNCTIONS[name]
    x, y = make_pair(3, 2, 4, 5)
    batched = torch.vmap(lambda a, b: function(a, b, **options))(x, y)
    each = torch.stack([function(a, b, **options) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(batched, each)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nl.SmoothL1Loss(-1.0), "beta is -1.0; it must be finite and >= 0"),
        (lambda: nl.HuberLoss(0.0), "delta is 0.0; it must be finite and > 0"),
        (lambda: nl.PseudoHuberLoss(0.0), "c is 0.0"),
        (lambda: nl.PseudoHuberLoss(1.0, "batch"), "dim is 'batch'; it must be one of 'element'"),
        (lambda: nl.CharbonnierLoss(float("nan")), "eps is nan"),
    ],
)
def test_bad_options(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
