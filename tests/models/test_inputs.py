"""One more number beside the timestep: zero at first, brought back by a config, baked into a bias."""

from __future__ import annotations

import copy

import pytest
import torch

from nitrodistill.models import DiffusersDenoiser, add_lora
from nitrodistill.models.denoiser import ensure_input
from nitrodistill.models.inputs import add_input, baked, built, input_of
from nitrodistill.models.pipeline import Pipeline
from nitrodistill.sampling import StepPlan, intervals, sample, takes_interval
from nitrodistill.schedules import DiscreteSchedule, RectifiedFlow
from nitrodistill.types import Condition
from tests.pipelines import tiny_pipeline


def taught(denoiser: DiffusersDenoiser, name, default=0.0, scale=0.3) -> DiffusersDenoiser:
    """A copy that is told a number, with random weights of its own for it."""
    student = denoiser.copy()
    ensure_input(student, name, default)
    generator = torch.Generator().manual_seed(1)
    for path, weight in student.module.named_parameters():
        if path.endswith("cond_proj.weight"):
            weight.data.normal_(0, scale, generator=generator)
    return student


@pytest.mark.parametrize(
    "family", ["sd15", "sdxl", "pixart-sigma", "sd3", "sana", "flux-schnell", "dit"]
)
def test_a_network_that_was_just_taught_is_what_it_was(family):
    denoiser = Pipeline.from_diffusers(tiny_pipeline(family)).denoiser
    x_t, t, condition = denoiser.example()
    x_t = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0))
    before = denoiser(x_t, t, condition)
    student = denoiser.copy()
    ensure_input(student, "interval", 0.0)
    assert denoiser.extra_inputs == {}
    assert student.extra_inputs == {"interval": 0.0}
    for interval in (0.0, 0.7):
        told = condition.having(interval=torch.tensor([interval]))
        assert torch.equal(student(x_t, t, told), before)
    student = taught(denoiser, "interval")
    assert torch.equal(student(x_t, t, condition), before), "r = t is the plain network"
    far = student(x_t, t, condition.having(interval=torch.tensor([0.7])))
    assert not torch.allclose(far, before)
    plain = student.with_module(baked(student.network, 0.7))
    assert plain.extra_inputs == {}
    torch.testing.assert_close(plain(x_t, t, condition), far)


def test_it_is_told_a_sample(tiny_denoiser, tiny_condition, generator):
    student = taught(tiny_denoiser, "interval")
    x_t, t = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([999, 400, 10])
    interval = torch.tensor([0.0, 0.25, 1.0])
    together = student(x_t, t, tiny_condition.having(interval=interval))
    for row in range(3):
        told = tiny_condition.index([row]).having(interval=interval[row : row + 1])
        alone = student(x_t[row : row + 1], t[row : row + 1], told)
        torch.testing.assert_close(together[row : row + 1], alone)


def test_guidance_is_told_as_diffusers_does_it(tiny_denoiser, tiny_condition, generator):
    """`time_cond_proj_dim`, and the embedding of w = scale - 1 in the pipelines of diffusers."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    student = taught(tiny_denoiser, "guidance", 3.0)
    entries = student.network.config.items()
    config = {k: v for k, v in entries if k[0] != "_" and k != "nitrodistill_input"}
    theirs = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 256})
    theirs.load_state_dict(student.network.state_dict())
    x_t, t = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor(500)
    text = tiny_condition["encoder_hidden_states"]
    for scale in (1.0, 3.0, 7.5):
        w = torch.full((3,), scale - 1)
        embedded = StableDiffusionPipeline.get_guidance_scale_embedding(None, w, 256)
        wanted = theirs(x_t, t, text, timestep_cond=embedded, return_dict=False)[0]
        told = tiny_condition.having(guidance=torch.full((3,), scale))
        torch.testing.assert_close(student(x_t, t, told), wanted, rtol=1e-4, atol=1e-5)
    default = student(x_t, t, tiny_condition)
    told = tiny_condition.having(guidance=torch.full((3,), 3.0))
    assert torch.equal(default, student(x_t, t, told))


def test_a_config_brings_it_back(tiny_denoiser, tiny_condition, generator):
    student = taught(tiny_denoiser, "interval")
    network = built(type(student.network), dict(student.network.config)).eval()
    network.load_state_dict(student.network.state_dict())
    assert input_of(network) == {"interval": 0.0}
    x_t, t = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor(500)
    told = tiny_condition.having(interval=torch.tensor([0.2, 0.5, 0.9]))
    again, copied = student.with_module(network), student.with_module(copy.deepcopy(network))
    assert torch.equal(again(x_t, t, told), student(x_t, t, told))
    assert torch.equal(copied(x_t, t, told), student(x_t, t, told))


@pytest.mark.parametrize("family", ["sd15", "dit"])
def test_gradients_are_equal_under_checkpointing(family):
    """DiT embeds the timestep inside of its blocks, which are recomputed after the call has ended."""
    denoiser = Pipeline.from_diffusers(tiny_pipeline(family)).denoiser
    found = []
    for checkpointing in (False, True):
        student = taught(denoiser, "interval")
        student.module.train()
        if checkpointing:
            student.enable_gradient_checkpointing()
        x_t, t, condition = student.example()
        x_t = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0))
        told = condition.having(interval=torch.tensor([0.4]))
        with torch.no_grad():
            student(x_t, t, condition)
        said = student(x_t, t, told)
        with torch.no_grad():
            student(
                x_t, t, condition.having(interval=torch.tensor([0.9]))
            )  # told something else since
        said.square().mean().backward()
        found.append(
            {n: p.grad for n, p in student.module.named_parameters() if p.grad is not None}
        )
    plain, again = found
    assert plain.keys() == again.keys()
    assert any(name.endswith("cond_proj.weight") for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-8)


def test_the_sampler_tells_a_flow_map_how_far_each_step_goes(
    tiny_denoiser, tiny_condition, generator
):
    """Trailing steps go 1/N each, the last one to the data; with `renoise` each of them goes all the way."""

    class Listening:
        extra_inputs = {"interval": 0.0}  # noqa: RUF012
        module, prediction_type = tiny_denoiser.module, "v_prediction"

        def __init__(self, schedule) -> None:
            self.schedule, self.heard = schedule, []

        def __call__(self, x_t, t, condition):
            self.heard.append(condition["interval"].tolist())
            return x_t

    noise = torch.randn(3, 4, 8, 8, generator=generator)
    for schedule in (tiny_denoiser.schedule, RectifiedFlow(shift=3)):
        for steps in (1, 4, 8):
            listening = Listening(schedule)
            assert takes_interval(listening)
            sample(listening, StepPlan.from_schedule(schedule, steps), noise, tiny_condition)
            assert listening.heard == [[pytest.approx(1 / steps)] * 3] * steps
        plan = StepPlan.from_schedule(schedule, 4, "renoise")
        listening = Listening(schedule)
        sample(listening, plan, noise, tiny_condition, lambda i: noise)
        assert [one[0] for one in listening.heard] == pytest.approx([1, 0.75, 0.5, 0.25])
    plan = StepPlan.from_schedule(tiny_denoiser.schedule, 3)
    assert intervals(plan, tiny_denoiser.schedule) == pytest.approx([0.333, 0.334, 0.333])


def test_what_cannot_be_told_is_refused(tiny_denoiser):
    student = tiny_denoiser.copy()
    ensure_input(student, "guidance", 3.0)
    ensure_input(student, "guidance", 4.0)
    assert student.extra_inputs == {"guidance": 4.0}
    with pytest.raises(ValueError, match=r"takes 'guidance' already, so it cannot take 'interval'"):
        ensure_input(student, "interval", 0.0)
    with pytest.raises(ValueError, match=r"the student is a LoRA role.*leave out `lora`"):
        ensure_input(add_lora(tiny_denoiser.copy(), "student"), "interval", 0.0)
    with pytest.raises(ValueError, match=r"cannot take 'interval': it has no TimestepEmbedding"):
        add_input(torch.nn.Linear(2, 2), "interval", 0.0)
    flux = Pipeline.from_diffusers(tiny_pipeline("flux-dev")).denoiser.copy()
    with pytest.raises(ValueError, match=r"takes the scale of guidance already"):
        ensure_input(flux, "guidance", 3.0)

    class Bare:
        schedule = DiscreteSchedule(torch.tensor([0.9, 0.1]))
        module, prediction_type = torch.nn.Module(), "epsilon"

        def __call__(self, x_t, t, condition: Condition):
            return x_t

    with pytest.raises(ValueError, match=r"is a Bare, which takes nothing next to t"):
        ensure_input(Bare(), "interval", 0.0)
