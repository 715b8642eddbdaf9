"""Progressive distillation: against closed forms, stage by stage, and the sentences for what cannot be."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from nitrodistill.export import scheduler_for_plan
from nitrodistill.losses.few_step import x0_of_both
from nitrodistill.method import Cast, Draws
from nitrodistill.methods.progressive import Progressive, ProgressiveConfig
from nitrodistill.models import DiffusersDenoiser, Guided, add_lora
from nitrodistill.prediction import convert_prediction, prediction_target
from nitrodistill.sampling import StepPlan, ode_step, sample
from nitrodistill.schedules import DiscreteSchedule, KarrasSchedule, RectifiedFlow, ZeroTerminalSNR
from nitrodistill.types import Batch, Condition, Pairs, Scales, expand
from tests.mixtures import VP

SCHEDULES = {
    "vp": (VP, "epsilon"),
    "zero-snr": (ZeroTerminalSNR()(VP), "v_prediction"),
    "sample": (ZeroTerminalSNR()(VP), "sample"),
    "flow": (RectifiedFlow(shift=2.0), "flow_prediction"),
}


class Table(nn.Module):
    """Scale and shift of x_t at each timestep: what the exact denoiser of a Gaussian is made of."""

    def __init__(self, timesteps: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("timesteps", timesteps.double())
        self.scale = nn.Parameter(torch.zeros(len(timesteps), dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(len(timesteps), dtype=torch.float64))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        place = (self.timesteps[None] - t.double().reshape(-1, 1)).abs().argmin(1)
        return expand(self.scale[place], x_t) * x_t + expand(self.shift[place], x_t)


class Linear:
    """A denoiser around a Table, of any prediction type."""

    def __init__(self, schedule, kind, module) -> None:
        self.schedule, self.prediction_type, self.module = schedule, kind, module

    def __call__(self, x_t, t, condition):
        return self.module(x_t, t.expand(len(x_t)))


def exact(schedule, kind, timesteps, mean=0.3, std=0.7) -> Linear:
    """The denoiser of N(mean, std^2)."""
    table = Table(timesteps)
    alpha, sigma = schedule(timesteps)
    variance = (alpha * std).square() + sigma.square()
    for name, x_t in (("shift", torch.zeros_like(alpha)), ("scale", torch.ones_like(alpha))):
        said = (x_t - alpha * mean) / variance
        found = prediction_target(
            mean + alpha * std**2 * said, sigma * said, Scales(alpha, sigma), kind
        )
        getattr(table, name).data = found - (0 if name == "shift" else table.shift.data)
    return Linear(schedule, kind, table)


def batch_of(size: int, shape=(1, 2, 2), seed: int = 5, start: int = 0) -> Batch:
    index = torch.arange(start, start + size)
    x0 = 0.3 + 0.7 * Draws(seed, 0, index).normal("x0", shape)
    return Batch(index, Pairs(x0.double(), x0, Condition()))


@pytest.mark.parametrize("steps", [1, 3, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_converged_student_is_its_teacher_in_two_steps(name, steps, generator):
    """Newton's method: the loss is a parabola in a Gaussian student's weights, so it converges at once."""
    schedule, kind = SCHEDULES[name]
    fine = StepPlan.from_schedule(schedule, 2 * steps)
    teacher = exact(schedule, kind, fine.timesteps())
    student = Linear(schedule, kind, copy.deepcopy(teacher.module))
    config = ProgressiveConfig(num_inference_steps=steps, weight="plain")
    method = Progressive.build(config, Cast.of(teacher, student))
    weights = (student.module.scale, student.module.shift)
    batch = batch_of(64)

    def loss():
        ((_, terms),) = method.losses(batch, ("student",), Draws(0, 0, batch.index))
        return terms.total

    def gradients():
        return torch.cat(torch.autograd.grad(loss(), weights, create_graph=True))

    first = gradients()
    rows = [torch.cat(torch.autograd.grad(one, weights, retain_graph=True)) for one in first]
    move = torch.linalg.pinv(torch.stack(rows)) @ first.detach()
    for weight, part in zip(weights, move.chunk(2), strict=True):
        weight.data -= part
    assert loss().item() < 1e-20
    noise = torch.randn(4, 1, 2, 2, generator=generator, dtype=torch.float64)
    drawn = sample(student, method.plan, noise, Condition())
    wanted = sample(teacher, fine, noise, Condition())
    torch.testing.assert_close(drawn, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weight", ["truncated_snr", "snr_plus_one", "plain"])
def test_weights_are_the_papers_errors(weight):
    """max(|x error|, |eps error|), their sum, which is v's, and the error of x itself."""
    schedule = ZeroTerminalSNR()(VP)
    fine = StepPlan.from_schedule(schedule, 8)
    teacher = exact(schedule, "v_prediction", fine.timesteps())
    student = exact(schedule, "v_prediction", fine.timesteps(), mean=-0.2, std=0.4)
    method = Progressive.build(
        ProgressiveConfig(num_inference_steps=4, weight=weight), Cast.of(teacher, student)
    )
    batch = batch_of(16)
    draws = Draws(3, 0, batch.index)
    ((role, terms),) = method.losses(batch, ("student",), draws)
    assert role == "student"

    step, after = method.plan.at(draws.uniform("step")), method.plan.after(schedule)
    after = after.at(draws.uniform("step"))
    x = step.input.mix(batch.pairs.x0, draws.normal("noise", (1, 2, 2)).double())
    middle = StepPlan(fine.steps[1::2]).at(draws.uniform("step"))
    x_m = ode_step(teacher, step, middle, x, Condition())
    x_s = ode_step(teacher, middle, after, x_m, Condition())
    errors = {}
    now = Scales(*(expand(s, x) for s in step.output))
    end = Scales(*(expand(s, x) for s in after.input))
    ratio = end.sigma / now.sigma
    target = (x_s - ratio * x) / (end.alpha - ratio * now.alpha)
    said = student(x, step.t, Condition())
    for kind, (c, d) in {"x": (1, 0), "eps": (0, 1), "v": (-now.sigma, now.alpha)}.items():
        name = {"x": "sample", "eps": "epsilon", "v": "v_prediction"}[kind]
        mine = convert_prediction(said, x, step.output, "v_prediction", name)
        wanted = c * target + d * (x - now.alpha * target) / now.sigma
        errors[kind] = (mine - wanted).square().flatten(1).mean(1)
    expected = {
        "truncated_snr": torch.maximum(errors["x"], errors["eps"]),
        "snr_plus_one": errors["v"],
        "plain": errors["x"],
    }[weight]
    if weight == "snr_plus_one":  # |x|^2 + |eps|^2 = |v|^2, Salimans & Ho, section 4
        torch.testing.assert_close(errors["v"], errors["x"] + errors["eps"])
    torch.testing.assert_close(terms.parts["progressive"], expected, rtol=1e-9, atol=1e-12)
    assert terms.total.item() == pytest.approx(expected.mean().item())


def test_a_student_that_predicts_both(generator):
    """`x0_of_both` makes a denoiser of two predictions; the method takes it as one of x0."""
    schedule = ZeroTerminalSNR()(VP)
    fine = StepPlan.from_schedule(schedule, 4)
    parts = [exact(schedule, kind, fine.timesteps()) for kind in ("sample", "v_prediction")]
    x_part, v_part = (copy.deepcopy(one) for one in parts)

    class Both(Linear):
        def __call__(self, x_t, t, condition):
            scales = schedule(t.expand(len(x_t)))
            v = v_part.module(x_t, t.expand(len(x_t)))
            eps = convert_prediction(v, x_t, scales, "v_prediction", "epsilon")
            return x0_of_both(x_part.module(x_t, t.expand(len(x_t))), eps, x_t, scales)

    student = Both(schedule, "sample", nn.ModuleList([x_part.module, v_part.module]))
    method = Progressive.build(ProgressiveConfig(num_inference_steps=2), Cast.of(parts[0], student))
    batch = batch_of(8)
    ((_, terms),) = method.losses(batch, ("student",), Draws(0, 0, batch.index))
    terms.total.backward()
    assert terms.total.item() > 0
    assert x_part.module.scale.grad.abs().sum() > 0
    assert v_part.module.scale.grad.abs().sum() > 0


def uniforms(values):
    return SimpleNamespace(uniform=lambda name: values[name], normal=lambda *args: values["noise"])


def test_a_guided_teacher_at_a_fixed_scale(tiny_denoiser, tiny_condition, generator):
    teacher, student, empty = tiny_denoiser.copy(), tiny_denoiser.copy(), tiny_condition.index([0])
    config = ProgressiveConfig(num_inference_steps=2, guidance=3.0)
    method = Progressive.build(config, Cast.of(teacher, student, empty=empty))
    z, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    values = {"step": torch.tensor([0.1, 0.6, 0.9]), "guidance": torch.rand(3), "noise": noise}
    batch = Batch(torch.arange(3), Pairs(z, noise, tiny_condition))
    ((_, terms),) = method.losses(batch, ("student",), uniforms(values))
    guided = Guided(teacher, 3.0, empty)
    steps = StepPlan.from_schedule(teacher.schedule, 4)
    for row, at in enumerate((0, 2, 2)):
        now, middle, after = [*steps.steps, *steps.after(teacher.schedule).steps[-1:]][at : at + 3]
        c, x = tiny_condition.index([row]), now.input.mix(z[row : row + 1], noise[row : row + 1])
        x_s = ode_step(guided, middle, after, ode_step(guided, now, middle, x, c), c)
        ratio = after.input.sigma / now.output.sigma
        target = (x_s - ratio * x) / (after.input.alpha - ratio * now.output.alpha)
        said = student(x, now.t, c)
        mine = now.output.alpha * x - now.output.sigma * said
        weight = max(1.0, float(now.output.snr()))
        wanted = weight * (mine - target).square().mean()
        torch.testing.assert_close(
            terms.parts["progressive"][row].double(), wanted.detach().double(), rtol=2e-4, atol=1e-6
        )


def test_guidance_is_distilled_and_then_told(tiny_denoiser, tiny_condition, generator):
    """Meng et al.: first what the guided teacher sees at any scale; then halving, the scale drawn a sample."""
    teacher, student, empty = tiny_denoiser.copy(), tiny_denoiser.copy(), tiny_condition.index([0])
    first = ProgressiveConfig(
        2, teacher_steps=1, guidance=3.0, guidance_range=(1.0, 5.0), weight="plain"
    )
    method = Progressive.build(first, Cast.of(teacher, student, empty=empty))
    assert student.extra_inputs == {"guidance": 3.0}
    assert teacher.extra_inputs == {}
    z, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    values = {"step": torch.tensor([0.1, 0.6, 0.9]), "guidance": torch.tensor([0.0, 0.5, 1.0])}
    draws = uniforms({**values, "noise": noise})
    batch = Batch(torch.arange(3), Pairs(z, noise, tiny_condition))
    ((_, terms),) = method.losses(batch, ("student",), draws)
    step = method.plan.at(values["step"])
    x = step.input.mix(z, noise)
    sigma = expand(step.output.sigma, x).float()
    null, said = (teacher(x, step.t, k) for k in (empty.index([0] * 3), tiny_condition))
    scale = torch.tensor([1.0, 3.0, 5.0])[:, None, None, None]
    error = -sigma * (said - (null + scale * (said - null)))  # the student begins as the teacher
    expected = error.square().flatten(1).mean(1)
    torch.testing.assert_close(terms.parts["progressive"], expected.detach(), rtol=1e-3, atol=1e-6)
    assert expected[0] < 1e-9 < expected[1]
    terms.total.backward()
    assert student.network.time_embedding.cond_proj.weight.grad.abs().sum() > 0

    second = first.halved()
    assert (second.num_inference_steps, second.teacher_steps) == (1, 2)
    after = student.copy()
    for module in (student.module, after.module):
        module.time_embedding.cond_proj.weight.data.fill_(0.01)
    halving = Progressive.build(second, Cast.of(student, after, empty=empty))
    heard = []
    call = DiffusersDenoiser.__call__

    def listening(self, x_t, t, condition):
        heard.append((self is student, condition.tensors.get("guidance"), len(x_t)))
        return call(self, x_t, t, condition)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusersDenoiser, "__call__", listening)
        list(halving.losses(batch, ("student",), draws))
    assert [is_teacher for is_teacher, *_ in heard] == [True, True, False]
    assert all(scale.tolist() == [1.0, 3.0, 5.0] and size == 3 for _, scale, size in heard)


def test_halving_the_settings():
    config = ProgressiveConfig(num_inference_steps=6, guidance=3.0)
    assert config.halved() == ProgressiveConfig(num_inference_steps=3)
    with pytest.raises(ValueError, match=r"num_inference_steps is 3, which has no half"):
        config.halved().halved()


def test_epsilon_with_truncated_snr_is_warned_of():
    schedule, kind = SCHEDULES["vp"]
    teacher = exact(schedule, kind, StepPlan.from_schedule(schedule, 4).timesteps())
    for weight, warned in (("truncated_snr", True), ("snr_plus_one", False), ("plain", False)):
        config = ProgressiveConfig(num_inference_steps=2, weight=weight)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Progressive.build(config, Cast.of(teacher, copy.copy(teacher)))
        found = [str(one.message) for one in caught if "diverges in the paper" in str(one.message)]
        assert len(found) == warned


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_inference_steps": 0}, r"num_inference_steps is 0; it must be at least 1"),
        ({"weight": "snr"}, r"weight is 'snr'; it must be one of"),
        ({"guidance": 0.5}, r"guidance is 0\.5; it must be at least 1"),
        ({"guidance": 9.0, "guidance_range": (1.0, 5.0)}, r"1 <= low <= guidance <= high"),
        ({"guidance_range": (5.0, 1.0)}, r"1 <= low <= guidance <= high"),
        ({"teacher_steps": 1}, r"the student is its teacher already"),
    ],
)
def test_wrong_settings_are_told(settings, words):
    with pytest.raises(ValueError, match=words):
        ProgressiveConfig(**settings)


def test_what_cannot_be_halved_or_guided_is_refused(tiny_denoiser, tiny_condition):
    def build(config, teacher, empty=None, student=None):
        return Progressive.build(
            config, Cast.of(teacher, student or copy.copy(teacher), empty=empty)
        )

    zero = exact(ZeroTerminalSNR()(VP), "v_prediction", torch.tensor([999]))
    zero.prediction_type = "epsilon"
    with pytest.raises(ValueError, match=r"'epsilon' cannot be converted .* alpha is 0"):
        build(ProgressiveConfig(4, weight="plain"), zero)
    vp = exact(VP, "epsilon", torch.tensor([999]))
    with pytest.raises(
        ValueError, match=r"num_inference_steps is 1200; .* can be sampled in 1 to 1000"
    ):
        build(ProgressiveConfig(600, weight="plain"), vp)
    edm = Linear(KarrasSchedule(), "sample", nn.Linear(1, 1))
    with pytest.raises(
        ValueError, match=r"the 4 timesteps .* no part of its teacher's 8 on a Karras"
    ):
        build(ProgressiveConfig(4), edm)
    with pytest.raises(ValueError, match=r"is to be guided \(guidance 3\.0\), but it has no empty"):
        build(ProgressiveConfig(4, guidance=3.0, weight="plain"), vp)
    told = ProgressiveConfig(4, guidance=3.0, guidance_range=(1, 5), weight="plain")
    empty = tiny_condition.index([0])
    with pytest.raises(ValueError, match=r"is a Linear, which takes nothing next to t"):
        build(told, vp, empty)
    role = add_lora(tiny_denoiser, "student")
    with pytest.raises(ValueError, match=r"the student is a LoRA role.*guidance_range"):
        build(replace(told, weight="truncated_snr"), tiny_denoiser, empty, role)


def test_the_students_of_the_defaults_can_be_exported_at_zero_terminal_snr():
    """All that it is halved to, as the recipes check it before they start."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    schedule = DiscreteSchedule.from_scheduler(scheduler)

    def export(steps: int) -> None:
        scheduler_for_plan(StepPlan.from_schedule(schedule, steps), scheduler, "v_prediction")

    for halvings in range(4):
        export(ProgressiveConfig().num_inference_steps >> halvings)
    with pytest.raises(ValueError, match="cannot express this plan of 16 ode step"):
        export(16)
