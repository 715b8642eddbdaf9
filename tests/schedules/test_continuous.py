from __future__ import annotations

import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from nitrodistill.schedules import KarrasSchedule, RectifiedFlow
from nitrodistill.types import NoiseSchedule

U = torch.linspace(0, 1, 11, dtype=torch.float64)


@pytest.mark.parametrize(
    "schedule", [RectifiedFlow(), RectifiedFlow(t_max=1, shift=3), KarrasSchedule()]
)
def test_timestep_and_fraction_are_inverse_and_snr_falls(schedule):
    t = schedule.timestep(U)
    torch.testing.assert_close(schedule.fraction(t), U, rtol=0, atol=1e-12)
    snr = schedule(t[1:]).snr()
    assert bool((snr.diff() < 0).all())
    assert isinstance(schedule, NoiseSchedule)


def test_flow_is_a_straight_line_and_ends_in_noise(generator):
    x0, noise = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    flow = RectifiedFlow(t_max=1000)
    x_t = flow(torch.full((3,), 250.0)).mix(x0, noise)
    torch.testing.assert_close(x_t, 0.75 * x0 + 0.25 * noise)
    assert torch.equal(flow(torch.full((3,), 1000.0)).mix(x0, noise), noise)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_flow_grid_is_diffusers(shift):
    num_inference_steps = 4
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(
        sigmas=[1 - i / num_inference_steps for i in range(num_inference_steps)]
    )
    ours = RectifiedFlow(t_max=1000, shift=shift).timesteps(num_inference_steps)
    torch.testing.assert_close(ours.float(), scheduler.timesteps, rtol=1e-6, atol=1e-4)


def test_the_karras_grid_is_diffusers():
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(10)
    ours = KarrasSchedule().timesteps(10)
    torch.testing.assert_close(ours.float(), scheduler.sigmas[:-1], rtol=1e-5, atol=1e-6)
    assert KarrasSchedule().timesteps(1).tolist() == pytest.approx([80.0])
    assert KarrasSchedule().prior_scale == scheduler.init_noise_sigma


@pytest.mark.parametrize(
    "make",
    [
        lambda: RectifiedFlow(t_max=0),
        lambda: RectifiedFlow(shift=-1),
        lambda: KarrasSchedule(sigma_min=2, sigma_max=1),
        lambda: RectifiedFlow().timesteps(0),
        lambda: KarrasSchedule().timesteps(0),
    ],
)
def test_bad_values(make):
    with pytest.raises(ValueError, match="must"):
        make()
