from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from nitrodistill.sampling import Step, StepPlan, predict_x0, sample
from nitrodistill.schedules import DiscreteSchedule, KarrasSchedule, RectifiedFlow
from nitrodistill.types import Condition, NoiseSchedule, PredictionType, Scales, expand


@dataclass
class Gaussian:
    """The exact denoiser of x0 ~ N(mean, std^2): E[x0 | x_t] is linear in x_t."""

    schedule: NoiseSchedule
    prediction_type: PredictionType = "sample"
    mean: float = 1.5
    std: float = 0.5
    module: nn.Module = field(default_factory=nn.Identity)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = (expand(s, x_t).to(x_t.dtype) for s in self.schedule(t))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        x0 = self.mean + gain * (x_t - alpha * self.mean)
        if self.prediction_type == "sample":
            return x0
        eps = (x_t - alpha * x0) / sigma
        return {"epsilon": eps, "flow_prediction": eps - x0}[self.prediction_type]


NOTHING = Condition()


@pytest.mark.parametrize("schedule", [RectifiedFlow(), KarrasSchedule()])
def test_the_ode_carries_noise_to_the_gaussian_by_quantiles(schedule, generator):
    """The probability-flow ODE of a Gaussian maps noise n to mean + std n."""
    noise = torch.randn(64, 1, generator=generator, dtype=torch.float64)
    plan = StepPlan.from_schedule(schedule, 400)
    x0 = sample(Gaussian(schedule), plan, noise, NOTHING)
    torch.testing.assert_close(x0, 1.5 + 0.5 * noise, rtol=0, atol=0.04)


@pytest.mark.parametrize("num_inference_steps", [1, 4, 25])
def test_ode_equals_diffusers_ddim(num_inference_steps, generator):
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    denoiser = Gaussian(DiscreteSchedule.from_scheduler(scheduler), "epsilon")
    noise = x = torch.randn(2, 4, 8, 8, generator=generator)
    scheduler.set_timesteps(num_inference_steps)
    for t in scheduler.timesteps:
        x = scheduler.step(denoiser(x, t, NOTHING), t, x).prev_sample
    plan = StepPlan.from_schedule(denoiser.schedule, num_inference_steps)
    torch.testing.assert_close(sample(denoiser, plan, noise, NOTHING), x, rtol=1e-4, atol=1e-4)


def test_ode_equals_diffusers_flow_euler(generator):
    schedule = RectifiedFlow(shift=3.0)
    denoiser = Gaussian(schedule, "flow_prediction")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - i / 6 for i in range(6)])
    noise = x = torch.randn(2, 4, 8, 8, generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(denoiser(x, t, NOTHING), t, x).prev_sample
    ours = sample(denoiser, StepPlan.from_schedule(schedule, 6), noise, NOTHING)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-5)


def test_ode_equals_diffusers_euler_discrete(generator):
    """Euler in sigma is DDIM: EulerDiscrete on Stable Diffusion's betas, up to its start's scale."""
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="trailing",
    )
    denoiser = Gaussian(DiscreteSchedule.from_scheduler(scheduler), "epsilon")
    scheduler.set_timesteps(10)
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    sigma = scheduler.sigmas[0]
    x = noise * (sigma**2 + 1) ** 0.5
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(denoiser(scaled, t.long(), NOTHING), t, x).prev_sample
    plan = StepPlan.from_schedule(denoiser.schedule, 10)
    torch.testing.assert_close(sample(denoiser, plan, noise, NOTHING), x, rtol=1e-3, atol=1e-3)


def test_renoise_draws_from_the_gaussian(generator):
    """With an exact denoiser of a point mass, few-step renoising ends at the point."""
    schedule = RectifiedFlow()
    plan = StepPlan.from_schedule(schedule, 4, "renoise")
    noise = torch.randn(16, 2, generator=generator)
    calls: list[int] = []

    def fresh(i: int) -> Tensor:
        calls.append(i)
        return torch.randn(16, 2, generator=generator)

    x0 = sample(Gaussian(schedule, std=0.0), plan, noise, NOTHING, fresh)
    torch.testing.assert_close(x0, torch.full_like(x0, 1.5))
    assert calls == [1, 2, 3]


def test_a_nitro_step_is_fed_noise_and_read_elsewhere(generator):
    """Nitro-PixArt: pure noise in, t = 400 told, x0 = (noise - sigma eps) / alpha at t = 400."""
    schedule = DiscreteSchedule((1 - torch.linspace(1e-4, 0.02, 1000).double()).cumprod(0))
    denoiser = Gaussian(schedule, "epsilon")
    noise = torch.randn(3, 4, generator=generator)
    x0 = sample(denoiser, StepPlan.from_noise(schedule, 400), noise, NOTHING)
    eps = denoiser(noise, torch.tensor(400), NOTHING)
    torch.testing.assert_close(x0, (noise - 0.8980 * eps) / 0.4400, rtol=1e-3, atol=1e-3)


def test_a_plan_gives_every_sample_its_step(generator):
    schedule = RectifiedFlow()
    plan = StepPlan.from_schedule(schedule, 4)
    step = plan.at(torch.tensor([0.0, 0.3, 0.99]))
    assert step.t.tolist() == [1000, 750, 250]
    x_t = torch.randn(3, 2, generator=generator)
    together = predict_x0(Gaussian(schedule), step, x_t, NOTHING)
    for i, k in enumerate((0, 1, 3)):
        alone = predict_x0(Gaussian(schedule), plan.steps[k], x_t[i : i + 1], NOTHING)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_epsilon_at_zero_snr_is_refused_when_composed():
    with pytest.raises(ValueError, match="zero terminal SNR"):
        StepPlan.from_schedule(RectifiedFlow(), 2).check("epsilon")
    assert StepPlan.from_schedule(RectifiedFlow(), 2).check("v_prediction")


@pytest.mark.parametrize("t", [-5, 1000, 400.7])
def test_a_timestep_that_the_network_does_not_have(t):
    schedule = DiscreteSchedule((1 - torch.linspace(1e-4, 0.02, 1000).double()).cumprod(0))
    with pytest.raises(ValueError, match=rf"timestep {t} is not one .* 0 to 999, whole numbers"):
        StepPlan.from_noise(schedule, t)


def test_half_precision_comes_out_wide(generator):
    schedule = RectifiedFlow()
    noise = torch.randn(2, 3, generator=generator).bfloat16()
    assert sample(Gaussian(schedule), StepPlan.from_schedule(schedule), noise, NOTHING).dtype == (
        torch.float32
    )


def test_bad_plans(generator):
    flow = RectifiedFlow()
    noise = torch.randn(1, 2, generator=generator)
    with pytest.raises(ValueError, match="at least one step"):
        StepPlan(())
    with pytest.raises(ValueError, match="transition is 'jump'"):
        StepPlan.from_schedule(flow, 2, "jump")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass renoise"):
        sample(Gaussian(flow), StepPlan.from_schedule(flow, 2, "renoise"), noise, NOTHING)
    one, two = torch.ones(()), torch.ones(2)
    with pytest.raises(ValueError, match="zero-dimensional"):
        Step(one, Scales(two, two), Scales(one, one))


@pytest.mark.parametrize(
    ("schedule", "t"),
    [
        (RectifiedFlow(1.0), 0.7),
        (KarrasSchedule(), 0.002),
        (KarrasSchedule(), 80.0),
        (KarrasSchedule(), 0.3),
    ],
)
def test_a_plan_from_noise_takes_timesteps_that_float32_cannot_hold(schedule, t):
    assert StepPlan.from_noise(schedule, t).timesteps().tolist() == [t]
