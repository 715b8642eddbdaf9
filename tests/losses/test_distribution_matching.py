"""The distribution-matching losses: what they do to samples, and what they refuse."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from nitrodistill.losses.distribution_matching import Divergence
from nitrodistill.losses.functional import (
    distribution_matching,
    f_divergence_weight,
    guidance_matching,
)
from nitrodistill.sampling import Step, predict_x0
from nitrodistill.types import Condition, NoiseSchedule
from tests.mixtures import SCHEDULES, ExactDenoiser, Mixture

TEACHER = Mixture(
    torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
    torch.tensor([[-2.0, 0.5], [1.0, 1.5], [0.3, -1.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
)
STUDENT = Mixture(
    torch.tensor([0.6, 0.4], dtype=torch.float64),
    torch.tensor([[-1.0, 0.0], [0.7, 0.9]], dtype=torch.float64),
    torch.tensor([0.6, 0.9], dtype=torch.float64),
)


def samples(*shape: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    )


def gradient(loss: Tensor, x0: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), x0)[0]


def noised(schedule: NoiseSchedule, x0: Tensor) -> tuple[Step, Tensor]:
    """x0 at as many timesteps as there are samples, over the range of DMD."""
    u = torch.linspace(0.02, 0.98, len(x0), dtype=torch.float64)
    t = schedule.timestep(u)
    scales = schedule(t)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3), dtype=x0.dtype)
    return Step(t, scales, scales), scales.mix(x0.detach(), noise)


def test_value_and_gradient_are_the_equation():
    x0, real, fake = samples(3, 2, 4, 5)
    weight = torch.tensor([1.0, 0.0, 2.5])
    value = distribution_matching(x0, real, fake, weight=weight)
    found = torch.autograd.grad(value.sum(), (x0, real, fake), allow_unused=True)
    g = (fake - real) / (x0 - real).abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(value, weight * g.square().mean((1, 2, 3)) / 2)
    torch.testing.assert_close(found[0], weight.view(-1, 1, 1, 1) * g / 40)
    assert found[1] is found[2] is None


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_gradient_is_the_difference_of_the_exact_scores(name):
    """From predictions of each type to (sigma^2 / alpha) (s_fake - s_real), and DMD's paper's weight."""
    schedule, kind = SCHEDULES[name]
    x0, *_ = samples(40, 2)
    step, x_t = noised(schedule, x0)
    scales, c = step.output, Condition()
    real, fake = (
        predict_x0(ExactDenoiser(m, schedule, kind), step, x_t, c) for m in (TEACHER, STUDENT)
    )
    score_gap = STUDENT.score(x_t, scales) - TEACHER.score(x_t, scales)
    analytic = (scales.sigma.square() / scales.alpha)[:, None] * score_gap

    plain = 2 * gradient(distribution_matching(x0, real, fake, normalise=False), x0)
    torch.testing.assert_close(plain, analytic, rtol=1e-6, atol=1e-6)
    distance = (x0.detach() - real).abs().mean(1, keepdim=True)
    code = 2 * gradient(distribution_matching(x0, real, fake), x0)
    torch.testing.assert_close(code, analytic / distance, rtol=1e-6, atol=1e-6)
    # the paper, eq. 7-8: w_t alpha_t (s_fake - s_real), w_t = sigma^2 / alpha / (mean |mu - x|) times alpha
    paper = 2 * gradient(distribution_matching(x0, real, fake, weight=scales.alpha), x0)
    w_t = scales.sigma.square()[:, None] / scales.alpha[:, None] / distance
    expected = w_t * scales.alpha[:, None] * score_gap
    torch.testing.assert_close(paper, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", get_args(Divergence))
def test_the_weights_are_r_squared_times_the_second_derivative_of_f(kind):
    f = {
        "kl": lambda r: r * r.log(),
        "reverse_kl": lambda r: -r.log(),
        "jensen_shannon": lambda r: r * r.log() - (1 + r) * ((1 + r) / 2).log(),
        "hellinger": lambda r: (1 - r.sqrt()) ** 2,
        "jeffreys": lambda r: (r - 1) * r.log(),
        "neyman": lambda r: (1 - r) ** 2 / r,
    }[kind]
    r = torch.logspace(-1, 1.3, 30, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(f(r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    wide = (0.0, 1e9)
    found = f_divergence_weight(r.log()[:, None], kind, ratio_range=wide)
    torch.testing.assert_close(found, (r**2 * second).detach())
    assert not found.requires_grad
    one = f_divergence_weight(r.log()[7:8, None], kind, ratio_range=wide)
    assert torch.equal(one, found[7:8])  # at batch 1, and whoever else is there


def test_the_ratio_is_of_the_mean_logit_and_is_held_in_its_range():
    heads = (torch.tensor([[50.0, 50.0], [-9.0, -9.0]]), torch.tensor([[50.0], [-9.0]]))
    assert f_divergence_weight(heads, "kl").tolist() == pytest.approx([20, 0.1])
    logits = torch.tensor([[0.5, 1.5], [torch.nan, 0.0]])
    for kind in get_args(Divergence):
        assert f_divergence_weight(logits, kind)[1].isnan(), kind
    torch.testing.assert_close(f_divergence_weight(logits, "kl")[0], torch.tensor(1.0).exp())


def test_matching_with_guidance_is_the_sum_of_its_two_terms_at_one_point():
    x0, conditional, fake = samples(3, 2, 4, 5)
    null, scale = torch.randn(3, 2, 4, 5, dtype=torch.float64), 7.5
    guided = null + scale * (conditional - null)
    common = {"reference": conditional, "floor": 0.1}
    whole = gradient(distribution_matching(x0, guided, fake, **common), x0)
    matching = gradient(distribution_matching(x0, conditional, fake, **common), x0)
    guidance = gradient(guidance_matching(x0, conditional, null, scale, floor=0.1), x0)
    torch.testing.assert_close(matching + guidance, whole)
    assert gradient(guidance_matching(x0, conditional, null, 1.0), x0).abs().max() == 0
    n = (x0 - conditional).abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(guidance * 40, -(scale - 1) * (conditional - null).detach() / n)


def test_the_normaliser_makes_each_sample_independent_of_its_scale():
    x0, real, fake = (value.detach() for value in samples(3, 2, 4, 5))
    factor = torch.tensor([1.0, 10.0, 0.01], dtype=torch.float64).view(-1, 1, 1, 1)

    def found(scale: Tensor, **settings: object) -> Tensor:
        x = (x0 * scale).requires_grad_()
        return gradient(distribution_matching(x, real * scale, fake * scale, **settings), x)  # pyright: ignore

    one = torch.ones(())
    torch.testing.assert_close(found(factor), found(one))
    torch.testing.assert_close(found(factor, normalise=False), factor * found(one, normalise=False))
    high = found(one, floor=100.0)
    torch.testing.assert_close(high, found(one, normalise=False) / 100)
    torch.testing.assert_close(found(one, floor=1e-9), found(one))


@pytest.mark.parametrize("settings", [{}, {"floor": 0.1}, {"normalise": False}])
def test_no_sample_changes_another_ones_gradient(settings):
    x0, real, fake = samples(4, 2, 3)
    alone = gradient(distribution_matching(x0, real, fake, **settings), x0)
    for rows in ([2, 0, 3, 1], [0, 0, 1, 2, 3, 3]):
        there = x0.detach()[rows].requires_grad_()
        found = gradient(distribution_matching(there, real[rows], fake[rows], **settings), there)
        torch.testing.assert_close(found, alone[rows], rtol=0, atol=0)


def test_where_x0_is_the_reference_it_is_zero_and_nan_stays_nan():
    x0, _, fake = samples(2, 3)
    real = x0.detach().clone()
    assert distribution_matching(x0, real, fake).tolist() == [0, 0]
    assert distribution_matching(x0, real, fake, reference=real).tolist() == [0, 0]
    broken = fake.detach().clone()
    broken[1, 0] = torch.nan
    for settings in ({}, {"floor": 0.1}, {"normalise": False}):
        reference = real + 1
        value = distribution_matching(x0, reference, broken, **settings)
        assert value[0].isfinite()
        assert value[1].isnan()


def test_half_precision_is_computed_in_float32():
    x0, real, fake = (value.detach().half() for value in samples(3, 2, 4, 5))
    for settings in ({}, {"floor": 0.05}):
        found = distribution_matching(x0, real, fake, **settings)
        assert found.dtype == torch.float32
        wide = distribution_matching(x0.float(), real.float(), fake.float(), **settings)
        torch.testing.assert_close(found, wide)


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


def descended(name: str, teacher: Mixture, student: Mixture, steps: int) -> Mixture:
    """The student's means and deviations by gradient descent, with its own exact denoiser as the critic.

    Teacher and critic speak the prediction type of the schedule, and are read as x0.
    """
    schedule, kind = SCHEDULES[name]
    means, logs = student.means.clone().requires_grad_(), student.stds.log().requires_grad_()
    optimizer = torch.optim.Adam([means, logs], lr=0.2, betas=(0.5, 0.99))
    generator = torch.Generator().manual_seed(0)
    size, dims = 256, means.shape[1]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.2 * (1 - step / steps) ** 2
        component = torch.arange(size) % len(means)
        x0 = means[component] + logs.exp()[component, None] * torch.randn(
            size, dims, generator=generator, dtype=torch.float64
        )
        u = 0.02 + 0.96 * torch.rand(size, generator=generator, dtype=torch.float64)
        t = schedule.timestep(u)
        at = Step(t, schedule(t), schedule(t))
        noise = torch.randn(size, dims, generator=generator, dtype=torch.float64)
        x_t = at.output.mix(x0.detach(), noise)
        now = Mixture(student.weights, means.detach(), logs.detach().exp())
        optimizer.zero_grad()
        real, fake = (
            predict_x0(ExactDenoiser(mixture, schedule, kind), at, x_t, Condition())
            for mixture in (teacher, now)
        )
        loss = distribution_matching(x0, real, fake, floor=0.1)
        loss.mean().backward()
        optimizer.step()
    return Mixture(student.weights, means.detach(), logs.detach().exp())


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_fixed_point_in_one_dimension_is_the_teachers_distribution(name):
    """Of equal weights, the components' own distances bound Wasserstein's: W2^2 <= mean (dm^2 + ds^2)."""
    half = torch.full((2,), 0.5, dtype=torch.float64)
    teacher = Mixture(
        half, torch.tensor([[-1.0], [1.5]]).double(), torch.tensor([0.3, 0.6]).double()
    )
    start = Mixture(half, torch.tensor([[-0.3], [0.4]]).double(), torch.tensor([0.8, 0.8]).double())
    found = descended(name, teacher, start, 300)
    order = found.means[:, 0].argsort()
    gaps = (found.means[order] - teacher.means).square().sum(1)
    gaps = gaps + (found.stds[order] - teacher.stds).square()
    assert gaps.mean().sqrt() < 1e-3


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_fixed_point_in_two_dimensions_keeps_all_modes(name):
    corners = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [-2.0, -2.0], [2.0, -2.0]]).double()
    teacher = Mixture(torch.full((4,), 0.25).double(), corners, torch.full((4,), 0.3).double())
    around = torch.arange(8).double() * torch.pi / 4 + 0.2
    ring = 0.5 * torch.stack([around.cos(), around.sin()], 1)
    start = Mixture(torch.full((8,), 1 / 8).double(), ring, torch.full((8,), 1.0).double())
    found = descended(name, teacher, start, 300)
    nearest = torch.cdist(found.means, corners)
    assert nearest.argmin(1).bincount(minlength=4).tolist() == [2, 2, 2, 2]
    for number, corner in enumerate(corners):  # two components stand for one: their joint moments
        there = nearest.argmin(1) == number
        off = found.means[there] - corner
        assert off.mean(0).norm() < 0.02
        variance = found.stds[there].square().mean() + off.square().sum(1).mean() / 2
        assert variance.sqrt().item() == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda x, r, f: (x, r[:1], f), ValueError, "must be equal"),
        (lambda x, r, f: (x, r, f.int()), TypeError, "fake has dtype torch.int32"),
        (lambda x, r, f: (x, r, 1.0), TypeError, "fake is a float"),
        (lambda x, r, f: (x[:0], r[:0], f[:0]), ValueError, "not empty"),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"floor": 0.1}])
def test_what_is_refused(change, error, sentence, settings):
    with pytest.raises(error, match=sentence):
        distribution_matching(*change(*samples(3, 2)), **settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"weight": torch.ones(3, 1)}, "one factor per sample"),
        ({"weight": torch.ones(3, 1), "floor": 0.1}, "one factor per sample"),
        ({"floor": -1.0}, "floor is -1.0; it must be finite and >= 0"),
        ({"floor": float("nan")}, "floor is nan"),
        ({"reference": torch.zeros(3, 4)}, "x0, real, fake, reference have the shapes"),
        (
            {"normalise": False, "floor": 0.1},
            "floor is 0.1, which is the normaliser's, but normalise is False; leave one of the two out",
        ),
        (
            {"normalise": False, "reference": torch.zeros(3, 2)},
            "a reference is given, which is the normaliser's, but normalise is False",
        ),
    ],
)
def test_wrong_settings_are_told(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        distribution_matching(*samples(3, 2), **settings)


def test_wrong_guidance_and_unknown_divergences_are_told():
    with pytest.raises(ValueError, match=r"scale is 0.5; guidance is at least 1"):
        guidance_matching(*samples(3, 2), 0.5)
    with pytest.raises(ValueError, match=r"floor is 0.1, .* but normalise is False"):
        guidance_matching(*samples(3, 2), 2.0, floor=0.1, normalise=False)
    with pytest.raises(ValueError, match="divergence is 'tv'"):
        f_divergence_weight(torch.zeros(2, 1), "tv")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="ratio_range is"):
        f_divergence_weight(torch.zeros(2, 1), "kl", ratio_range=(1.0, 1.0))
