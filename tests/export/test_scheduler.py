"""Schedulers built for plans: exact in one step against the plan's formula, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler

from nitrodistill.export import scheduler_for_plan
from nitrodistill.prediction import to_x0
from nitrodistill.sampling import Step, StepPlan
from nitrodistill.schedules import DiscreteSchedule, ZeroTerminalSNR
from nitrodistill.types import PredictionType, Scales

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
    betas: dict[str, Any], t: int, prediction_type: PredictionType, kind: str
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


def test_plans_that_no_scheduler_expresses_are_refused() -> None:
    teacher = DDIMScheduler(**SCALED_LINEAR, prediction_type="v_prediction")
    schedule = DiscreteSchedule.from_scheduler(teacher)
    rescaled = ZeroTerminalSNR()(schedule)
    plan = StepPlan.from_schedule(rescaled)

    for kind in ("TCDScheduler", "PNDMScheduler"):
        with pytest.raises(ValueError, match=f"{kind} cannot express"):
            scheduler_for_plan(plan, teacher, "v_prediction", kind)
    with pytest.raises(ValueError, match="no scheduler 'DDIM'"):
        scheduler_for_plan(plan, teacher, "v_prediction", "DDIM")
    with pytest.raises(ValueError, match="zero terminal SNR"):
        scheduler_for_plan(plan, teacher, "epsilon")
    with pytest.raises(ValueError, match="renoises"):
        scheduler_for_plan(StepPlan.from_schedule(schedule, 2, "renoise"), teacher, "v_prediction")
    with pytest.raises(ValueError, match="cannot express"):
        scheduler_for_plan(plan, teacher, "flow_prediction")

    one = torch.ones((), dtype=torch.float64)
    unheard = Step(torch.tensor(999), Scales(0 * one, one), schedule(torch.tensor(10)))
    with pytest.raises(ValueError, match="off by"):
        scheduler_for_plan(StepPlan((unheard,)), teacher, "v_prediction")
    half = Step(torch.tensor(999), Scales(0 * one, one / 2), schedule(torch.tensor(999)))
    with pytest.raises(ValueError, match="cannot express"):
        scheduler_for_plan(StepPlan((half,)), teacher, "v_prediction")
