from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch

from nitrodistill.prediction import (
    check_convertible,
    convert_prediction,
    prediction_target,
    to_eps,
    to_x0,
)
from nitrodistill.schedules import KarrasSchedule, RectifiedFlow
from nitrodistill.types import PredictionType, Scales

TYPES = get_args(PredictionType)


def closed_form(kind, x0, eps, alpha, sigma):
    return {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": alpha * eps - sigma * x0,
        "flow_prediction": eps - x0,
    }[kind]


def vp_scales(t):
    angle = t * torch.pi / 2
    return Scales(angle.cos(), angle.sin())


@pytest.mark.parametrize("scales_of", [vp_scales, RectifiedFlow(t_max=1), KarrasSchedule()])
@pytest.mark.parametrize(("source", "target"), itertools.product(TYPES, TYPES))
def test_all_pairs_against_the_closed_form(source, target, scales_of, generator):
    x0, eps = torch.randn(2, 7, 4, 3, 3, generator=generator, dtype=torch.float64)
    scales = scales_of(torch.linspace(0.1, 0.9, 7, dtype=torch.float64))
    alpha, sigma = (s.reshape(-1, 1, 1, 1) for s in scales)
    x_t = alpha * x0 + sigma * eps
    given = closed_form(source, x0, eps, alpha, sigma)
    expected = closed_form(target, x0, eps, alpha, sigma)
    got = convert_prediction(given, x_t, scales, source, target)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(prediction_target(x0, eps, scales, source), given)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_x0_and_eps_equal_diffusers_one_ddim_step(kind, tiny_scheduler, generator):
    from diffusers import DDIMScheduler

    from nitrodistill.schedules import DiscreteSchedule

    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1000)
    t = torch.tensor(400)
    x_t, prediction = torch.randn(2, 2, 4, 8, 8, generator=generator)
    theirs = scheduler.step(prediction, t, x_t).pred_original_sample
    scales = DiscreteSchedule.from_scheduler(scheduler)(t)
    torch.testing.assert_close(to_x0(prediction, x_t, scales, kind), theirs, rtol=1e-5, atol=1e-5)
    remixed = scales.mix(theirs, to_eps(prediction, x_t, scales, kind))
    torch.testing.assert_close(remixed, x_t, rtol=1e-5, atol=1e-5)


def test_v_at_zero_snr_is_minus_x0_bit_for_bit(generator):
    v, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert torch.equal(to_x0(v, noise, Scales(zero, one), "v_prediction"), -v)


def test_half_precision_converts_in_float32(generator):
    p, x_t = torch.randn(2, 3, 4, generator=generator).bfloat16()
    scales = Scales(torch.full((3,), 0.6).double(), torch.full((3,), 0.8).double())
    got = to_x0(p, x_t, scales, "epsilon")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, (x_t.float() - 0.8 * p.float()) / 0.6, rtol=1e-6, atol=1e-6)


def test_scalars_broadcast_and_gradients_flow(generator):
    p = torch.randn(2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    x_t = torch.randn(2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    scales = Scales(torch.tensor(0.6).double(), torch.tensor(0.8).double())
    assert torch.autograd.gradcheck(
        lambda a, b: convert_prediction(a, b, scales, "v_prediction", "epsilon"), (p, x_t)
    )


def test_singular_combinations_are_refused_on_the_host():
    one, zero = torch.ones(2).double(), torch.zeros(2).double()
    with pytest.raises(ValueError, match="'epsilon' cannot be converted to 'sample'"):
        check_convertible(Scales(zero, one), "epsilon")
    with pytest.raises(ValueError, match="'sample' cannot be converted to 'epsilon'"):
        check_convertible(Scales(one, zero), "sample", "epsilon")
    for kind in ("sample", "v_prediction", "flow_prediction"):
        check_convertible(Scales(zero, one), kind)
    check_convertible(Scales(zero, one), "epsilon", "epsilon")


def test_bad_input():
    x = torch.zeros(2, 4, 8, 8)
    scales = Scales(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="learned-sigma"):
        to_x0(torch.zeros(2, 8, 8, 8), x, scales, "epsilon")
    with pytest.raises(ValueError, match="'eps'"):
        to_x0(x, x, scales, "eps")  # type: ignore[arg-type]


def test_where_x0_does_not_exist_a_host_says_so_and_a_captured_graph_does_not_look():
    x, zero = torch.ones(2, 1), Scales(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match=r"alpha is 0 .zero terminal SNR.: pure noise"):
        to_x0(x, 2 * x, zero, "epsilon")
    with pytest.raises(ValueError, match="sigma is 0: there is no noise left"):
        to_eps(x, x, Scales(zero.sigma, zero.alpha), "sample")
    assert to_x0(x, x, zero, "sample") is x
    compiled = torch.compile(to_x0, backend="eager", fullgraph=True)
    assert compiled(x, 2 * x, zero, "epsilon").isfinite().tolist() == [[True], [False]]
    away = Scales(*(scale.to("meta") for scale in zero))
    assert to_x0(x.to("meta"), x.to("meta"), away, "epsilon").shape == (2, 1)
