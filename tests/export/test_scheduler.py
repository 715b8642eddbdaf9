"""Schedulers built for plans: exact in one step against the plan's formula, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from nitrodistill.export import scheduler_for_plan
from nitrodistill.prediction import to_x0
from nitrodistill.sampling import Step, StepPlan, Transition
from nitrodistill.schedules import DiscreteSchedule, KarrasSchedule, RectifiedFlow, ZeroTerminalSNR
from nitrodistill.types import Scales

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def one_step(scheduler: Any, prediction: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    scheduler.set_timesteps(1)
    return scheduler.step(prediction, scheduler.timesteps[0], noise).prev_sample


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize(
    ("betas", "t", "prediction_type"),
    [
        (SCALED_LINEAR, 999, "epsilon"),  # Nitro-SD2.1: pure noise, unrescaled conversion
        (LINEAR, 400, "epsilon"),  # Nitro-PixArt
        (SCALED_LINEAR, 399, "epsilon"),  # DMD2-SDXL
        (SCALED_LINEAR, 700, "v_prediction"),
        ({"beta_schedule": "squaredcos_cap_v2"}, 500, "sample"),
    ],
)
def test_one_step_is_the_plans_x0(
    betas: dict[str, Any], t: int, prediction_type: Any, kind: str
) -> None:
    teacher = DDIMScheduler(**betas, prediction_type=prediction_type)
    schedule = DiscreteSchedule.from_scheduler(teacher)
    plan = StepPlan.from_noise(schedule, t)
    scheduler = scheduler_for_plan(plan, teacher, prediction_type, kind)
    generator = torch.Generator().manual_seed(0)
    noise, prediction = torch.randn(2, 3, 4, 8, 8, generator=generator)
    expected = to_x0(prediction, noise, schedule(torch.tensor(t)), prediction_type)
    error = (one_step(scheduler, prediction, noise) - expected).abs().max()
    assert error <= 1e-5 * max(1, expected.abs().max())
    assert scheduler.timesteps.tolist() == [t]
    assert scheduler.config.get("rescale_betas_zero_snr") is False


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 18])
def test_edm_is_drawn_on_its_own_grid(steps: int, kind: Any) -> None:
    about = {"sigma_min": 0.01, "sigma_max": 40.0, "rho": 5.0}
    teacher = EDMEulerScheduler(**about, sigma_data=0.7, prediction_type=kind)
    plan = StepPlan.from_schedule(KarrasSchedule(**about), steps)
    scheduler = scheduler_for_plan(plan, teacher, "sample")
    assert type(scheduler).__name__ == "EDMDPMSolverMultistepScheduler"
    for table in (scheduler, teacher):
        table.set_timesteps(steps)
    torch.testing.assert_close(scheduler.sigmas, teacher.sigmas)
    assert scheduler.init_noise_sigma == pytest.approx(float(plan.steps[0].input.sigma), rel=1e-12)
    assert scheduler.config.prediction_type == kind


@pytest.mark.parametrize(
    ("plan", "kind", "message"),
    [
        (StepPlan.from_schedule(KarrasSchedule(), 2, "renoise"), None, "without fresh noise"),
        (StepPlan.from_noise(KarrasSchedule(), 10), None, "step 1 at 1.09"),
        (StepPlan.from_schedule(KarrasSchedule()), "EDMEulerScheduler", "the default, draws"),
        (StepPlan.from_schedule(KarrasSchedule(sigma_max=70.0)), None, "step 1 at 1.09"),
    ],
)
def test_what_edms_schedulers_cannot_draw(plan: StepPlan, kind: str | None, message: str) -> None:
    """Euler's x - (x - x0) at sigma 80 is off by 80 times float32's rounding."""
    with pytest.raises(ValueError, match=f"cannot express this plan of .*{message}"):
        scheduler_for_plan(plan, EDMEulerScheduler(), "sample", kind)


@pytest.mark.parametrize("teacher_class", [DDIMScheduler, DDPMScheduler])
def test_the_zero_snr_flag_follows_the_plan(teacher_class: Any) -> None:
    teacher = teacher_class(**SCALED_LINEAR, prediction_type="v_prediction")
    schedule = DiscreteSchedule.from_scheduler(teacher)
    for schedule_used, flag in ((schedule, False), (ZeroTerminalSNR()(schedule), True)):
        scheduler = scheduler_for_plan(
            StepPlan.from_schedule(schedule_used), teacher, "v_prediction"
        )
        assert scheduler.config.rescale_betas_zero_snr is flag
        assert scheduler.config.timestep_spacing == "trailing"
        assert scheduler.config.clip_sample is False
        assert scheduler.config.set_alpha_to_one is True
    noise, v = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one_step(scheduler, v, noise), -v, rtol=0, atol=0)


@pytest.mark.parametrize("teacher_class", [EulerDiscreteScheduler, UniPCMultistepScheduler])
def test_a_teacher_that_stores_zero_snr_as_almost_zero(teacher_class: Any) -> None:
    teacher = teacher_class(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    plan = StepPlan.from_schedule(DiscreteSchedule.from_scheduler(teacher))
    scheduler = scheduler_for_plan(plan, teacher, "v_prediction")
    noise, v = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one_step(scheduler, v, noise), -v, rtol=0, atol=0)


def test_a_pndm_teacher_gets_a_ddim_student() -> None:
    teacher = PNDMScheduler(**SCALED_LINEAR, skip_prk_steps=True)
    plan = StepPlan.from_noise(DiscreteSchedule.from_scheduler(teacher), 999)
    scheduler = scheduler_for_plan(plan, teacher, "epsilon")
    assert isinstance(scheduler, DDIMScheduler)
    assert "skip_prk_steps" not in scheduler.config


def test_a_rescaled_table_is_cut_by_its_betas() -> None:
    teacher = ZeroTerminalSNR()(DDIMScheduler(**SCALED_LINEAR, prediction_type="v_prediction"))
    plan = StepPlan.from_noise(DiscreteSchedule.from_scheduler(teacher), 600)
    scheduler = scheduler_for_plan(plan, teacher, "v_prediction")
    assert len(scheduler.config.trained_betas) == 601


def test_several_ode_steps_are_ddim() -> None:
    teacher = DDIMScheduler(**SCALED_LINEAR, prediction_type="v_prediction")
    plan = StepPlan.from_schedule(DiscreteSchedule.from_scheduler(teacher), 4)
    assert scheduler_for_plan(plan, teacher, "v_prediction").timesteps.tolist() == [
        999,
        749,
        499,
        249,
    ]
    with pytest.raises(ValueError, match="DDPMScheduler cannot express"):
        scheduler_for_plan(plan, teacher, "v_prediction", "DDPMScheduler")
    plan = StepPlan.from_schedule(DiscreteSchedule.from_scheduler(teacher), 3)
    scheduler = scheduler_for_plan(plan, teacher, "v_prediction")
    assert isinstance(scheduler, DPMSolverMultistepScheduler), "DDIM steps by T // 3"
    assert scheduler.timesteps.tolist() == [999, 666, 332]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_steps_that_renoise_are_lcm(prediction_type: Any) -> None:
    """DMD2's four steps, which LCM's defaults would put at 999, 759, 499, 259."""
    teacher = DDIMScheduler(**SCALED_LINEAR, prediction_type=prediction_type)
    plan = StepPlan.from_schedule(DiscreteSchedule.from_scheduler(teacher), 4, "renoise")
    scheduler = scheduler_for_plan(plan, teacher, prediction_type)
    assert isinstance(scheduler, LCMScheduler)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    noise, prediction = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    fresh = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    first, second = plan.steps[:2]
    x0 = to_x0(prediction, noise, first.output, prediction_type)
    expected = second.input.alpha.float() * x0 + second.input.sigma.float() * fresh
    found: Any = scheduler.step(prediction, 999, noise, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(found.prev_sample, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transition", ["ode", "renoise"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_inference_steps", [1, 2, 4, 7])
@pytest.mark.parametrize("from_call", [False, True])
def test_a_flows_config_holds_the_plans_sigmas(
    num_inference_steps: int, shift: float, transition: Transition, from_call: bool
) -> None:
    """The grid is s(1 - i / N), which no call has to say; SD3 and Sana pass no sigmas, Flux a line."""
    teacher = FlowMatchEulerDiscreteScheduler(shift=2.0)
    plan = StepPlan.from_schedule(RectifiedFlow(1000.0, shift), num_inference_steps, transition)
    line = [1 - i / num_inference_steps for i in range(num_inference_steps)]
    sigmas = line if from_call else None
    scheduler = scheduler_for_plan(plan, teacher, "flow_prediction", call_sigmas=sigmas)
    scheduler = type(scheduler).from_config(scheduler.config)
    if from_call:
        scheduler.set_timesteps(sigmas=sigmas)
    else:
        scheduler.set_timesteps(num_inference_steps)
    expected = torch.tensor([shift * u / (1 + (shift - 1) * u) for u in line] + [0.0])
    torch.testing.assert_close(scheduler.sigmas, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(scheduler.timesteps, 1000 * expected[:-1], rtol=0, atol=2e-3)


def test_any_three_sigmas_and_the_unit_of_flux() -> None:
    flow = RectifiedFlow(1.0)
    times = torch.tensor([1.0, 0.9, 0.2], dtype=torch.float64)
    plan = StepPlan(tuple(Step(t, flow(t), flow(t)) for t in times))
    scheduler = scheduler_for_plan(plan, FlowMatchEulerDiscreteScheduler(), "flow_prediction")
    scheduler.set_timesteps(3)
    torch.testing.assert_close(scheduler.timesteps, 1000 * times.float(), rtol=0, atol=2e-3)


def test_flows_that_no_scheduler_expresses_are_refused() -> None:
    teacher = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow = RectifiedFlow()
    with pytest.raises(ValueError, match=r"its timesteps would be \[1000\.0\]"):
        scheduler_for_plan(StepPlan.from_noise(flow, 700.0), teacher, "flow_prediction")
    times = torch.tensor([1000.0, 950.0, 300.0, 200.0], dtype=torch.float64)
    plan = StepPlan(tuple(Step(t, flow(t), flow(t)) for t in times))
    with pytest.raises(ValueError, match="cannot express this plan of 4 ode"):
        scheduler_for_plan(plan, teacher, "flow_prediction")
    plan = StepPlan.from_schedule(flow)
    with pytest.raises(ValueError, match="DPMSolverMultistepScheduler cannot express"):
        scheduler_for_plan(plan, teacher, "flow_prediction", "DPMSolverMultistepScheduler")


@pytest.mark.parametrize(
    ("num_inference_steps", "zero_snr", "transition", "reason", "instead"),
    [
        (
            48,
            False,
            "ode",
            "step 4 at 936",
            47,
        ),  # 936.5 is 937 rounded to even, less 1; diffusers makes 936.49
        (61, False, "ode", "it would take 62 steps", 60),
        (3, True, "ode", "off by", 2),  # DPM++ clamps zero SNR, DDIM steps by T // 3
        (37, True, "ode", "off by", 40),
        (48, False, "renoise", "step 1 at 959", 50),
    ],
)
def test_a_grid_that_diffusers_lays_otherwise_is_refused_with_a_neighbour(
    num_inference_steps: int, zero_snr: bool, transition: Transition, reason: str, instead: int
) -> None:
    teacher = DDIMScheduler(**SCALED_LINEAR, prediction_type="v_prediction")
    schedule = DiscreteSchedule.from_scheduler(teacher)
    schedule = ZeroTerminalSNR()(schedule) if zero_snr else schedule
    plan = StepPlan.from_schedule(schedule, num_inference_steps, transition)
    with pytest.raises(ValueError, match=f"{reason}.*train with {instead} steps"):
        scheduler_for_plan(plan, teacher, "v_prediction")
    plan = StepPlan.from_schedule(schedule, instead, transition)
    assert len(scheduler_for_plan(plan, teacher, "v_prediction").timesteps) == instead


def test_plans_that_no_scheduler_expresses_are_refused() -> None:
    teacher = DDIMScheduler(**SCALED_LINEAR, prediction_type="v_prediction")
    schedule = DiscreteSchedule.from_scheduler(teacher)
    rescaled = ZeroTerminalSNR()(schedule)
    plan = StepPlan.from_schedule(rescaled)

    # UnCLIP divides by zero in one step, Helios misses a key: whatever they raise is told
    for kind in ("TCDScheduler", "PNDMScheduler", "UnCLIPScheduler", "HeliosScheduler"):
        with pytest.raises(ValueError, match=f"{kind} cannot express"):
            scheduler_for_plan(plan, teacher, "v_prediction", kind)
    with pytest.raises(ValueError, match="no scheduler 'DDIM'"):
        scheduler_for_plan(plan, teacher, "v_prediction", "DDIM")
    with pytest.raises(ValueError, match="zero terminal SNR"):
        scheduler_for_plan(plan, teacher, "epsilon")
    with pytest.raises(ValueError, match=r"LCMScheduler cannot express .* 3 renoise step"):
        scheduler_for_plan(StepPlan.from_schedule(schedule, 3, "renoise"), teacher, "v_prediction")
    with pytest.raises(ValueError, match="cannot express"):
        scheduler_for_plan(plan, teacher, "flow_prediction", "DDIMScheduler")
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no betas"):
        scheduler_for_plan(plan, FlowMatchEulerDiscreteScheduler(), "v_prediction")

    one = torch.ones((), dtype=torch.float64)
    unheard = Step(torch.tensor(999), Scales(0 * one, one), schedule(torch.tensor(10)))
    with pytest.raises(ValueError, match="off by"):
        scheduler_for_plan(StepPlan((unheard,)), teacher, "v_prediction")
    half = Step(torch.tensor(999), Scales(0 * one, one / 2), schedule(torch.tensor(999)))
    with pytest.raises(ValueError, match="cannot express"):
        scheduler_for_plan(StepPlan((half,)), teacher, "v_prediction")
