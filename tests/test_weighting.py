from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr

from nitrodistill.schedules import DiscreteSchedule, RectifiedFlow, ZeroTerminalSNR
from nitrodistill.types import Scales
from nitrodistill.weighting import min_snr_weight, snr_plus_one_weight, truncated_snr_weight

T = torch.tensor([0, 100, 500, 900, 999])


def test_min_snr_equals_the_usual_code_where_that_is_finite():
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    snr = compute_snr(scheduler, T).double()
    scales = DiscreteSchedule.from_scheduler(scheduler)(T)
    capped = snr.clamp(max=5)
    for kind, usual in (
        ("sample", capped),
        ("epsilon", capped / snr),
        ("v_prediction", capped / (snr + 1)),
    ):
        torch.testing.assert_close(min_snr_weight(scales, kind), usual, rtol=1e-4, atol=1e-7)


def test_an_x0_weight_is_the_same_loss_in_every_space(generator):
    """w |x0 - x0'|^2 must equal (the weight of the type) |p - p'|^2, for any two predictions."""
    from nitrodistill.prediction import to_x0

    scales = RectifiedFlow(t_max=1)(torch.linspace(0.1, 0.9, 5, dtype=torch.float64))
    x_t, p, q = torch.randn(3, 5, 6, generator=generator, dtype=torch.float64)
    for weight in (truncated_snr_weight, snr_plus_one_weight, min_snr_weight):
        base = weight(scales, "sample")
        for kind in ("v_prediction", "flow_prediction"):
            in_x0 = (to_x0(p, x_t, scales, kind) - to_x0(q, x_t, scales, kind)).square().sum(1)
            if weight is snr_plus_one_weight and kind == "v_prediction":
                continue  # stated for variance-preserving scales
            in_p = (p - q).square().sum(1)
            torch.testing.assert_close(weight(scales, kind) * in_p, base * in_x0)


def test_finite_at_zero_snr():
    schedule = ZeroTerminalSNR()(
        DiscreteSchedule((1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0))
    )
    scales = schedule(torch.tensor([999]))
    assert min_snr_weight(scales, "epsilon").item() == 1
    assert min_snr_weight(scales, "v_prediction").item() == 0
    assert truncated_snr_weight(scales, "v_prediction").item() == 1
    assert truncated_snr_weight(scales, "sample").item() == 1
    assert snr_plus_one_weight(scales, "v_prediction").item() == 1


def test_finite_without_noise():
    """At the first timestep of a flow, which a law on [0, 1] can draw."""
    scales = RectifiedFlow()(torch.zeros(1))
    for kind in ("v_prediction", "flow_prediction"):
        assert snr_plus_one_weight(scales, kind).item() == 1
        assert truncated_snr_weight(scales, kind).item() == 1


def test_what_diverges_is_refused():
    scales = Scales(torch.zeros(1).double(), torch.ones(1).double())
    for weight in (truncated_snr_weight, snr_plus_one_weight):
        with pytest.raises(ValueError, match="diverges at zero SNR"):
            weight(scales, "epsilon")
    with pytest.raises(ValueError, match="gamma is 0"):
        min_snr_weight(scales, "sample", gamma=0)
