"""A flow map: a student that takes where its step ends as an input, and so samples in any number of steps.

u(x_t, t, r) is the mean velocity of the teacher's flow between the times r < t, so that x_r = x_t - (t - r) u in
one step. It satisfies u = v - (t - r) du/dt along the path, with v the velocity at t, and learns from itself:

    L = |u(x_t, t, r) - sg(v - (t - r) du/dt)|^2 / sg(|...|^2 + 1e-3)^p

du/dt is a difference of three points on the path, t and t +- h (at the ends of the schedule t and two on one
side), with an error O(h^2): no Jacobian product, hence any kernel of attention, checkpointing, and processes that
share weights.

t and r are flow times, sigma / (alpha + sigma), x is x_t / (alpha + sigma) and v = eps - x0, whatever the schedule
and the network's prediction: each prediction is converted. How far the step goes is an input of the network
that is 0 at r = t (`models.inputs`): there the student begins, and remains, an ordinary denoiser.

v is the guided teacher's velocity, or that of the data, eps - x0, which needs no teacher. NVlabs, AnyFlow, 2025
(the central difference); Geng et al. 2025, "Mean Flows", equation 6; Boffi et al. 2024, "Flow Map Matching".
Departures: the shares of t, r are AnyFlow's, but a robust weight a sample (MeanFlow's) stands in for its rescaling
by the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from nitrodistill.checks import check_fields
from nitrodistill.losses.few_step import ThreePoints, flow_map_target
from nitrodistill.method import Cast, DistillationMethod, Draws, Frozen, Role, check_build
from nitrodistill.models.denoiser import ensure_input
from nitrodistill.models.guidance import Guidance, check_guidance
from nitrodistill.prediction import convert_prediction
from nitrodistill.sampling import StepPlan, fraction_left
from nitrodistill.schedules import DiscreteSchedule
from nitrodistill.timesteps import TimestepLaw, named_law
from nitrodistill.types import Batch, Condition, Denoiser, NoiseSchedule, Scales, Terms, expand

Velocity = Literal["teacher", "data"]
_OFFSET = 1e-3  # MeanFlow's


@dataclass(frozen=True)
class FlowMapConfig:
    """Settings of a flow map.

    Attributes:
        velocity: v: the "teacher"'s, or that of the "data" (eps - x0, without guidance).
        guidance: the teacher's scale, 1 is none.
        h: distance of the points of du/dt, as a share of the schedule, in (0, 0.25]; on discrete timesteps at
            least one of them.
        diagonal: share of samples with r = t, which learn v itself.
        to_data: share of samples with r = 0.
        timesteps: law of t in u: uniform, logit_normal or shifted; where r is drawn it is the smaller of two
            draws.
        robustness: p, in [0, 1]: 0 is the squared error, and 1 the same weight for all samples.
        num_inference_steps: steps of previews and evaluations; any number will do afterwards.

    Example:
        >>> nd.FlowMapConfig(velocity="data").num_inference_steps
        4
    """

    velocity: Velocity = "teacher"
    guidance: float = 1.0
    h: float = 0.01
    diagonal: float = 0.5
    to_data: float = 0.25
    timesteps: dict[str, Any] = field(default_factory=lambda: {"uniform": {}})
    robustness: float = 0.75
    num_inference_steps: int = 4

    def __post_init__(self) -> None:
        check_fields(self, diagonal=0, to_data=0, robustness=0, num_inference_steps=1)
        check_guidance(self.guidance, None)
        if not 0 < self.h <= 0.25:
            raise ValueError(f"h is {self.h}; it must be above 0 and at most 0.25.")
        if self.diagonal + self.to_data > 1 or self.diagonal == 1:
            raise ValueError(
                f"diagonal is {self.diagonal} and to_data {self.to_data}; shares are at most 1 together, and "
                "diagonal below 1, or no step would be learned."
            )
        if self.robustness > 1:
            raise ValueError(f"robustness is {self.robustness}; it must be in [0, 1].")
        if self.velocity == "data" and self.guidance != 1:
            raise ValueError(
                f"velocity is 'data' and guidance {self.guidance}, but only a teacher can be guided; set "
                "velocity to 'teacher', or guidance to 1."
            )
        named_law(self.timesteps)


class FlowMap(DistillationMethod):
    """The student, and the teacher whose flow it maps.

    Args:
        config: velocity, difference, shares.
        cast: the networks; the student's gets an input for the interval.

    Raises:
        ValueError: if the prediction has no velocity at the schedule's last timestep, guidance cannot be had, or
            the student cannot take an interval.

    Example:
        >>> cast = nd.Cast.of(teacher.denoiser, teacher.denoiser.copy())
        >>> nd.FlowMap.build(nd.FlowMapConfig(num_inference_steps=2), cast).plan
        StepPlan(2 steps, ode, t = 999, 499)
    """

    Config: ClassVar[type[FlowMapConfig]] = FlowMapConfig

    def __init__(self, config: FlowMapConfig, cast: Cast) -> None:
        check_build(config, FlowMapConfig, cast)
        self.config: FlowMapConfig = config
        self.student: Denoiser = cast.student
        self.teacher: Denoiser | None = cast.teacher if config.velocity == "teacher" else None
        schedule, kind = self.student.schedule, self.student.prediction_type
        self.plan: StepPlan = StepPlan.from_schedule(schedule, config.num_inference_steps)
        self.plan.check(kind)
        ensure_input(self.student, "interval", 0.0)
        self._guidance: Guidance | None = None
        if self.teacher is not None:
            empty = cast.empty
            self._guidance = Guidance(self.teacher, self.student, empty, config.guidance, None)
        self._law: TimestepLaw = named_law(config.timesteps)

    @classmethod
    def build(cls, config: FlowMapConfig, cast: Cast) -> FlowMap:
        """The method on these networks."""
        return cls(config, cast)

    def trainable(self) -> Mapping[str, Role]:
        """The student."""
        return {"student": Role(self.student)}

    def frozen(self) -> Mapping[str, Frozen]:
        """The teacher, where the velocity is its own."""
        return {} if self.teacher is None else {"teacher": Frozen(self.teacher.module)}

    def losses(
        self, batch: Batch, active: Sequence[str], draws: Draws
    ) -> Iterator[tuple[str, Terms]]:
        """Yields the student's term; see `DistillationMethod.losses`."""
        pairs = batch.pairs
        assert pairs is not None, "a flow map reads pairs"
        z, condition, schedule = pairs.x0, pairs.condition, self.student.schedule
        here, end = self._times(draws)
        noise = draws.normal("noise", z.shape[1:], z.device).to(z.dtype)
        x = here.scales.mix(z, noise)
        with torch.no_grad():
            velocity = noise - z
            if self._guidance is not None:
                teacher, _ = self._guidance.at(condition, draws.uniform("guidance"))
                velocity = _velocity(teacher, x, here, condition)
        u = self._mean_velocity(x, here, end, condition)
        with torch.no_grad():
            near = neighbours(schedule, here.t, self.config.h)
            values = [
                self._mean_velocity(along(x, velocity, here, there), there, end, condition)
                for there in near
            ]
            weights = ThreePoints.of(*(there.flow - here.flow for there in near))
            derivative = weights.derivative(u.detach(), *values)
            target = flow_map_target(velocity, derivative, here.flow - end.flow)
        error = (u - target).square().flatten(1).mean(1)
        per_sample = error / (error.detach() + _OFFSET) ** self.config.robustness
        yield "student", Terms(per_sample.mean(), {"flow_map": error.detach()})

    def _times(self, draws: Draws) -> tuple[Moment, Moment]:
        """t and r <= t, of each sample."""
        schedule, config = self.student.schedule, self.config
        share, u, other = (draws.uniform(name) for name in ("share", "t", "r"))
        is_diagonal = share < config.diagonal
        is_drawn = share >= config.diagonal + config.to_data
        first, second = self._law(u), self._law(other)
        last = torch.where(is_drawn, torch.maximum(first, second), first)
        t = schedule.timestep(last)
        r = schedule.timestep(torch.where(is_drawn, torch.minimum(first, second), last))
        here, end = Moment.of(schedule, t), Moment.of(schedule, r)
        return here, end.or_data(~(is_diagonal | is_drawn))

    def _mean_velocity(self, x: Tensor, here: Moment, end: Moment, condition: Condition) -> Tensor:
        """u(x_t, t, r), `(B, *)`; x_t on the schedule's path."""
        given = condition.having(interval=here.left - end.left)
        return _velocity(self.student, x, here, given)


class Moment(NamedTuple):
    """A time of each sample.

    Attributes:
        t: `(B,)` the network's timestep.
        scales: there.
        flow: `(B,)` sigma / (alpha + sigma), 0 at the data.
        left: `(B,)` how much of the way to the data is left, as `fraction_left` has it.
    """

    t: Tensor
    scales: Scales
    flow: Tensor
    left: Tensor

    @classmethod
    def of(cls, schedule: NoiseSchedule, t: Tensor) -> Moment:
        """The moment of timesteps `t`."""
        scales = schedule(t)
        return cls(
            t, scales, scales.sigma / (scales.alpha + scales.sigma), fraction_left(schedule, t)
        )

    def or_data(self, where: Tensor) -> Moment:
        """The data itself, where it is True; only `flow` and `left` of it can be asked for."""
        zero = torch.zeros_like(self.flow)
        flow, left = (torch.where(where, zero, value.to(zero)) for value in (self.flow, self.left))
        return self._replace(flow=flow, left=left)


def neighbours(schedule: NoiseSchedule, t: Tensor, h: float) -> tuple[Moment, Moment]:
    """The moments h after t and h before, or where the schedule ends, h and 2h on the other side.

    Args:
        schedule: whose timesteps.
        t: `(B,)`.
        h: in fractions of the schedule; at least one timestep, where they are whole.
    """
    if isinstance(schedule, DiscreteSchedule):
        last, place = schedule.num_timesteps - 1, t
        distance: float = max(1, round(h * schedule.num_timesteps))
    else:
        last, place, distance = 1, schedule.fraction(t), h
    up = place + distance > last
    down = place - distance < 0
    first = torch.where(up, place - distance, place + distance)
    second = torch.where(up, place - 2 * distance, place - distance)
    second = torch.where(down, place + 2 * distance, second)
    found = (first, second)
    if not isinstance(schedule, DiscreteSchedule):
        found = (schedule.timestep(first), schedule.timestep(second))
    return Moment.of(schedule, found[0]), Moment.of(schedule, found[1])


def along(x: Tensor, velocity: Tensor, here: Moment, there: Moment) -> Tensor:
    """Where the straight line in flow through `x` at `here`, along `velocity`, is at the moment `there`."""
    before, after = (sum(moment.scales, torch.zeros(())) for moment in (here, there))
    of_x, of_velocity = after / before, after * (there.flow - here.flow)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (expand(of_x, x).to(dtype) * x + expand(of_velocity, x).to(dtype) * velocity).to(x.dtype)


def _velocity(denoiser: Denoiser, x: Tensor, here: Moment, condition: Condition) -> Tensor:
    """What a network predicts as eps - x0, float32 or wider."""
    prediction = denoiser(x, here.t.to(x.device), condition)
    kind = denoiser.prediction_type
    found = convert_prediction(prediction, x, here.scales, kind, "flow_prediction")
    return found.to(torch.promote_types(found.dtype, torch.float32))
