from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from hypothesis import given, settings
from hypothesis import strategies as st

from nitrodistill.prediction import to_x0
from nitrodistill.schedules import DiscreteSchedule, KarrasSchedule, RectifiedFlow, ZeroTerminalSNR

SD_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
EXACT = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler")
CLAMPED = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler")
REQUIRED = {
    "AmusedScheduler": {"mask_token_id": 0},
    "VQDiffusionScheduler": {"num_vec_classes": 2},
    "RFD4ProteinaScheduler": {
        "schedule_mode": "log", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0
    },
}  # fmt: skip
EVERY = {
    name: getattr(diffusers, name)
    for name in dir(diffusers)
    if name.endswith("Scheduler") and issubclass(getattr(diffusers, name), SchedulerMixin)
}

# Every option of a class that rescales, with values other than its default.
VALUES: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (100, 37, 1500),
    "beta_start": (1e-3,),
    "beta_end": (0.05,),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": ([0.001 + i * 1e-5 for i in range(1000)],),
    "snr_shift_scale": (1.0,),
    "prediction_type": ("sample",),
    "rescale_betas_zero_snr": (True,),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "timestep_type": ("continuous",),
    "steps_offset": (1, 7),
    "set_alpha_to_one": (False,),
    "final_sigmas_type": ("sigma_min",),
    "clip_sample": (True, False),
    "clip_sample_range": (0.1,),
    "thresholding": (True,),
    "dynamic_thresholding_ratio": (0.5,),
    "sample_max_value": (0.5,),
    "variance_type": ("fixed_small", "fixed_large", "learned", "learned_range"),
    "interpolation_type": ("log_linear",),
    "use_karras_sigmas": (True,),
    "use_exponential_sigmas": (True,),
    "use_beta_sigmas": (True,),
    "use_lu_lambdas": (True,),
    "use_flow_sigmas": (True,),
    "flow_shift": (3.0,),
    "shift_terminal": (),  # diffusers takes it with flow sigmas alone
    "use_dynamic_shifting": (True,),
    "time_shift_type": (),  # it has one value
    "sigma_min": (0.1,),
    "sigma_max": (10.0,),
    "lambda_min_clipped": (-5.1,),
    "solver_order": (1, 3),
    "solver_type": ("midpoint", "heun", "bh1", "bh2"),
    "solver_p": (diffusers.DDIMScheduler(),),
    "algorithm_type": ("sde-dpmsolver++",),  # with the others diffusers never makes x0
    "lower_order_final": (False,),
    "euler_at_final": (True,),
    "predict_x0": (False,),
    "disable_corrector": ([0],),
    "original_inference_steps": (1000, 30),
    "timestep_scaling": (1.0, 1000.0),
}

# The classes that are taken, and what of their options is refused; every other class is refused.
TAKEN: dict[str, set[tuple[str, Any]]] = {
    "CogVideoXDDIMScheduler": set(),
    "DDIMParallelScheduler": set(),
    "DDIMScheduler": set(),
    # these add noise after their only step
    "DDPMParallelScheduler": {("variance_type", kind) for kind in VALUES["variance_type"][1:]},
    "DDPMScheduler": {("variance_type", kind) for kind in VALUES["variance_type"][1:]},
    "DPMSolverMultistepScheduler": {("use_flow_sigmas", True)},
    "EulerAncestralDiscreteScheduler": {("prediction_type", "sample")},
    "EulerDiscreteScheduler": set(),
    "LCMScheduler": {("num_train_timesteps", 37), ("original_inference_steps", 30)},
    "UniPCMultistepScheduler": {
        ("use_flow_sigmas", True),
        ("solver_type", "bh1"),
        ("predict_x0", False),
        ("solver_p", VALUES["solver_p"][0]),
    },
}


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


def one_step_error(scheduler: Any) -> float:
    """How far one step from the last timestep is off x0, relative to its standard deviation of 2."""
    last, generator = len(scheduler.betas) - 1, torch.Generator().manual_seed(0)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [last]
    noise, prediction = torch.randn(2, 2, 3, 8, 8, generator=generator)
    x_t, prediction = noise * scheduler.init_noise_sigma, 2 * prediction
    x0 = -prediction if scheduler.config.prediction_type == "v_prediction" else prediction
    scheduler.scale_model_input(x_t, last)
    found = scheduler.step(prediction, scheduler.timesteps[0], x_t, return_dict=False)[0]
    return float((found - x0).abs().max()) / 2


@pytest.mark.parametrize("name", TAKEN)
def test_every_option_keeps_the_promise_or_is_refused(name):
    """The last timestep is visited and one step is x0, whatever else the options say."""
    kind = EVERY[name]
    options = [key for key in inspect.signature(kind.__init__).parameters if key != "self"]
    assert set(options) <= set(VALUES), "an option that diffusers has added: give it other values"
    refused = set()
    for option in options:
        for value in VALUES[option]:
            wanted = {"prediction_type": "v_prediction", "beta_schedule": "linear", option: value}
            try:
                rescaled = ZeroTerminalSNR()(kind(**wanted))
            except ValueError:
                refused.add((option, value))
                continue
            assert DiscreteSchedule.from_scheduler(rescaled).alphas_cumprod[-1] == 0
            assert one_step_error(rescaled) < 1e-3, (option, value)
            again = ZeroTerminalSNR()(rescaled)
            assert again.config == rescaled.config, "rescaling twice changes nothing"
    assert refused == {pair for pair in TAKEN[name] if pair[0] in options}


@pytest.mark.parametrize("name", sorted(set(EVERY) - set(TAKEN)))
def test_schedulers_that_cannot_are_refused_with_a_way_out(name):
    way_out = "one that can|leave it as it is|cannot be rescaled|no terminal signal"
    scheduler = EVERY[name](**REQUIRED.get(name, {}))
    with pytest.raises((ValueError, TypeError), match=way_out):
        ZeroTerminalSNR(allow_epsilon=True)(scheduler)
    if "prediction_type" in inspect.signature(EVERY[name].__init__).parameters:
        rescaled = diffusers.DDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True
        )
        scheduler = EVERY[name].from_config(rescaled.config)  # keeps the flag, and does not take it
        with pytest.raises(ValueError, match=way_out):
            ZeroTerminalSNR()(scheduler)


def test_a_refusal_names_the_options():
    scheduler = diffusers.LCMScheduler(
        prediction_type="v_prediction", original_inference_steps=30, beta_end=0.02
    )
    with pytest.raises(
        ValueError, match=r"visits t=\[989\], not 999.*\(original_inference_steps\)"
    ):
        ZeroTerminalSNR()(scheduler)


def test_the_probe_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ZeroTerminalSNR()(diffusers.DDPMScheduler(prediction_type="v_prediction"))
    assert torch.equal(torch.get_rng_state(), before)


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
        **(
            {"original_inference_steps": 1, "timestep_scaling": 1e4}
            if name == "LCMScheduler"
            else {}
        ),
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
