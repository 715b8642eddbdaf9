"""Gradient penalties against closed forms."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from nitrodistill.losses import (
    ApproximateR1Penalty,
    ApproximateR1R2Penalty,
    LazyPenalty,
    Penalty,
    R1Penalty,
    R1R2Penalty,
    Side,
    named_penalties,
)
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


W = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
"""Of a linear discriminator: its logit is W x, its gradient W everywhere."""


def side(samples: torch.Tensor, seed: int = 0) -> Side:
    """A side as a linear discriminator with one head sees it; the head's input is the sample."""
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed)).double()
    features = samples.clone().requires_grad_()
    logits = (features @ W)[:, None]
    return Side(samples, (features,), (logits,), lambda x: (x @ W)[:, None], lambda: noise)


REAL, FAKE = (
    torch.randn(4, 3, generator=torch.Generator().manual_seed(i)).double() for i in (1, 2)
)


@pytest.mark.parametrize(("penalty", "value"), [(R1Penalty(), 5.25), (R1R2Penalty(), 10.5)])
def test_the_exact_penalties_of_a_linear_discriminator(penalty, value):
    found = penalty(side(REAL), side(FAKE))
    torch.testing.assert_close(found, torch.full((4,), value, dtype=torch.float64))


def test_the_approximate_penalties_of_a_linear_discriminator():
    """(W scale n)^2 of each sample, whatever the sample is; its mean over n is scale^2 |W|^2."""
    real, fake = side(REAL, seed=3), side(FAKE, seed=4)
    r1, r2 = ((0.2 * one.perturbation() @ W).square() for one in (real, fake))
    torch.testing.assert_close(ApproximateR1Penalty(0.2)(real, fake), r1)
    torch.testing.assert_close(ApproximateR1R2Penalty(0.2)(real, fake), r1 + r2)
    many = side(torch.zeros(20_000, 3, dtype=torch.float64))
    mean = ApproximateR1Penalty(0.2)(many, many).mean()
    torch.testing.assert_close(mean, 0.04 * W.square().sum(), rtol=0.03, atol=0)


class LogitPenalty(Penalty):
    """One from outside: logits near zero."""

    def __init__(self, power: int = 2) -> None:
        self.power = power

    def __call__(self, real: Side, fake: Side) -> torch.Tensor:
        return real.logits[0].abs().pow(self.power).mean(1)


def test_penalties_by_name():
    assert named_penalties({}) == {}
    assert named_penalties("r1") == {"r1": LazyPenalty(R1Penalty())}
    spec = {"r1_r2": 0.5, "approximate_r1": {"weight": 100, "scale": 0.01, "every": 4}}
    assert named_penalties(spec) == {
        "r1_r2": LazyPenalty(R1R2Penalty(), 0.5),
        "approximate_r1": LazyPenalty(ApproximateR1Penalty(0.01), 100.0, 4),
    }
    assert named_penalties({"approximate_r1_r2": {}})["approximate_r1_r2"].weight == 1


def test_a_penalty_from_outside_by_its_place(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", ModuleType("mine"))
    monkeypatch.setattr(sys.modules["mine"], "LogitPenalty", LogitPenalty, raising=False)
    (found,) = named_penalties({"mine:LogitPenalty": {"weight": 2, "power": 1}}).items()
    assert found[0] == "logit"
    value = found[1].penalty(side(REAL), side(FAKE))
    torch.testing.assert_close(value, (REAL @ W).abs())


def test_a_lazy_penalty_is_as_strong_on_average():
    lazy = LazyPenalty(R1Penalty(), 0.3, every=4)
    factors = [lazy.factor(update) for update in range(12)]
    assert factors == pytest.approx([1.2, 0, 0, 0] * 3)
    assert sum(factors) == pytest.approx(12 * 0.3)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"aproximate_r1": 1}, "did you mean 'approximate_r1'"),
        ({"approximate_r1": {"scale": 0}}, "approximate_r1: scale is 0.0"),
        ({"approximate_r1": {"sigma": 1}}, "the setting of approximate_r1 'sigma' is unknown"),
        ({"r1": -1}, "r1: weight is -1.0"),
        ({"r1": {"every": 0}}, "r1: every is 0"),
        ({"r1": {"every": 1.5}}, "r1.every is 1.5; it must be an integer"),
        ({"r1": 1, "nitrodistill.losses:R1Penalty": 1}, "two penalties 'r1'"),
        (["r1"], "give a name, or names with their weights"),
    ],
)
def test_penalties_that_are_refused(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        named_penalties(spec)
