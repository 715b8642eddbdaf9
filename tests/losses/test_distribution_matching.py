"""The distribution-matching loss: what it does to samples, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nitrodistill.losses.functional import distribution_matching


def samples(*shape: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    )


def test_value_and_gradient_are_the_equation():
    x0, real, fake = samples(3, 2, 4, 5)
    weight = torch.tensor([1.0, 0.0, 2.5])
    value = distribution_matching(x0, real, fake, weight=weight)
    gradient = torch.autograd.grad(value.sum(), (x0, real, fake), allow_unused=True)
    g = (fake - real) / (x0 - real).abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(value, weight * g.square().mean((1, 2, 3)) / 2)
    torch.testing.assert_close(gradient[0], weight.view(-1, 1, 1, 1) * g / 40)
    assert gradient[1] is gradient[2] is None


def test_descent_moves_gaussian_samples_to_the_data():
    """With exact denoisers of N(m, 1): E[x0 | x_t] = m + (x_t - m) / (1 + sigma^2), here at sigma 1."""
    generator = torch.Generator().manual_seed(1)
    x0 = (-2 + torch.randn(4096, 1, generator=generator, dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.SGD([x0], lr=0.02)
    for _ in range(200):
        x_t = x0.detach() + torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        real, fake = (m + (x_t - m) / 2 for m in (1.0, x0.mean().item()))
        optimizer.zero_grad()
        distribution_matching(x0, real, fake).sum().backward()
        optimizer.step()
    assert x0.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda x, r, f: (x, r[:1], f), ValueError, "must be equal"),
        (lambda x, r, f: (x, r, f.int()), TypeError, "fake has dtype torch.int32"),
        (lambda x, r, f: (x, r, 1.0), TypeError, "fake is a float"),
        (lambda x, r, f: (x[:0], r[:0], f[:0]), ValueError, "not empty"),
    ],
)
def test_what_is_refused(change, error, sentence):
    with pytest.raises(error, match=sentence):
        distribution_matching(*change(*samples(3, 2)))


def test_a_weight_is_one_factor_per_sample():
    with pytest.raises(ValueError, match="one factor per sample"):
        distribution_matching(*samples(3, 2), weight=torch.ones(3, 1))
