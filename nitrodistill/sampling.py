"""Steps, plans and the one sampler that they need.

A **Step** says what a student is fed, its timestep and how its prediction is read:

    x_t = input.alpha x0 + input.sigma noise,   prediction = f(x_t, t),   x0 = convert(prediction, x_t, output)

In an ordinary sampler input = output = schedule(t). Nitro's students are not ordinary: they are fed pure
noise, `input = (0, 1)`, while conditioned and converted at another timestep (999 unrescaled for SD2.1,
400 for PixArt). A **StepPlan** is a tuple of steps, and what happens between two of them:

    ode       x' = input'.alpha x0 + input'.sigma eps        (DDIM, Song et al. 2021, eq. 12 with eta = 0;
                                                              for rectified flow and EDM this is Euler)
    renoise   x' = input'.alpha x0 + input'.sigma new noise  (consistency and few-step students)

Training, sampling and export read the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from nitrodistill.checks import check_choice, check_finite, check_fraction, check_kind
from nitrodistill.prediction import Clamp, Clamped, check_convertible, to_eps, to_x0
from nitrodistill.schedules import DiscreteSchedule
from nitrodistill.types import (
    Condition,
    Denoiser,
    NoiseSchedule,
    PredictionType,
    Scales,
    TakesInputs,
    as_condition,
    brief_fields,
    check_denoiser,
    check_schedule,
    expand,
)

Transition = Literal["renoise", "ode"]


@dataclass(frozen=True)
class Step:
    """One evaluation of a network, the same for all samples, or `(B,)` with one for each.

    Attributes:
        t: the network's timestep, in its own unit.
        input: how its input is mixed.
        output: with which scales its prediction is read.

    Example:
        >>> nd.StepPlan.from_noise(nd.RectifiedFlow(), 400).steps[0]
        Step(t=400, input=(0, 1), output=(0.6, 0.4))
    """

    t: Tensor
    input: Scales
    output: Scales

    __repr__ = brief_fields

    def __post_init__(self) -> None:
        way_out = "; `StepPlan.from_schedule` makes steps of a schedule"
        for name, value, kind in (
            ("t", self.t, Tensor),
            ("input", self.input, Scales),
            ("output", self.output, Scales),
        ):
            check_kind(name, value, kind, way_out)
        shapes = {tuple(x.shape) for x in (self.t, *self.input, *self.output)}
        if len(shapes) > 1 or len(self.t.shape) > 1:
            raise ValueError(
                f"a Step's t and scales are all zero-dimensional, or all (B,), got {shapes}."
            )

    def take(self, rows: Tensor) -> Step:
        """The step of some samples, `rows` `(b,)` int64; one that is the same for all stays as it is."""
        if self.t.ndim == 0:
            return self
        t, *scales = (value[rows.to(value.device)] for value in (self.t, *self.input, *self.output))
        return Step(t, Scales(*scales[:2]), Scales(*scales[2:]))


@dataclass(frozen=True)
class StepPlan:
    """The steps of a sampler, noisiest first, and the transition between them.

    Build one with `from_schedule` (an ordinary sampler) or `from_noise` (Nitro's kind).

    Example:
        >>> plan = nd.StepPlan.from_schedule(teacher.denoiser.schedule, num_inference_steps=4)
        >>> plan, plan.check("v_prediction") is plan
        (StepPlan(4 steps, ode, t = 999, 749, 499, 249), True)
    """

    steps: tuple[Step, ...]
    transition: Transition = "ode"

    def __post_init__(self) -> None:
        check_kind("steps", self.steps, tuple[Step, ...])
        if not self.steps:
            raise ValueError("a StepPlan needs at least one step.")
        if any(step.t.ndim for step in self.steps):
            raise ValueError("the steps of a StepPlan hold zero-dimensional t and scales.")
        check_choice("transition", self.transition, get_args(Transition))

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        """Its timesteps; of one step, which may be fed what it is not read at, all of it."""
        if len(self) == 1:
            return f"StepPlan({self.steps[0]})"
        shown = [f"{step.t.item():.4g}" for step in self.steps]
        some = [*shown[:6], "...", shown[-1]] if len(shown) > 8 else shown
        return f"StepPlan({len(self)} steps, {self.transition}, t = {', '.join(some)})"

    @classmethod
    def from_schedule(
        cls, schedule: NoiseSchedule, num_inference_steps: int = 1, transition: Transition = "ode"
    ) -> StepPlan:
        """An ordinary sampler on the schedule's "trailing" grid.

        The first input is pure noise of the schedule's `prior_scale`, as diffusers' pipelines
        start, whatever the schedule's own alpha there.

        Raises:
            ValueError: if the schedule has no grid of `num_inference_steps`.
        """
        steps = []
        for t in check_schedule(schedule).timesteps(num_inference_steps):
            scales = schedule(t)
            steps.append(Step(t, scales, scales))
        steps[0] = Step(steps[0].t, _pure_noise(schedule.prior_scale), steps[0].output)
        return cls(tuple(steps), transition)

    @classmethod
    def from_noise(cls, schedule: NoiseSchedule, t: float) -> StepPlan:
        """One step that is fed pure noise, but at, and read at, timestep `t` (Nitro, DMD2-SDXL).

        Args:
            schedule: whose scales the prediction is read with; *not* rescaled to zero SNR if the
                network predicts epsilon.
            t: the timestep in the network's unit: 999 for Nitro-SD2.1, 400 for Nitro-PixArt.

        Raises:
            ValueError: if the schedule has no such timestep.
        """
        like = check_schedule(schedule).timesteps(1)[0]
        given = torch.tensor(check_finite("t", t), dtype=like.dtype)
        first, last = schedule.timestep(torch.tensor([0.0, 1.0])).tolist()
        slack = 1e-9 * last  # of rounding
        if given != t or not first - slack <= t <= last + slack:
            raise ValueError(
                f"timestep {t} is not one of the network's; they run from {first} to {like.item()}"
                f"{'' if like.is_floating_point() else ', whole numbers only'}."
            )
        return cls((Step(given, _pure_noise(schedule.prior_scale), schedule(given)),))

    def check(self, prediction_type: PredictionType) -> StepPlan:
        """Returns the plan if a network of this prediction type can follow it.

        Raises:
            ValueError: if a conversion on the way would divide by zero.
        """
        for i, step in enumerate(self.steps):
            check_convertible(step.output, prediction_type)
            if self.transition == "ode" and i + 1 < len(self.steps):
                check_convertible(step.output, prediction_type, "epsilon")
        return self

    def after(self, schedule: NoiseSchedule) -> StepPlan:
        """The next steps: the i-th is this plan's i + 1-th, and the last one the data, (alpha, sigma) = (1, 0).

        `plan.at(u)` and `plan.after(schedule).at(u)` are neighbours.
        """
        one = torch.ones((), dtype=torch.float64)
        data = Scales(one, 0 * one)
        last = Step(schedule.timestep(torch.zeros(())).to(self.steps[0].t.dtype), data, data)
        return StepPlan((*self.steps[1:], last), self.transition)

    def timesteps(self) -> Tensor:
        """`(N,)` the network's timesteps."""
        return torch.stack([step.t for step in self.steps])

    def at(self, u: Tensor) -> Step:
        """A step for every sample, chosen by uniform draws `u` `(B,)` in [0, 1)."""
        u = check_fraction("u", u)
        if u.ndim != 1:
            raise ValueError(f"u has shape {tuple(u.shape)}; it must be (B,), one draw per sample.")
        chosen = [self.steps[i] for i in (u * len(self)).long().clamp(max=len(self) - 1).tolist()]

        def stacked(sides: list[Scales]) -> Scales:
            return Scales(
                torch.stack([s.alpha for s in sides]), torch.stack([s.sigma for s in sides])
            )

        return Step(
            torch.stack([step.t for step in chosen]),
            stacked([step.input for step in chosen]),
            stacked([step.output for step in chosen]),
        )


def predict_x0(denoiser: Denoiser, step: Step, x_t: Tensor, condition: Condition) -> Tensor:
    """The x0 that `denoiser` sees in `x_t` `(B, C, H, W)` at `step`; float32 or wider.

    Example:
        >>> step = nd.StepPlan.from_schedule(teacher.denoiser.schedule).steps[0]
        >>> nd.predict_x0(teacher.denoiser, step, noise, condition).shape
        torch.Size([2, 4, 8, 8])
    """
    condition = _checked(denoiser, step, condition)
    prediction = denoiser(x_t, step.t.to(x_t.device), condition)
    return _wide(to_x0(prediction, x_t, step.output, denoiser.prediction_type))


def predict_both(
    denoiser: Denoiser, step: Step, x_t: Tensor, condition: Condition
) -> tuple[Tensor, Tensor]:
    """x0 and eps that `denoiser` sees in `x_t` `(B, C, H, W)` at `step`; float32 or wider.

    If the denoiser says how its scheduler clamps x0 (`DiffusersDenoiser.clamp`), so it is here.

    Example:
        >>> step = nd.StepPlan.from_schedule(teacher.denoiser.schedule).steps[0]
        >>> x0, eps = nd.predict_both(teacher.denoiser, step, noise, condition)
        >>> x0.shape
        torch.Size([2, 4, 8, 8])
    """
    condition = _checked(denoiser, step, condition)
    prediction, x0 = _prediction_and_x0(denoiser, step, x_t, condition)
    clamp = _clamp_of(denoiser)
    if clamp is not None and clamp.rederives_eps:
        return x0, to_eps(x0, x_t, step.output, "sample")
    return x0, to_eps(prediction, x_t, step.output, denoiser.prediction_type)


def ode_step(
    denoiser: Denoiser, step: Step, after: Step, x_t: Tensor, condition: Condition
) -> Tensor:
    """One step of DDIM, which is Euler's for flows and EDM: `x_t` at `step` -> the input of `after`.

    A flow map (`takes_interval`) gets how far the step goes as an input.

    Args:
        denoiser: the network, guided or not.
        step: where `x_t` is, the same for all samples or one each.
        after: where it goes; see `StepPlan.after`.
        x_t: `(B, C, H, W)`.
        condition: of batch size B.

    Example:
        >>> plan = nd.StepPlan.from_schedule(teacher.denoiser.schedule, 2)
        >>> nd.ode_step(teacher.denoiser, plan.steps[0], plan.steps[1], noise, condition).shape
        torch.Size([2, 4, 8, 8])
    """
    condition = _checked(denoiser, step, condition)
    check_kind("after", after, Step)
    condition = _toward(denoiser, step, after, x_t, condition)
    return _mixed(after, *predict_both(denoiser, step, x_t, condition))


def takes_interval(denoiser: Denoiser) -> bool:
    """Whether a denoiser is a flow map u(x_t, t, r), which takes the `interval` from t to r (`fraction_left`).

    Without it in the Condition it is the plain network, r = t.
    """
    return isinstance(denoiser, TakesInputs) and "interval" in denoiser.extra_inputs


def fraction_left(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """How much of the way to the data is left at `t`, of which a trailing sampler of N steps goes 1/N each.

    1 at the first timestep of any number of steps, and 0 is the data, which lies behind a discrete schedule's
    t = 0.
    """
    if isinstance(schedule, DiscreteSchedule):
        return (t.double() + 1) / schedule.num_timesteps
    return schedule.fraction(t)


def intervals(plan: StepPlan, schedule: NoiseSchedule) -> list[float]:
    """How far each step of a plan goes on the way to the data; the last one goes all that is left."""
    left = [float(fraction_left(schedule, step.t)) for step in plan.steps]
    return [here - there for here, there in zip(left, [*left[1:], 0.0], strict=True)]


def sample(
    denoiser: Denoiser,
    plan: StepPlan,
    noise: Tensor,
    condition: Condition,
    renoise: Callable[[int], Tensor] | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    """Follows a plan from noise to x0, or a part of it.

    If the denoiser says how its scheduler clamps x0 (`DiffusersDenoiser.clamp`: `clip_sample` or `thresholding`
    of a teacher's pipeline), so does every step here.

    Args:
        denoiser: the network, guided or not.
        plan: what to evaluate; `plan.check(denoiser.prediction_type)` is called.
        noise: `(B, C, H, W)` unit Gaussian noise; with `start` above 0 the input of that step.
        condition: what to draw, of batch size B.
        renoise: step number (1, 2, ...) -> fresh noise shaped like `noise`; needed by plans of more
            than one step whose transition is "renoise".
        progress: wraps the iterable of step numbers, for example `tqdm`.
        start: number of the first step that is evaluated.
        stop: number of the first step that is not; its input is returned. None goes on to x0.

    Returns:
        x0 `(B, C, H, W)`, or the input of step `stop`; float32 or wider.

    Raises:
        ValueError: if the plan does not fit the prediction type, `renoise` is missing, or `start` and `stop` are
            no part of the plan.

    Example:
        >>> plan = nd.StepPlan.from_schedule(teacher.denoiser.schedule, num_inference_steps=2)
        >>> with torch.no_grad():
        ...     x0 = nd.sample(teacher.guided(3.0), plan, noise, condition)
        >>> teacher.decode(x0).shape
        torch.Size([2, 3, 32, 32])
    """
    check_kind("plan", plan, StepPlan, ", such as StepPlan.from_schedule(denoiser.schedule, 1)")
    condition = _checked(denoiser, plan.steps[0], condition)
    plan.check(denoiser.prediction_type)
    last = len(plan) if stop is None else stop
    if not (0 <= start < last <= len(plan)) or stop == len(plan):
        raise ValueError(
            f"start is {start} and stop {stop}; of a plan of {len(plan)} steps they must be 0 <= start < stop < "
            f"{len(plan)}, or stop None."
        )
    if plan.transition == "renoise" and last > 1 and renoise is None:
        raise ValueError(
            "this plan renoises between its steps; pass renoise=lambda i: fresh noise."
        )
    x_t = noise if start else plan.steps[0].input.sigma.to(noise.dtype) * noise
    for i in progress(range(start, last)):
        step = plan.steps[i]
        ends = i + 1 == len(plan)
        if plan.transition == "ode" and not ends:
            x_t = ode_step(denoiser, step, plan.steps[i + 1], x_t, condition)
            continue
        to_data = _toward(denoiser, step, None, x_t, condition)
        x0 = _prediction_and_x0(denoiser, step, x_t, to_data)[1]
        if ends:
            return x0
        assert renoise is not None
        x_t = _mixed(plan.steps[i + 1], x0, renoise(i + 1))
    return x_t


def _checked(
    denoiser: Denoiser, step: Step, condition: Condition | Mapping[str, Tensor] | None
) -> Condition:
    """The condition, after a look at what it goes with."""
    check_denoiser(denoiser)
    check_kind("step", step, Step, ", such as plan.steps[0]")
    return as_condition(condition)


def _toward(
    denoiser: Denoiser, step: Step, after: Step | None, x_t: Tensor, condition: Condition
) -> Condition:
    """The condition that tells a flow map how far the step goes; None is to the data. Others keep their own."""
    if not takes_interval(denoiser):
        return condition
    interval = fraction_left(denoiser.schedule, step.t)
    if after is not None:
        left = fraction_left(denoiser.schedule, after.t).to(interval.device)
        interval = interval - torch.where(after.input.sigma.to(interval.device) == 0, 0.0, left)
    return condition.having(interval=interval.expand(len(x_t)))


def _prediction_and_x0(
    denoiser: Denoiser, step: Step, x_t: Tensor, condition: Condition
) -> tuple[Tensor, Tensor]:
    """What a network says, and the x0 that it means, clamped as its scheduler clamps."""
    prediction = denoiser(x_t, step.t.to(x_t.device), condition)
    x0 = _wide(to_x0(prediction, x_t, step.output, denoiser.prediction_type))
    clamp = _clamp_of(denoiser)
    return prediction, x0 if clamp is None else clamp(x0)


def _clamp_of(denoiser: Denoiser) -> Clamp | None:
    return denoiser.clamp if isinstance(denoiser, Clamped) else None


def _mixed(step: Step, x0: Tensor, eps: Tensor) -> Tensor:
    alpha, sigma = (expand(scale, x0).to(x0.dtype) for scale in step.input)
    return alpha * x0 + sigma * eps


def _wide(x0: Tensor) -> Tensor:
    return x0.to(torch.promote_types(x0.dtype, torch.float32))


def _pure_noise(scale: float) -> Scales:
    one = torch.ones((), dtype=torch.float64)
    return Scales(0 * one, scale * one)
