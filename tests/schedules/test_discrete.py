from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from nitrodistill.prediction import check_convertible
from nitrodistill.schedules import DiscreteSchedule, ZeroTerminalSNR
from nitrodistill.timesteps import Uniform
from nitrodistill.types import NoiseSchedule


@pytest.fixture
def scheduler():
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.fixture
def schedule(scheduler):
    return DiscreteSchedule.from_scheduler(scheduler)


def test_add_noise_equals_diffusers(scheduler, schedule, generator):
    x0, noise = torch.randn(2, 6, 4, 8, 8, generator=generator)
    t = torch.tensor([0, 1, 250, 500, 998, 999])
    theirs = scheduler.add_noise(x0, noise, t)
    torch.testing.assert_close(schedule(t).mix(x0, noise), theirs, rtol=0, atol=1e-6)


def test_known_values_of_stable_diffusion(schedule):
    """alpha at t = 249 .. 999 as tabulated for the scaled-linear schedule."""
    alpha, sigma = schedule(torch.tensor([249, 399, 499, 749, 999]))
    expected = torch.tensor([0.8218, 0.6528, 0.5269, 0.2380, 0.06826], dtype=torch.float64)
    torch.testing.assert_close(alpha, expected, rtol=0, atol=5e-5)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(5, dtype=torch.float64))


RESCALES = [
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler")
    and "rescale_betas_zero_snr" in inspect.signature(getattr(diffusers, name).__init__).parameters
]


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", RESCALES)
def test_zero_snr_is_exactly_zero_however_it_is_stored(name, betas):
    """Euler, Euler ancestral, DPM++ and UniPC store 2^-24, which over linear betas even rises at the end."""
    scheduler = getattr(diffusers, name)(beta_schedule=betas, rescale_betas_zero_snr=True)
    schedule = DiscreteSchedule.from_scheduler(scheduler)
    table = schedule.alphas_cumprod
    assert table[-1] == 0
    assert torch.equal(table[:-1], scheduler.alphas_cumprod[:-1].double())
    if not name.startswith("CogVideoX"):  # which rescales behind its betas
        assert torch.equal(table, (1 - scheduler.betas).cumprod(0).double())
    assert torch.equal(ZeroTerminalSNR()(schedule).alphas_cumprod, table)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        check_convertible(schedule(torch.tensor(999)), "epsilon")


def test_a_flag_that_its_class_does_not_take_rescales_nothing():
    """diffusers keeps other classes' options in the config."""
    rescaled = DDIMScheduler(rescale_betas_zero_snr=True)
    scheduler = diffusers.PNDMScheduler.from_config(rescaled.config)
    assert scheduler.config.rescale_betas_zero_snr
    assert DiscreteSchedule.from_scheduler(scheduler).alphas_cumprod[-1] > 0


@pytest.mark.parametrize("num_inference_steps", [1, 4, 7, 25, 50, 999, 1000])
def test_the_trailing_grid_is_diffusers(scheduler, schedule, num_inference_steps):
    trailing = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    trailing.set_timesteps(num_inference_steps)
    assert torch.equal(schedule.timesteps(num_inference_steps), trailing.timesteps)


def test_the_trailing_grid_is_exact_where_diffusers_adds_up(scheduler, schedule):
    """Against whole numbers, for every step count; and how often diffusers' own grid is another."""
    trailing: Any = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    longer, others = [], []
    for n in range(1, 1001):
        whole, rest = np.divmod(1000 * np.arange(n, 0, -1), n)
        up = (2 * rest > n) | ((2 * rest == n) & (whole % 2 == 1))  # halves to even
        exact = (whole + up - 1).tolist()
        assert schedule.timesteps(n).tolist() == exact
        trailing.set_timesteps(n)
        theirs = trailing.timesteps.tolist()
        if len(theirs) != n:
            longer.append(n)
        elif theirs != exact:
            others.append(n)
            assert max(abs(a - b) for a, b in zip(theirs, exact, strict=True)) == 1
    assert (longer[0], others[0]) == (61, 48)
    assert (len(longer), len(others)) == (62, 49)


@pytest.mark.parametrize("num_timesteps", [2, 3, 10, 999, 1000, 1500])
def test_timestep_and_fraction_are_inverse(num_timesteps):
    schedule = DiscreteSchedule(torch.linspace(0.9, 0, num_timesteps))
    t = torch.arange(num_timesteps)
    assert torch.equal(schedule.timestep(schedule.fraction(t)), t)
    assert torch.equal(schedule.timestep(schedule.fraction(t).float()), t)
    assert isinstance(schedule, NoiseSchedule)


def test_a_uniform_fraction_is_a_uniform_timestep(schedule):
    """As randint: every timestep as often as any other, the ends too."""
    r = (torch.arange(30_000, dtype=torch.float64) + 0.5) / 30_000
    assert torch.equal(schedule.timestep(Uniform()(r)).bincount(), torch.full((1000,), 30))
    part = schedule.timestep(Uniform(((0.0, 0.75),))(r))  # the published 0 ... 749
    assert torch.equal(part.bincount(), torch.full((750,), 40))
    assert schedule.timestep(torch.tensor([0.0, 1.0, 1 - 2**-24])).tolist() == [0, 999, 999]


def test_the_table_is_a_copy(schedule):
    schedule.alphas_cumprod.zero_()
    assert schedule.alphas_cumprod[0] > 0.9


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.tensor([0.9]), "T >= 2"),
        (torch.tensor([0.9, 0.95]), "decrease"),
        (torch.tensor([1.2, 0.5]), r"\[0, 1\]"),
        (torch.tensor([float("nan"), 0.5]), r"\[0, 1\]"),
    ],
)
def test_bad_tables(table, message):
    with pytest.raises(ValueError, match=message):
        DiscreteSchedule(table)


def test_bad_calls(schedule):
    with pytest.raises(TypeError, match="integers"):
        schedule(torch.tensor(0.5))
    with pytest.raises(TypeError, match="RectifiedFlow"):
        DiscreteSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler())
    flow = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    with pytest.raises(TypeError, match="no alphas_cumprod in use"):
        DiscreteSchedule.from_scheduler(flow)
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        schedule.timesteps(0)
