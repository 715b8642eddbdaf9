from __future__ import annotations

import torch
import torch.nn.functional as F

from nitrodistill.kernels.dmd import dmd


def samples(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, 4, 5, generator=generator, dtype=dtype) for _ in range(3)]


def test_value_and_gradient_are_those_of_the_published_code():
    x0, real, fake = samples()
    x0.requires_grad_()
    p_real, p_fake = x0.detach() - real, x0.detach() - fake
    gradient = (p_real - p_fake) / p_real.abs().mean((1, 2, 3), keepdim=True)
    published = 0.5 * F.mse_loss(x0, (x0 - gradient).detach())
    ours = dmd(x0, real, fake).mean()
    torch.testing.assert_close(ours, published)
    (a,), (b,) = (torch.autograd.grad(loss, x0) for loss in (ours, published))
    torch.testing.assert_close(a, b)


def test_gradient_points_from_the_teacher_to_the_critic():
    x0 = torch.zeros(1, 1, 2, 2, requires_grad=True)
    real, fake = torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), -1.0)
    loss = dmd(x0, real, fake)
    (gradient,) = torch.autograd.grad(loss.sum(), x0)
    assert loss.tolist() == [0.5 * 1.5**2]  # g = (-1 - 2) / 2
    assert gradient.unique().tolist() == [-1.5 / 4]


def test_no_gradient_reaches_the_two_networks():
    x0, real, fake = (t.requires_grad_() for t in samples())
    weight = torch.rand(3, dtype=torch.float64, requires_grad=True)
    loss = dmd(x0, real, fake, weight=weight).sum()
    found = torch.autograd.grad(loss, (x0, real, fake, weight), allow_unused=True)
    assert found[1] is None
    assert found[2] is None
    torch.testing.assert_close(found[3], dmd(x0, real, fake).detach())


def test_a_teacher_that_agrees_gives_zero_not_nan():
    x0, _, fake = samples()
    x0.requires_grad_()
    loss = dmd(x0, x0.detach(), fake)
    (gradient,) = torch.autograd.grad(loss.sum(), x0)
    assert not loss.any()
    assert not gradient.any()


def test_small_gradients_keep_their_digits():
    """x0 - (x0 - g) would leave four digits of a gradient 1e-4 times as large as x0."""
    x0, real, _ = samples()
    fake = real + 1e-4 * torch.randn(real.shape, dtype=torch.float64)
    single = [t.float() for t in (x0, real, fake)]
    exact = [t.double() for t in single]
    single[0].requires_grad_()
    exact[0].requires_grad_()
    (a,) = torch.autograd.grad(dmd(*single).sum(), single[0])
    (b,) = torch.autograd.grad(dmd(*exact).sum(), exact[0])
    assert (a - b).abs().max() / b.abs().max() < 1e-6
