"""Adversarial losses against their formulas, and the games they play."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nitrodistill import losses as nl
from nitrodistill.losses import functional as nf

REAL = torch.tensor([[2.0, -1.0], [0.5, 3.0]], dtype=torch.float64)
FAKE = torch.tensor([[-2.0, 0.25], [1.5, -0.5]], dtype=torch.float64)


def softplus(x):
    return np.log1p(np.exp(x))


def relu(x):
    return np.maximum(x, 0)


FORMULAS = {
    nl.NonSaturatingGANLoss: (lambda r, f: softplus(-r) + softplus(f), lambda r, f: softplus(-f)),
    nl.HingeGANLoss: (lambda r, f: relu(1 - r) + relu(1 + f), lambda r, f: -f),
    nl.LeastSquaresGANLoss: (lambda r, f: ((r - 1) ** 2 + f**2) / 2, lambda r, f: (f - 1) ** 2 / 2),
    nl.RelativisticGANLoss: (lambda r, f: softplus(f - r), lambda r, f: softplus(r - f)),
}


@pytest.fixture(params=FORMULAS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def test_formulas(kind):
    discriminator, generator = FORMULAS[kind]
    r, f = REAL.numpy(), FAKE.numpy()
    loss = kind()
    for value, formula in (
        (loss.discriminator(REAL, FAKE), discriminator),
        (loss.generator(FAKE, REAL), generator),
    ):
        torch.testing.assert_close(value, torch.from_numpy(formula(r, f).mean(1)))


def test_heads_are_averaged_whatever_their_size(kind):
    loss = kind()
    one = loss.discriminator(REAL, FAKE)
    repeated = loss.discriminator((REAL, REAL.repeat(1, 5)), (FAKE, FAKE.repeat(1, 5)))
    torch.testing.assert_close(one, repeated)
    maps = [t.view(2, 1, 2, 1) for t in (FAKE, REAL)]
    torch.testing.assert_close(loss.generator(*maps), loss.generator(FAKE, REAL))


def test_given_weights_are_a_mean_over_heads(kind):
    """Weighed by their numbers of logits, heads count as Nitro's concatenated logits do."""
    heads = [(REAL, FAKE), (FAKE.repeat(1, 3), REAL.repeat(1, 3))]
    reals, fakes = zip(*heads, strict=True)
    weighed = kind(weights=(2.0, 6.0))
    for side in ("discriminator", "generator"):
        concatenated = getattr(kind(), side)(torch.cat(reals, 1), torch.cat(fakes, 1))
        torch.testing.assert_close(getattr(weighed, side)(reals, fakes), concatenated)
    equal = kind(weights=(3.0, 3.0)).discriminator(reals, fakes)
    torch.testing.assert_close(equal, kind().discriminator(reals, fakes))


P, Q = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 0.3, 0.2], [0.1, 0.6, 0.3]))

# the best logits at three points of probability P (real) and Q (fake), and the loss there
OPTIMA = {
    nl.NonSaturatingGANLoss: (
        (P / Q).log(),
        (P * (1 + Q / P).log() + Q * (1 + P / Q).log()).sum(),  # 2 log 2 - 2 JSD
    ),
    nl.HingeGANLoss: ((P - Q).sign(), 2 - (P - Q).abs().sum()),
    nl.LeastSquaresGANLoss: (P / (P + Q), (P * Q / (P + Q)).sum() / 2),
    nl.RelativisticGANLoss: (
        (P / Q).log() + 3,  # up to a constant: odds of x before y are P(x) Q(y) / (P(y) Q(x))
        (P[:, None] * Q * (1 + (Q / P)[:, None] * (P / Q)).log()).sum(),
    ),
}


def expected(kind, logits):
    """E over x ~ P and y ~ Q of the discriminator's loss, by all pairs of points."""
    real, fake = logits[:, None].expand(3, 3), logits.expand(3, 3)
    loss = kind().discriminator(real.reshape(9, 1), fake.reshape(9, 1))
    return (loss * (P[:, None] * Q).flatten()).sum()


def test_the_best_discriminator_is_the_one_in_closed_form(kind):
    logits, value = OPTIMA[kind]
    best = expected(kind, logits)
    torch.testing.assert_close(best, value)
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        step = torch.randn(3, generator=rng, dtype=torch.float64)
        for size in (1e-3, 0.3, 3.0):
            assert expected(kind, logits + size * step) >= best - 1e-12
    if kind is not nl.HingeGANLoss:  # which has a kink there
        logits = logits.clone().requires_grad_()
        (slope,) = torch.autograd.grad(expected(kind, logits), logits)
        torch.testing.assert_close(slope, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kind", "logit", "value"),
    [
        (nl.NonSaturatingGANLoss, 0.0, np.log(2)),
        (nl.HingeGANLoss, 0.0, 0.0),
        (nl.LeastSquaresGANLoss, 0.5, 1 / 8),
        (nl.RelativisticGANLoss, 0.7, np.log(2)),
    ],
)
def test_a_perfect_generator_meets_the_loss_at_chance(kind, logit, value):
    """Where fakes are as real ones are, the best discriminator says one and the same of all."""
    logits = torch.full((2, 3), logit, dtype=torch.float64)
    torch.testing.assert_close(kind().generator(logits, logits), torch.full((2,), value).double())


def test_gradients_pull_the_logits_apart(kind):
    real, fake = (t.clone().requires_grad_() for t in (REAL, FAKE))
    of_real, of_fake = torch.autograd.grad(kind().discriminator(real, fake).sum(), (real, fake))
    assert (of_real.sum(), of_fake.sum()) != (0, 0)
    if kind is not nl.LeastSquaresGANLoss:
        assert (of_real <= 0).all()
        assert (of_fake >= 0).all()
        (of_fake,) = torch.autograd.grad(kind().generator(fake, REAL).sum(), fake)
        assert (of_fake < 0).all()


def test_half_precision_logits_neither_overflow_nor_round(kind):
    real, fake = (100 * t.half() for t in (REAL, FAKE))
    value = kind().discriminator(real, fake)
    assert value.dtype == torch.float32
    expected = kind().discriminator(real.double(), fake.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    fake.requires_grad_()
    assert torch.autograd.grad(kind().generator(fake, real).sum(), fake)[0].dtype == torch.float16


def test_relativistic_generator_needs_real_logits(kind):
    if kind.needs_real:
        with pytest.raises(ValueError, match=r"call generator\(fake, real\)"):
            kind().generator(FAKE)
    else:
        torch.testing.assert_close(kind().generator(FAKE), kind().generator(FAKE, REAL))


def test_functions_are_the_methods():
    torch.testing.assert_close(nf.hinge_generator(FAKE), nl.HingeGANLoss().generator(FAKE))
    torch.testing.assert_close(
        nf.relativistic_discriminator(REAL, FAKE),
        nl.RelativisticGANLoss().discriminator(REAL, FAKE),
    )


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: nf.hinge_generator([]), ValueError, "at least one head"),
        (lambda: nf.hinge_generator((REAL, REAL[:1])), ValueError, "all of one batch size"),
        (lambda: nf.hinge_generator(REAL.long()), TypeError, "fake has dtype torch.int64"),
        (lambda: nf.hinge_discriminator(REAL, FAKE[:1]), ValueError, "equally many"),
        (lambda: nf.relativistic_generator(FAKE, REAL[:, :1]), ValueError, "pairs them one by one"),
        (lambda: nf.hinge_generator(REAL[:0]), ValueError, "not empty"),
        (lambda: nf.hinge_generator(REAL, [1, 2]), ValueError, "2 weights for 1 heads"),
        (lambda: nl.HingeGANLoss((1.0, 0.0)), ValueError, "a number of weights is 0.0"),
    ],
)
def test_bad_input(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_nan_stays_nan(kind):
    bad = FAKE.clone()
    bad[0].view(-1)[0] = float("nan")
    game = kind()
    for value in (
        game.generator(bad, REAL),
        game.discriminator(REAL, bad),
        game.discriminator(bad, REAL),
    ):
        assert value.isnan().tolist() == [True] + [False] * (len(FAKE) - 1)
