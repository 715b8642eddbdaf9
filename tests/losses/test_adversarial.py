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
