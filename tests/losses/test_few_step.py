"""Targets of few-step students against closed forms: a Gaussian's denoiser, and polynomials."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nitrodistill.losses.few_step import ThreePoints, ddim_target, flow_map_target, x0_of_both
from nitrodistill.prediction import convert_prediction, prediction_target
from nitrodistill.sampling import StepPlan, ode_step
from nitrodistill.schedules import KarrasSchedule, RectifiedFlow, ZeroTerminalSNR
from nitrodistill.types import Condition, NoiseSchedule, PredictionType, Scales, expand
from tests.mixtures import VP

MEAN, STD = 0.3, 0.7


class Gaussian:
    """The exact denoiser of data N(MEAN, STD^2), of any prediction type."""

    def __init__(self, schedule: NoiseSchedule, prediction_type: PredictionType) -> None:
        self.module, self.schedule, self.prediction_type = nn.Module(), schedule, prediction_type

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        scales = Scales(*(expand(s, x_t).to(x_t.dtype) for s in self.schedule(t)))
        variance = (scales.alpha * STD).square() + scales.sigma.square()
        said = (x_t - scales.alpha * MEAN) / variance
        x0, eps = MEAN + scales.alpha * STD**2 * said, scales.sigma * said
        return prediction_target(x0, eps, self.schedule(t), self.prediction_type)


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        (VP, "epsilon"),
        (VP, "sample"),
        (ZeroTerminalSNR()(VP), "v_prediction"),
        (RectifiedFlow(shift=3), "flow_prediction"),
    ],
    ids=["vp-epsilon", "vp-sample", "zero-snr", "flow"],
)
def test_one_step_with_the_target_is_two_exact_steps(schedule, kind, steps, generator):
    """Two steps of DDIM, written out here, end where one does that takes the target for its x0."""
    teacher, none = Gaussian(schedule, kind), Condition()
    fine, coarse = (StepPlan.from_schedule(schedule, n) for n in (2 * steps, steps))
    later = coarse.after(schedule)
    x = torch.randn(2, 1, 2, 2, generator=generator, dtype=torch.float64)
    for i in range(steps):
        assert torch.equal(fine.steps[2 * i].t, coarse.steps[i].t)
        middle = fine.steps[2 * i + 1]
        x_m = ode_step(teacher, coarse.steps[i], middle, x, none)
        said = teacher(x_m, middle.t, none)
        x0, eps = (
            convert_prediction(said, x_m, middle.output, kind, to) for to in ("sample", "epsilon")
        )
        end = later.steps[i].input
        wanted = end.alpha * x0 + end.sigma * eps
        now = coarse.steps[i].output
        target = ddim_target(x, wanted, now, end)
        reached = end.alpha * target + end.sigma * (x - now.alpha * target) / now.sigma
        torch.testing.assert_close(reached, wanted, rtol=1e-10, atol=1e-10)
        if i + 1 == steps:
            torch.testing.assert_close(target, x0, rtol=0, atol=0)  # the paper's last step
        x = wanted


def test_the_target_for_edm_and_for_one_scale_a_sample(generator):
    """Per-sample scales, and alpha = 1: x0 = (x_s - r x_t) / (1 - r)."""
    schedule = KarrasSchedule()
    now, after = schedule(torch.tensor([40.0, 3.0])), schedule(torch.tensor([10.0, 0.5]))
    x_t, x_s = torch.randn(2, 2, 1, 3, 3, generator=generator, dtype=torch.float64)
    for row in range(2):
        ratio = after.sigma[row] / now.sigma[row]
        wanted = (x_s[row] - ratio * x_t[row]) / (1 - ratio)
        torch.testing.assert_close(ddim_target(x_t, x_s, now, after)[row], wanted)
    assert ddim_target(x_t.half(), x_s.half(), now, after).dtype == torch.float32


def test_a_step_away_from_the_data_is_refused():
    x = torch.zeros(1, 1)
    now, after = VP(torch.tensor(500)), VP(torch.tensor(200))
    assert ddim_target(x, x, now, after).isfinite().all()
    for wrong in (now, VP(torch.tensor(900))):
        with pytest.raises(ValueError, match=r"must lead towards the data.*noisier ones first"):
            ddim_target(x, x, now, wrong)


def test_both_predictions_are_exact_in_either_limit(generator):
    x0, noise, wrong = torch.randn(3, 1, 4, generator=generator, dtype=torch.float64)
    schedule = ZeroTerminalSNR()(VP)
    for t in (0, 500, 999):
        scales = schedule(torch.tensor(t))
        x_t = scales.mix(x0, noise)
        torch.testing.assert_close(x0_of_both(x0, noise, x_t, scales), x0)
    scales = schedule(torch.tensor(999))
    x_t = scales.mix(x0, noise)
    assert torch.equal(x0_of_both(x0, wrong, x_t, scales), x0)  # pure noise: x0 alone counts
    clean = Scales(torch.ones(()), torch.zeros(()))
    assert torch.equal(x0_of_both(wrong, wrong, x0, clean), x0)  # no noise: x_t alone


@pytest.mark.parametrize("distances", [(0.1, -0.1), (-0.1, -0.2), (0.1, 0.25), (-0.3, 0.05)])
def test_three_points_differentiate_parabolas_exactly(distances):
    first, second = (torch.tensor([d], dtype=torch.float64) for d in distances)
    weights = ThreePoints.of(first, second)

    def parabola(x: Tensor) -> Tensor:
        return (2 - 3 * x + 5 * x.square())[:, None]

    x = torch.tensor([0.4], dtype=torch.float64)
    found = weights.derivative(*(parabola(x + d) for d in (0 * first, first, second)))
    torch.testing.assert_close(found, (-3 + 10 * x)[:, None])


def test_equal_distances_are_the_central_difference():
    h = torch.tensor([0.005], dtype=torch.float64)
    weights = ThreePoints.of(h, -h)
    assert weights.here.item() == 0
    assert [w.item() for w in weights[1:]] == [pytest.approx(100), pytest.approx(-100)]


@pytest.mark.parametrize("sides", [(1, -1), (-1, -2)])
def test_the_error_falls_by_four_when_h_halves(sides):
    x = torch.tensor([0.3], dtype=torch.float64)
    errors = []
    for h in (0.02, 0.01, 0.005):
        offsets = [torch.tensor([h * side], dtype=torch.float64) for side in sides]
        values = [torch.sin(3 * (x + d))[:, None] for d in (0 * x, *offsets)]
        found = ThreePoints.of(*offsets).derivative(*values)
        errors.append((found - 3 * torch.cos(3 * x)).abs().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


def test_a_flow_map_target_at_r_equal_t_is_the_velocity(generator):
    velocity, derivative = torch.randn(2, 3, 4, generator=generator)
    distance = torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64)
    target = flow_map_target(velocity, 1e6 * derivative, distance)
    assert torch.equal(target[[0, 2]], velocity[[0, 2]])
    torch.testing.assert_close(target[1], velocity[1] - 5e5 * derivative[1])
    with pytest.raises(ValueError, match=r"r - t is up to 0\.25; .* r must be at most t"):
        flow_map_target(velocity, derivative, distance - 0.25)


def test_the_target_is_the_mean_velocity_of_a_gaussian():
    """With the exact flow of a Gaussian: u = (x_t - x_r) / (t - r), and its derivative by the path."""

    def spread(t: Tensor) -> Tensor:  # of x_t = (1 - t) x0 + t eps; flow lines keep x_t / spread
        return ((1 - t).square() * STD**2 + t.square()).sqrt()

    t, r, x = (torch.tensor([v], dtype=torch.float64) for v in (0.8, 0.3, 1.7))

    def along(s: Tensor) -> Tensor:
        return x * spread(s) / spread(t)

    def mean(s: Tensor) -> Tensor:
        return ((along(s) - along(r)) / (s - r))[:, None]

    velocity = ((t - (1 - t) * STD**2) / spread(t).square() * x)[:, None]
    errors = []
    for h in (0.02, 0.01):
        weights = ThreePoints.of(*(torch.tensor([d], dtype=torch.float64) for d in (h, -h)))
        derivative = weights.derivative(mean(t), mean(t + h), mean(t - h))
        errors.append((flow_map_target(velocity, derivative, t - r) - mean(t)).abs().item())
    assert errors[0] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
