from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from nitrodistill.models.noise import noise_of
from nitrodistill.models.preconditioning import EDMPreconditioning
from nitrodistill.schedules import DiscreteSchedule, KarrasSchedule, RectifiedFlow


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
