"""Flow maps: the difference against torch.func.jvp, the limits, the distribution of a mixture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from nitrodistill.losses.few_step import ThreePoints
from nitrodistill.method import Cast, Draws
from nitrodistill.methods.flow_map import FlowMap, FlowMapConfig, Moment, along, neighbours
from nitrodistill.models import DiffusersDenoiser, Guided, add_lora
from nitrodistill.models.denoiser import ensure_input
from nitrodistill.models.inputs import _features
from nitrodistill.prediction import convert_prediction
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.schedules import KarrasSchedule, RectifiedFlow, ZeroTerminalSNR
from nitrodistill.teachers import load_teacher
from nitrodistill.types import Batch, Condition, Pairs, expand
from tests.mixtures import VP

ZERO_SNR = ZeroTerminalSNR()(VP)
FLOW = RectifiedFlow()


@pytest.fixture(scope="module")
def toy():
    """The embedded teacher's network and three prompts."""
    pipeline = load_teacher("toy")
    prompts = [f"a {size} red circle on a black background" for size in ("small", "large", "small")]
    return pipeline.denoiser, pipeline.encode_prompt(prompts)


def taught(denoiser: DiffusersDenoiser, schedule, kind, dtype=torch.float32) -> DiffusersDenoiser:
    """The network as a flow map, with random weights for the interval."""
    student = DiffusersDenoiser(denoiser.copy().module.to(dtype), schedule, kind)
    ensure_input(student, "interval", 0.0)
    weight = student.network.time_embedding.cond_proj.weight
    weight.data = 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(
        weight
    )
    return student


def differentiated(student, x, velocity, condition, u, h) -> Tensor:
    """du/dt of a flow map to the data, as the method has it."""
    dtype = next(student.module.parameters()).dtype
    here = Moment.of(student.schedule, student.schedule.timestep(u))
    near = neighbours(student.schedule, here.t, h)
    x, velocity = x.to(dtype), velocity.to(dtype)

    def value(at: Moment) -> Tensor:
        told = condition.to(dtype=dtype).having(interval=at.left)
        return student(along(x, velocity, here, at), at.t, told)

    with torch.no_grad():
        weights = ThreePoints.of(*(at.flow - here.flow for at in near))
        return weights.derivative(value(here), *(value(at) for at in near))


def exactly(student, x, velocity, condition, u) -> Tensor:
    """The same by torch.func.jvp, which flash attention does not have."""
    network = student.network

    def value(x_t: Tensor, s: Tensor) -> Tensor:
        network.time_embedding._nitrodistill_given = _features("interval", s)
        text = condition["encoder_hidden_states"].double()
        return network(x_t, 1000 * s, text, return_dict=False)[0]

    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        found = jvp(value, (x, u), (velocity, torch.ones_like(u)))[1]
    network.time_embedding._nitrodistill_given = None
    return found


def far(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other).norm() / other.norm())


def test_the_difference_against_a_jacobian_product(toy, generator):
    """Measured: 2.3e-2, 5.9e-3, 1.5e-3 of the derivative at h = 5e-4, 2.5e-4, 1.25e-4; 6e-6 float32 to float64.

    The toy learned whole timesteps. Between them its derivative is large: the embedding's fastest wave is as long
    as six of them, so that h must be far below one here.
    """
    denoiser, condition = toy
    z, noise = torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
    u = torch.tensor([0.3, 0.55, 0.8], dtype=torch.float64)
    x, velocity = FLOW(FLOW.timestep(u)).mix(z, noise), noise - z
    wide = taught(denoiser, FLOW, "flow_prediction", torch.float64)
    exact = exactly(wide, x, velocity, condition, u)
    errors = [
        far(differentiated(wide, x, velocity, condition, u, h), exact)
        for h in (5e-4, 2.5e-4, 1.25e-4)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.06)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.06)
    h = FlowMapConfig().h
    narrow = taught(denoiser, FLOW, "flow_prediction")
    targets = [
        velocity - expand(u, x) * differentiated(student, x, velocity, condition, u, h)
        for student in (narrow, wide)
    ]
    assert far(*targets) <= 1e-5


def test_neighbours_lie_on_both_sides_and_at_the_ends_on_one():
    t = torch.tensor([0, 3, 500, 999])
    first, second = neighbours(ZERO_SNR, t, 0.005)
    assert (first.t - t).tolist() == [5, 5, 5, -5]
    assert (second.t - t).tolist() == [10, 10, -5, -10]
    for schedule in (RectifiedFlow(t_max=1.0, shift=3.0), KarrasSchedule()):
        u = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
        found = [
            schedule.fraction(one.t) - u for one in neighbours(schedule, schedule.timestep(u), 0.01)
        ]
        torch.testing.assert_close(found[0], torch.tensor([0.01, 0.01, -0.01]).double())
        torch.testing.assert_close(found[1], torch.tensor([0.02, -0.01, -0.02]).double())


@pytest.mark.parametrize("schedule", [ZERO_SNR, RectifiedFlow(shift=3), KarrasSchedule()])
def test_paths_are_straight_in_flow(schedule, generator):
    """Along eps - x0 from x_t one stays at alpha x0 + sigma eps."""
    z, noise = torch.randn(2, 3, 1, 2, 2, generator=generator, dtype=torch.float64)
    t, later = (
        schedule.timestep(torch.tensor(u, dtype=torch.float64))
        for u in ([0.9, 0.5, 0.2], [0.7, 0.6, 0.0])
    )
    here, there = Moment.of(schedule, t), Moment.of(schedule, later)
    found = along(here.scales.mix(z, noise), noise - z, here, there)
    torch.testing.assert_close(found, there.scales.mix(z, noise))


def make_batch(condition: Condition, generator, size: int = 3) -> Batch:
    z, noise = torch.randn(2, size, 4, 8, 8, generator=generator)
    return Batch(torch.arange(size), Pairs(z, noise, condition))


@pytest.mark.parametrize("kind", ["flow", "vp"])
def test_r_equal_t_is_plain_flow_matching(tiny_denoiser, tiny_condition, generator, kind):
    """|u(x_t, t) - (eps - x0)|^2, bit for bit; VP's v by conversion, the student told nothing."""
    schedule, prediction = (
        (FLOW, "flow_prediction") if kind == "flow" else (ZERO_SNR, "v_prediction")
    )
    base = DiffusersDenoiser(tiny_denoiser.module, schedule, prediction)
    student = base.copy()
    config = FlowMapConfig(velocity="data", diagonal=0.999999, to_data=0.0, robustness=0.0)
    method = FlowMap.build(config, Cast.of(base, student))
    batch, draws = make_batch(tiny_condition, generator), Draws(0, 0, torch.arange(3))
    ((role, terms),) = method.losses(batch, ("student",), draws)
    assert role == "student"
    assert method.frozen() == {}
    z, noise = batch.pairs.x0, draws.normal("noise", (4, 8, 8))
    t = schedule.timestep(draws.uniform("t"))
    x = schedule(t).mix(z, noise)
    said = convert_prediction(
        base(x, t, tiny_condition), x, schedule(t), prediction, "flow_prediction"
    )
    expected = (said.detach() - (noise - z)).square().flatten(1).mean(1)
    assert torch.equal(terms.parts["flow_map"], expected)
    assert torch.equal(terms.total.detach(), expected.mean())


def test_the_whole_loss_is_the_equation(tiny_denoiser, tiny_condition, generator):
    """To the data and between two times, written out with the guided teacher's velocity."""
    teacher, student, empty = tiny_denoiser.copy(), tiny_denoiser.copy(), tiny_condition.index([0])
    config = FlowMapConfig(guidance=2.0, h=0.005, diagonal=0.0, to_data=0.5, robustness=0.5)
    method = FlowMap.build(config, Cast.of(teacher, student, empty=empty))
    student.network.time_embedding.cond_proj.weight.data.fill_(0.02)
    batch, draws = make_batch(tiny_condition, generator), Draws(4, 0, torch.arange(3))
    ((_, terms),) = method.losses(batch, ("student",), draws)
    share, u, other = (draws.uniform(name) for name in ("share", "t", "r"))
    assert 0 < (share < 0.5).sum() < 3
    noise, schedule = draws.normal("noise", (4, 8, 8)), teacher.schedule

    def flow(t: int) -> float:
        alpha, sigma = schedule(torch.tensor(t))
        return float(sigma / (alpha + sigma))

    for row in range(3):
        c = tiny_condition.index([row])
        to_data = bool(share[row] < 0.5)
        t = int(1000 * (u[row] if to_data else torch.maximum(u[row], other[row])))
        end = -1 if to_data else int(1000 * torch.minimum(u[row], other[row]))
        r = 0.0 if to_data else flow(end)
        alpha, sigma = (float(s) for s in schedule(torch.tensor(t)))
        x = alpha * batch.pairs.x0[row : row + 1] + sigma * noise[row : row + 1]

        def read(denoiser, x, t, c):
            alpha, sigma = (float(s) for s in schedule(torch.tensor(t)))
            v = denoiser(x, torch.tensor(t), c).detach()
            return (sigma * x + alpha * v) - (alpha * x - sigma * v)  # eps - x0

        def u_of(t, x, c=c, end=end):
            told = c.having(interval=torch.tensor([(t - end) / 1000]))
            return read(student, x, t, told)

        v = read(Guided(teacher, 2.0, empty), x, t, c)
        values = {}
        for k in (-5, 5):
            a, s = (float(one) for one in schedule(torch.tensor(t + k)))
            values[k] = u_of(t + k, (a + s) * (x / (alpha + sigma) + (flow(t + k) - flow(t)) * v))
        up, down = flow(t + 5) - flow(t), flow(t) - flow(t - 5)
        mine = u_of(t, x)
        slope = (values[5] - mine) / up * down + (mine - values[-5]) / down * up
        target = v - (flow(t) - r) * slope / (up + down)
        expected = (mine - target).square().mean()
        torch.testing.assert_close(terms.parts["flow_map"][row], expected, rtol=2e-3, atol=1e-6)
    parts = terms.parts["flow_map"]
    torch.testing.assert_close(terms.total.detach(), (parts / (parts + 1e-3).sqrt()).mean())


def test_the_gradient_reaches_the_student_alone_and_not_through_the_target(
    tiny_denoiser, tiny_condition, generator
):
    teacher, student = tiny_denoiser.copy(), tiny_denoiser.copy()
    method = FlowMap.build(FlowMapConfig(diagonal=0.0), Cast.of(teacher, student))
    batch, calls = make_batch(tiny_condition, generator), []
    student.module.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    ((_, terms),) = method.losses(batch, ("student",), Draws(0, 0, batch.index))
    terms.total.backward()
    assert calls == [True, False, False]
    assert all(p.grad is None for p in teacher.module.parameters())
    assert student.network.time_embedding.cond_proj.weight.grad.abs().sum() > 0


def test_gradients_are_equal_under_checkpointing(tiny_denoiser, tiny_condition, generator):
    batch, found = make_batch(tiny_condition, generator), []
    for checkpointing in (False, True):
        student = tiny_denoiser.copy()
        method = FlowMap.build(FlowMapConfig(diagonal=0.0), Cast.of(tiny_denoiser, student))
        student.network.time_embedding.cond_proj.weight.data.fill_(0.02)
        student.module.train()
        if checkpointing:
            student.enable_gradient_checkpointing()
        ((_, terms),) = method.losses(batch, ("student",), Draws(0, 0, batch.index))
        terms.total.backward()
        found.append([p.grad for p in student.module.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


class Points(nn.Module):
    """u of points on a line, from x_t, the timestep and the interval."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(9, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 1)
        )
        for weight in self.layers.parameters():
            bound = weight.shape[-1] ** -0.5
            weight.data.uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor, s: Tensor, interval: Tensor) -> Tensor:
        found = [x, s, interval]
        found += [f(k * torch.pi * v) for k in (1, 2) for v in (s,) for f in (torch.sin, torch.cos)]
        found += [torch.sin(torch.pi * interval), s * interval]
        return self.layers(torch.stack([part.float() for part in found], 1))[:, 0]


class Line:
    """A flow map of points, (B, 1, 1, 1)."""

    extra_inputs = {"interval": 0.0}  # noqa: RUF012
    schedule, prediction_type = RectifiedFlow(t_max=1.0), "flow_prediction"

    def __init__(self) -> None:
        self.module = Points()

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        interval = condition.tensors.get("interval", torch.zeros(len(x_t)))
        t = t.expand(len(x_t))
        return self.module(x_t.flatten(), t, interval).reshape(x_t.shape).to(x_t.dtype)


class Mixture:
    """The exact velocity of two normal distributions on a line."""

    schedule, prediction_type, module = RectifiedFlow(t_max=1.0), "flow_prediction", nn.Module()
    means, std = (-1.2, 0.8), 0.3

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = (expand(s, x_t).double() for s in self.schedule(t.expand(len(x_t))))
        x, variance = x_t.double(), (alpha * self.std).square() + sigma.square()
        gaps = [x - alpha * mean for mean in self.means]
        weights = torch.softmax(torch.stack([-(g.square()) / (2 * variance) for g in gaps]), 0)
        said = [g / variance for g in gaps]
        x0 = sum(
            w * (m + alpha * self.std**2 * s)
            for w, m, s in zip(weights, self.means, said, strict=True)
        )
        eps = sum(w * sigma * s for w, s in zip(weights, said, strict=True))
        return (eps - x0).to(x_t.dtype)


def quantiles(x: Tensor) -> Tensor:
    return torch.quantile(x.flatten().float(), torch.linspace(0.02, 0.98, 49))


def test_one_step_and_twenty_five_draw_the_teachers_mixture():
    """The mean distance of quantiles (Wasserstein 1) to the teacher's 200 steps."""
    teacher, student = Mixture(), Line()
    method = FlowMap.build(
        FlowMapConfig(diagonal=0.4, to_data=0.35, h=0.01), Cast.of(teacher, student)
    )
    optimizer = torch.optim.Adam(student.module.parameters(), lr=4e-3)
    generator, steps, size = torch.Generator().manual_seed(1), 1200, 256

    class Quick:
        """Draws from one generator: for a test that takes a thousand batches."""

        def uniform(self, name: str, shape=(), device="cpu") -> Tensor:
            return torch.rand(size, *shape, generator=generator)

        def normal(self, name: str, shape=(), device="cpu") -> Tensor:
            return torch.randn(size, *shape, generator=generator)

    index = torch.arange(size)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        which = torch.randint(0, 2, (size, 1, 1, 1), generator=generator)
        x0 = torch.tensor(teacher.means)[which] + 0.3 * torch.randn(
            size, 1, 1, 1, generator=generator
        )
        ((_, terms),) = method.losses(
            Batch(index, Pairs(x0, x0, Condition())), ("student",), Quick()
        )
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    noise = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plans = {n: StepPlan.from_schedule(student.schedule, n) for n in (1, 2, 4, 8, 25, 200)}
        wanted = quantiles(sample(teacher, plans[200], noise, Condition()))
        errors = {
            n: float(
                (quantiles(sample(student, plans[n], noise, Condition())) - wanted).abs().mean()
            )
            for n in (1, 2, 4, 8, 25)
        }
        plain = float(
            (quantiles(sample(teacher, plans[1], noise, Condition())) - wanted).abs().mean()
        )
    assert max(errors.values()) < 0.1  # measured: 0.08, 0.08, 0.04, 0.03, 0.03
    assert all(error < errors[1] + 0.01 for error in errors.values()), "no worse in more steps"
    assert plain > 0.5, "one step of the teacher draws its mean"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"h": 0.0}, r"h is 0\.0; it must be above 0"),
        ({"diagonal": 1.0, "to_data": 0.0}, r"diagonal below 1, or no step would be learned"),
        ({"diagonal": 0.8}, r"shares are at most 1 together"),
        ({"robustness": 1.5}, r"robustness is 1\.5; it must be in \[0, 1\]"),
        ({"velocity": "data", "guidance": 3.0}, r"only a teacher can be guided"),
        ({"velocity": "student"}, r"velocity is 'student'"),
        ({"timesteps": {"uniforn": {}}}, r"did you mean 'uniform'"),
    ],
)
def test_wrong_settings_are_told(settings, words):
    with pytest.raises(ValueError, match=words):
        FlowMapConfig(**settings)


def test_what_has_no_velocity_or_cannot_be_told_is_refused(tiny_denoiser):
    epsilon = DiffusersDenoiser(tiny_denoiser.module, tiny_denoiser.schedule, "epsilon")
    with pytest.raises(ValueError, match=r"'epsilon' cannot be converted .* alpha is 0"):
        FlowMap.build(FlowMapConfig(), Cast.of(epsilon, epsilon.copy()))
    with pytest.raises(ValueError, match=r"the student is a LoRA role.*flow map"):
        FlowMap.build(FlowMapConfig(), Cast.of(tiny_denoiser, add_lora(tiny_denoiser, "student")))
    with pytest.raises(ValueError, match=r"is to be guided \(guidance 3\.0\), but it has no empty"):
        FlowMap.build(FlowMapConfig(guidance=3.0), Cast.of(tiny_denoiser, tiny_denoiser.copy()))
