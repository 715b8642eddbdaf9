"""Gradient penalties against closed forms."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.losses import functional as nf


def quadratic(x):
    """D(x) = sum x^2 / 2, one logit a sample: the gradient is x."""
    return x.square().flatten(1).sum(1, keepdim=True) / 2


def test_exact_penalty_is_the_squared_gradient():
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = nf.gradient_penalty(quadratic(x), x)
    torch.testing.assert_close(penalty, x.square().flatten(1).sum(1))
    (second,) = torch.autograd.grad(penalty.sum(), x)
    torch.testing.assert_close(second, 2 * x)


def test_logits_of_a_head_are_averaged_and_heads_are_summed():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(
        nf.gradient_penalty(x @ weight, x), weight.mean(1).square().sum().expand(3)
    )
    torch.testing.assert_close(
        nf.gradient_penalty((x @ weight, quadratic(x)), x),
        (weight.mean(1) + x).square().sum(1),
    )


def test_penalty_at_each_heads_input():
    features = [torch.randn(2, c, 3, 3, dtype=torch.float64, requires_grad=True) for c in (4, 6)]
    logits = [quadratic(f) for f in features]
    expected = sum(f.square().flatten(1).sum(1) for f in features)
    torch.testing.assert_close(nf.gradient_penalty(logits, features), expected)


def test_approximate_penalty_tends_to_the_exact_one():
    """E (D(x) - D(x + s n))^2 / s^2 -> ||grad D||^2 as s -> 0."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    batch = x.expand(20000, 6)
    scale = 1e-3
    penalty = nf.approximate_gradient_penalty(quadratic, batch, scale=scale, generator=generator)
    assert (penalty.mean() / scale**2).item() == pytest.approx(x.square().sum().item(), rel=0.03)


def test_no_perturbation_no_penalty():
    """Also for a discriminator that noises its input: it sees the same noise and timestep twice."""
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Conv2d(3, 2, 3)

    def discriminate(x0):
        return network(0.6 * x0 + 0.8 * noise)

    x0 = torch.rand(4, 3, 8, 8)
    penalty = nf.approximate_gradient_penalty(
        discriminate, x0, scale=0.0, generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(penalty, torch.zeros(4))
    moved = nf.approximate_gradient_penalty(
        discriminate, x0, scale=0.1, generator=torch.Generator().manual_seed(1)
    )
    assert (moved > 0).all()


def test_the_generator_decides_and_known_logits_are_used():
    x = torch.rand(2, 5)
    seen = []

    def discriminate(samples):
        seen.append(samples)
        return quadratic(samples)

    state = torch.get_rng_state()
    options = {"scale": 0.1, "logits": quadratic(x)}
    a = nf.approximate_gradient_penalty(
        discriminate, x, generator=torch.Generator().manual_seed(5), **options
    )
    noise = torch.randn(2, 5, generator=torch.Generator().manual_seed(5))
    b = nf.approximate_gradient_penalty(discriminate, x, noise=noise, **options)
    assert torch.equal(a, b)
    assert len(seen) == 2
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: nf.gradient_penalty(quadratic(x), x.detach()), "require gradients"),
        (lambda x: nf.gradient_penalty(quadratic(x), (x + 0).requires_grad_()), "not used"),
        (lambda x: nf.approximate_gradient_penalty(quadratic, x, scale=0.1), "exactly one of"),
        (lambda x: nf.approximate_gradient_penalty(quadratic, x, scale=-1.0), "scale is -1.0"),
        (
            lambda x: nf.approximate_gradient_penalty(quadratic, x, scale=0.1, noise=x[:1]),
            "noise has shape",
        ),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(torch.rand(2, 3, requires_grad=True))
