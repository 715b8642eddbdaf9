from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from nitrodistill.models.guidance import Guided
from nitrodistill.models.noise import clamp_of, noise_of
from nitrodistill.models.preconditioning import EDMPreconditioning
from nitrodistill.prediction import Clamp
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.schedules import DiscreteSchedule, KarrasSchedule, RectifiedFlow
from nitrodistill.types import Condition, NoiseSchedule, PredictionType


def test_discrete_schedulers_give_their_table():
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    schedule, kind, preconditioning = noise_of(scheduler)
    assert isinstance(schedule, DiscreteSchedule)
    assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod.double())
    assert (kind, preconditioning) == ("v_prediction", None)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
@pytest.mark.parametrize("law", ["exponential", "linear"])
def test_a_shift_that_follows_the_resolution_is_diffusers(tokens, law):
    """Flux: the sigmas that its pipeline would sample, from ours."""
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=law, base_shift=0.5, max_shift=1.15,
        base_image_seq_len=256, max_image_seq_len=4096,
    )  # fmt: skip
    schedule, kind, _ = noise_of(scheduler, 1e-3, tokens)
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=mu)
    found = schedule.timesteps(4)
    torch.testing.assert_close(found, scheduler.sigmas[:4].double(), rtol=1e-5, atol=1e-6)
    assert kind == "flow_prediction"


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ],
)
def test_a_fixed_shift(scheduler):
    schedule, kind, _ = noise_of(scheduler)
    assert (schedule, kind) == (RectifiedFlow(1000.0, 3.0), "flow_prediction")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm_schedulers_are_preconditioned_as_diffusers_does(kind, generator):
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.7, prediction_type=kind)
    schedule, prediction_type, preconditioning = noise_of(scheduler)
    assert schedule == KarrasSchedule(0.002, 80.0, 7.0)
    assert prediction_type == "sample"
    assert isinstance(preconditioning, EDMPreconditioning)
    x_t = torch.randn(2, 3, 4, 4, generator=generator)
    raw = torch.randn(2, 3, 4, 4, generator=generator)
    for sigma in (torch.tensor(0.02), torch.tensor(5.0)):
        shown, c_noise = preconditioning.input(x_t, sigma.expand(2))
        torch.testing.assert_close(shown, scheduler.precondition_inputs(x_t, sigma))
        torch.testing.assert_close(c_noise, scheduler.precondition_noise(sigma).expand(2))
        found = preconditioning.denoised(raw, x_t, sigma.expand(2))
        torch.testing.assert_close(found, scheduler.precondition_outputs(x_t, raw, sigma))


def test_others_are_refused():
    with pytest.raises(TypeError, match="CMStochasticIterativeScheduler has no alphas_cumprod"):
        noise_of(diffusers.CMStochasticIterativeScheduler())
    with pytest.raises(ValueError, match=r"sigma_data is 0\.0"):
        EDMPreconditioning(0.0)
    with pytest.raises(ValueError, match="network_type is 'sample'"):
        EDMPreconditioning(0.5, "sample")  # type: ignore[arg-type]


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    # the network is told log(sigma) / 4: 1.638 where the schedule's table says 999
    ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"},
     "timestep_type='continuous'"),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "others must not have them"),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "v_prediction"}, "others must not"),
    ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "needs flow sigmas"),
    ("DDIMScheduler", {"prediction_type": "flow_prediction"}, "needs flow sigmas"),
    ("EDMEulerScheduler", {"sigma_schedule": "exponential"}, "sigma_schedule='exponential'"),
    ("EDMDPMSolverMultistepScheduler", {"sigma_schedule": "exponential"}, "sigma_schedule='karras'"),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas=True"),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas=True"),
    ("FlowMatchEulerDiscreteScheduler", {"use_exponential_sigmas": True}, "use_exponential_sigmas"),
    ("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}, "use_beta_sigmas=False"),
    ("FlowMatchLCMScheduler", {"scale_factors": [0.5, 1.0]}, "scale_factors=None"),
    ("DPMSolverMultistepScheduler", {**FLOW, "use_karras_sigmas": True}, "use_karras_sigmas=True"),
    ("DPMSolverMultistepScheduler", {**FLOW, "use_dynamic_shifting": True}, "use_dynamic_shifting=True"),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting=False"),
    ("HeliosScheduler", {}, "is a flow-matching scheduler that is not read"),
)  # fmt: skip


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_where_the_last_step_begins_is_the_plans(tokens):
    """Qwen-Image's scheduler stretches its grid to end at .02; a timestep's noise level stays t / 1000."""
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(
        shift_terminal=0.02, use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9,
        base_image_seq_len=256, max_image_seq_len=8192,
    )  # fmt: skip
    schedule = noise_of(scheduler, 1e-3, tokens)[0]
    mu = 0.5 + 0.4 * (tokens - 256) / (8192 - 256)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=mu)
    assert float(scheduler.sigmas[3]) == pytest.approx(0.02, rel=1e-5)
    found = schedule(scheduler.timesteps.double() / 1000).sigma
    torch.testing.assert_close(found, scheduler.sigmas[:4].double(), rtol=1e-5, atol=1e-6)
    grid = schedule.timesteps(4)  # before the stretch
    stretched = 1 - (1 - grid) * (1 - 0.02) / (1 - grid[-1])
    torch.testing.assert_close(stretched, scheduler.sigmas[:4].double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_options_that_give_noise_levels_another_meaning_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        noise_of(getattr(diffusers, name)(**options))


def test_options_that_a_class_does_not_take_say_nothing():
    """diffusers keeps them in the config: here the first class's shift, which the second does not apply."""
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_karras_sigmas=True)
    scheduler: Any = diffusers.DPMSolverMultistepScheduler.from_config(flow.config, **FLOW)
    assert scheduler.config.shift == 3.0
    assert noise_of(flow.from_config(flow.config, use_karras_sigmas=False))[0] == RectifiedFlow(
        1000.0, 3.0
    )
    with pytest.raises(ValueError, match="use_karras_sigmas"):
        noise_of(scheduler)  # this one it takes
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        flow.config, **FLOW, use_karras_sigmas=False
    )
    assert noise_of(scheduler)[0] == RectifiedFlow(1000.0, 1.0)
    scheduler.set_timesteps(2)
    torch.testing.assert_close(
        scheduler.sigmas, torch.tensor([0.999, 0.4995, 0.0]), rtol=1e-5, atol=0
    )
    continuous = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="epsilon"
    )
    assert isinstance(noise_of(continuous)[0], DiscreteSchedule), "diffusers applies it to v alone"
    euler = diffusers.EulerDiscreteScheduler(prediction_type="v_prediction")
    ddim: Any = diffusers.DDIMScheduler.from_config(euler.config, timestep_type="continuous")
    assert isinstance(noise_of(ddim)[0], DiscreteSchedule)


@dataclass
class Loud:
    """A denoiser whose x0 leaves [-1, 1]: a random network's."""

    schedule: NoiseSchedule
    prediction_type: PredictionType
    clamp: Clamp | None
    module: nn.Module = field(default_factory=nn.Identity)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return 2 * torch.sin(3 * x_t + 1)


CLAMPING = {
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler")
    and issubclass(getattr(diffusers, name), SchedulerMixin)
    and {"clip_sample", "thresholding"}
    & set(inspect.signature(getattr(diffusers, name).__init__).parameters)
}
# What cannot be run beside our sampler: inverse, without a plain `step`, or not at x0 after one step.
OTHERS = {
    "DEISMultistepScheduler", "SASolverScheduler",
    "CogVideoXDPMScheduler", "DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler",
    "EDMDPMSolverMultistepScheduler", "HeliosScheduler", "RePaintScheduler", "UnCLIPScheduler",
}  # fmt: skip
OPTIONS: tuple[dict[str, Any], ...] = (
    {"clip_sample": True},
    {"clip_sample": True, "clip_sample_range": 0.3},
    {"thresholding": True},
    {"thresholding": True, "sample_max_value": 1.7, "dynamic_thresholding_ratio": 0.8, "clip_sample": True},
    {"thresholding": False, "clip_sample": False},
)  # fmt: skip
EXACT = {  # one step ends at x0
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "solver_order": 1,
    "final_sigmas_type": "zero",
    "timestep_scaling": 1e4,
    "prediction_type": "v_prediction",
}
SEVERAL = {"DDIMScheduler", "DDIMParallelScheduler", "DPMSolverMultistepScheduler"}


def drawn(scheduler: Any, noise: Tensor) -> Tensor:
    generator, x_t = torch.Generator().manual_seed(0), noise
    draws = (
        {"generator": generator}
        if "generator" in inspect.signature(scheduler.step).parameters
        else {}
    )
    if isinstance(scheduler, diffusers.HeunDiscreteScheduler):  # in the sigmas of Karras et al.
        x_t = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(x_t, t)
        prediction = 2 * torch.sin(3 * shown + 1)
        x_t = scheduler.step(prediction, t, x_t, return_dict=False, **draws)[0]
    return x_t


@pytest.mark.parametrize("name", sorted(CLAMPING - OTHERS - {"TCDScheduler"}))
def test_x0_is_clamped_as_the_scheduler_does(name, generator):
    kind = getattr(diffusers, name)
    takes = inspect.signature(kind.__init__).parameters
    noise = torch.randn(2, 3, 8, 8, generator=generator)
    for options in OPTIONS:
        known = {key: value for key, value in {**EXACT, **options}.items() if key in takes}
        scheduler = kind(**known)
        schedule, prediction_type, _ = noise_of(scheduler)
        denoiser = Loud(schedule, prediction_type, clamp_of(scheduler))
        for num_inference_steps in (1, 4) if name in SEVERAL else (1,):
            scheduler.set_timesteps(num_inference_steps)
            plan = StepPlan.from_schedule(schedule, num_inference_steps)
            if name == "HeunDiscreteScheduler":  # starts from other noise than a pipeline of betas
                start = scheduler.init_noise_sigma / (1 + scheduler.init_noise_sigma**2) ** 0.5
                found = sample(denoiser, plan, noise * start, Condition())
            else:
                found = sample(denoiser, plan, noise, Condition())
            torch.testing.assert_close(
                found,
                drawn(scheduler, noise),
                rtol=2e-3,
                atol=2e-3,
                msg=f"{options} {num_inference_steps}",
            )


def test_every_class_that_takes_a_clamp_is_known():
    assert len(CLAMPING) >= 15
    expected = {"TCDScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"}
    for name in sorted(CLAMPING - {"HeliosScheduler"}):  # noise_of refuses it
        kind = getattr(diffusers, name)
        takes = inspect.signature(kind.__init__).parameters
        wanted = {key: True for key in ("clip_sample", "thresholding") if key in takes}
        assert (clamp_of(kind(**wanted)) is None) == (name in expected), name
    ddim: Any = diffusers.DDIMScheduler()
    assert clamp_of(diffusers.PNDMScheduler.from_config(ddim.config)) is None
    assert clamp_of(diffusers.UniPCMultistepScheduler(thresholding=True, predict_x0=False)) is None


def test_guidance_comes_before_the_clamp_and_nan_stays():
    clamp = Clamp(1.0)
    denoiser = Loud(RectifiedFlow(), "flow_prediction", clamp)
    guided = Guided(denoiser, 2.0, Condition({"c": torch.zeros(1, 1)}))
    assert guided.clamp is clamp
    x0 = torch.tensor([[float("nan"), 3.0, -0.5]])
    for each in (clamp, Clamp(2.0, 0.9)):
        assert each(x0)[0, 0].isnan()
    x0 = torch.tensor([[4.0, -1.0, 0.5, 0.0], [0.5, 0.2, 0.1, 0.0]])
    expected = torch.tensor([[1.0, -0.5, 0.25, 0.0], [0.5, 0.2, 0.1, 0.0]])
    torch.testing.assert_close(Clamp(2.0, 1.0)(x0), expected)
