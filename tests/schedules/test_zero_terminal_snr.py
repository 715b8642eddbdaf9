from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from nitrodistill.prediction import to_x0
from nitrodistill.schedules import DiscreteSchedule, KarrasSchedule, RectifiedFlow, ZeroTerminalSNR

SD_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
EXACT = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler")
CLAMPED = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler")
REFUSED = (
    "PNDMScheduler",
    "HeunDiscreteScheduler",
    "DEISMultistepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "DPMSolverSinglestepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "EDMEulerScheduler",
)


def closed_form(betas: np.ndarray) -> np.ndarray:
    """Algorithm 1 of Lin et al. 2023, line by line, in numpy's longdouble."""
    root = np.sqrt(np.cumprod(1 - betas.astype(np.longdouble)))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alphas = root[1:] ** 2 / root[:-1] ** 2
    return 1 - np.concatenate([root[:1] ** 2, alphas])


def test_betas_equal_the_closed_form_and_diffusers():
    ours = ZeroTerminalSNR().rescale_betas(SD_BETAS)
    np.testing.assert_allclose(ours.numpy(), closed_form(SD_BETAS.numpy()), atol=1e-12, rtol=0)
    assert (ours - rescale_zero_terminal_snr(SD_BETAS)).abs().max() < 1e-6
    assert ours[-1] == 1
    # Their own float32 rounding, not ours: 5.5e-6 on the last betas.
    assert (ours - rescale_zero_terminal_snr(SD_BETAS.float())).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float64(dtype):
    rounded = SD_BETAS.to(dtype)
    ours = ZeroTerminalSNR().rescale_betas(rounded)
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(
        ours.numpy(), closed_form(rounded.double().numpy()), atol=1e-12, rtol=0
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-5, 0.5), min_size=2, max_size=200))
def test_any_schedule_ends_in_noise_and_keeps_its_first_value(values):
    betas = torch.tensor(values, dtype=torch.float64)
    rescale = ZeroTerminalSNR()
    once = rescale.rescale_betas(betas)
    cumulative = (1 - once).cumprod(0)
    assert cumulative[-1] == 0
    assert torch.isclose(cumulative[0], 1 - betas[0], rtol=1e-12, atol=0)
    assert bool((cumulative.diff() < 0).all())
    torch.testing.assert_close(rescale.rescale_betas(once), once, rtol=1e-10, atol=1e-12)
    assert torch.equal(betas, torch.tensor(values, dtype=torch.float64)), "must not mutate"


def test_idempotent_on_alphas_cumprod_bit_for_bit():
    once = ZeroTerminalSNR().rescale_alphas_cumprod((1 - SD_BETAS).cumprod(0))
    assert torch.equal(ZeroTerminalSNR().rescale_alphas_cumprod(once), once)
    assert once[0] == (1 - SD_BETAS)[0]


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", [*EXACT, *CLAMPED])
def test_one_step_is_x0(name, prediction_type, generator):
    given_scheduler = getattr(diffusers, name)(prediction_type=prediction_type)
    scheduler = ZeroTerminalSNR()(given_scheduler)
    assert type(scheduler) is type(given_scheduler)
    assert not given_scheduler.config.rescale_betas_zero_snr, "must not mutate"
    scheduler.set_timesteps(1)
    noise = torch.randn(2, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    prediction = torch.randn(2, 4, 8, 8, generator=generator)
    t = scheduler.timesteps[0]
    assert int(t) == 999
    scheduler.scale_model_input(noise, t)
    x0 = scheduler.step(prediction, t, noise).prev_sample
    expected = -prediction if prediction_type == "v_prediction" else prediction
    tolerance = 1e-6 if name in EXACT else 2e-3
    torch.testing.assert_close(x0, expected, rtol=0, atol=tolerance)
    if name in EXACT:
        assert scheduler.alphas_cumprod[-1] == 0


def test_tcd_is_accepted():
    scheduler = diffusers.TCDScheduler(prediction_type="v_prediction")
    assert ZeroTerminalSNR()(scheduler).alphas_cumprod[-1] == 0


@pytest.mark.parametrize("name", REFUSED)
def test_schedulers_that_cannot_are_refused_with_a_way_out(name):
    with pytest.raises(ValueError, match=r"replace it by one that can|leave it as it is"):
        ZeroTerminalSNR()(getattr(diffusers, name)())


def test_flow_prediction_is_refused():
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    with pytest.raises(ValueError, match="pure noise already"):
        ZeroTerminalSNR()(scheduler)


def test_epsilon_is_refused_unless_asked_for():
    scheduler = diffusers.DDIMScheduler(prediction_type="epsilon")
    with pytest.raises(ValueError, match="allow_epsilon=True"):
        ZeroTerminalSNR()(scheduler)
    assert ZeroTerminalSNR(allow_epsilon=True)(scheduler).alphas_cumprod[-1] == 0


@pytest.mark.parametrize("schedule", [RectifiedFlow(), KarrasSchedule(), object()])
def test_what_has_no_betas_is_refused(schedule):
    with pytest.raises(TypeError, match="cannot be rescaled"):
        ZeroTerminalSNR()(schedule)


def test_a_schedule_gives_a_new_one():
    schedule = DiscreteSchedule((1 - SD_BETAS).cumprod(0))
    rescaled = ZeroTerminalSNR()(schedule)
    assert rescaled.alphas_cumprod[-1] == 0
    assert schedule.alphas_cumprod[-1] > 0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(1e-4, 0.3), min_size=2, max_size=60),
    st.sampled_from(["DDIMScheduler", "DDPMScheduler", "LCMScheduler"]),
)
def test_any_scheduler_ends_in_noise_and_draws_minus_v(values, name):
    """Over random betas: add_noise == noise and get_velocity == -x0 bit for bit, one step == -v."""
    given_scheduler = getattr(diffusers, name)(
        num_train_timesteps=len(values),
        trained_betas=values,
        prediction_type="v_prediction",
        **({"original_inference_steps": 1} if name == "LCMScheduler" else {}),
    )
    scheduler = ZeroTerminalSNR()(given_scheduler)
    x0, noise = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(len(values)))
    last = torch.full((2,), len(values) - 1)
    assert torch.equal(scheduler.add_noise(x0, noise, last), noise)
    assert torch.equal(scheduler.get_velocity(x0, noise, last), -x0)
    schedule = DiscreteSchedule.from_scheduler(scheduler)
    denoised = to_x0(x0, noise, schedule(last), "v_prediction")
    assert torch.equal(denoised, -x0)


def test_at_the_last_timestep_noising_is_noise_and_velocity_is_minus_x0(generator):
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    scheduler = ZeroTerminalSNR()(diffusers.DDIMScheduler(prediction_type="v_prediction"))
    last = torch.full((3,), 999)
    assert torch.equal(scheduler.add_noise(x0, noise, last), noise)
    assert torch.equal(scheduler.get_velocity(x0, noise, last), -x0)
    scales = DiscreteSchedule.from_scheduler(scheduler)(last)
    assert torch.equal(scales.mix(x0, noise), noise)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        (torch.ones(3, 3) * 0.1, "must be \\(T,\\)"),
        (torch.tensor([0.1]), "must be \\(T,\\)"),
        (torch.tensor([0.1, 1.5]), "in \\(0, 1\\]"),
        (torch.tensor([0.0, 0.1]), "in \\(0, 1\\]"),
        (torch.tensor([float("nan"), 0.1]), "in \\(0, 1\\]"),
        (torch.tensor([0.1, 1.0, 1.0]), "pure noise there already"),
    ],
)
def test_bad_betas(betas, message):
    with pytest.raises(ValueError, match=message):
        ZeroTerminalSNR().rescale_betas(betas)
