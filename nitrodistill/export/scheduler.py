"""The diffusers scheduler that does what a StepPlan says.

Candidates come from `tables`, and none is believed: each is run against the plan on a probe, as a pipeline would
run it, and the first that agrees to 1e-5 is taken.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.export.tables import beta_tables, edm_table, flow_tables
from nitrodistill.method import Draws
from nitrodistill.models.noise import noise_of
from nitrodistill.models.preconditioning import EDMPreconditioning
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.schedules import DiscreteSchedule, RectifiedFlow, ZeroTerminalSNR
from nitrodistill.types import Condition, NoiseSchedule, PredictionType

TOLERANCE = 1e-5


def scheduler_for_plan(
    plan: StepPlan,
    teacher_scheduler: Any,
    prediction_type: PredictionType,
    kind: str | None = None,
    *,
    call_sigmas: Sequence[float] | None = None,
) -> Any:
    """Builds the diffusers scheduler that does what a plan says with `num_inference_steps=len(plan)`.

    Args:
        plan: the student's plan.
        teacher_scheduler: a diffusers scheduler; its table is the starting point.
        prediction_type: what the student predicts; `flow_prediction` gets a flow-matching scheduler.
        kind: diffusers class name. By default one that is exact: DDIM (for several steps that do not divide T,
            DPM++ of order 1), LCM for plans that renoise, for flows FlowMatchEulerDiscrete and FlowMatchLCM, and
            for EDM EDMDPMSolverMultistep of order 1.
        call_sigmas: the sigmas that the pipeline's call passes to `set_timesteps` where its user gives
            none, one for each step (Flux's does so); None if it passes none.

    Raises:
        ValueError: if no table makes such a class follow the plan to 1e-5; it says how each came off.

    Example:
        >>> plan = nd.StepPlan.from_schedule(teacher.denoiser.schedule)
        >>> scheduler = nd.export.scheduler_for_plan(plan, teacher.scheduler, "v_prediction")
        >>> scheduler.config.timestep_spacing
        'trailing'
    """
    plan.check(prediction_type)
    edm = _is_edm(teacher_scheduler)
    kinds = _exact_kinds(plan, prediction_type, edm) if kind is None else (kind,)
    found, reasons = _search(plan, teacher_scheduler, prediction_type, kinds, call_sigmas)
    if found is not None:
        return found
    raise ValueError(
        f"{' and '.join(kinds)} cannot express this plan of {len(plan)} {plan.transition} step(s) at "
        f"t={_brief(plan.timesteps())} with {prediction_type!r} ({'; '.join(dict.fromkeys(reasons))}); "
        f"{_way_out(plan, teacher_scheduler, prediction_type, kind)}"
    )


def _search(
    plan: StepPlan,
    teacher_scheduler: Any,
    prediction_type: PredictionType,
    kinds: Sequence[str],
    call_sigmas: Sequence[float] | None,
) -> tuple[Any, list[str]]:
    """The first scheduler that follows the plan, or None, and why those before it do not."""
    import diffusers

    preconditioning = None
    if _is_edm(teacher_scheduler):
        preconditioning = noise_of(teacher_scheduler)[2]
        tables = [edm_table(teacher_scheduler)]
    elif prediction_type == "flow_prediction":
        tables = list(flow_tables(plan, teacher_scheduler, call_sigmas))
    else:
        tables = list(beta_tables(plan, teacher_scheduler))
    reasons: list[str] = []
    for name in kinds:
        scheduler_class = getattr(diffusers, name, None)
        if scheduler_class is None or not name.endswith("Scheduler"):
            raise ValueError(
                f"diffusers has no scheduler {name!r}; use one such as 'DDIMScheduler', or none: then an "
                "exact one is chosen."
            )
        for table in tables:
            try:
                candidate = _build(scheduler_class, table, prediction_type, len(plan))
                probe = _Probe(prediction_type, preconditioning)
                reason = _disagreement(candidate, plan, probe, call_sigmas)
                if reason is None:
                    return candidate, reasons
            except Exception as error:  # diffusers' classes fail in many ways where they do not fit
                reason = f"it fails: {' '.join(str(error).split()) or type(error).__name__}"
            reasons.append(reason)
    return None, reasons


def _way_out(
    plan: StepPlan, teacher_scheduler: Any, prediction_type: PredictionType, kind: str | None
) -> str:
    """What to do instead; for a trailing grid that diffusers lays otherwise a step count near it that works."""
    if _is_edm(teacher_scheduler):
        return (
            "EDMDPMSolverMultistepScheduler, the default, draws EDM's own grid from sigma_max on, without fresh "
            "noise between the steps: train with one step, or several and `transition: ode`, and no `timestep`."
        )
    schedule = _trailing_schedule(plan, teacher_scheduler)
    if schedule is not None:
        for steps in _neighbours(len(plan), schedule.num_timesteps):
            other = StepPlan.from_schedule(schedule, steps, plan.transition)
            kinds = _exact_kinds(other, prediction_type, False) if kind is None else (kind,)
            if _search(other, teacher_scheduler, prediction_type, kinds, None)[0] is not None:
                return (
                    f"train with {steps} steps, which can be exported: a saved scheduler holds no "
                    "timesteps."
                )
    return (
        "one step is exact in DDIMScheduler or DDPMScheduler (flows: FlowMatchEulerDiscreteScheduler) if the "
        "plan reads its prediction at the scales of its own timestep."
    )


def _trailing_schedule(plan: StepPlan, teacher_scheduler: Any) -> DiscreteSchedule | None:
    """The teacher's schedule, rescaled or not, whose trailing grid of several steps the plan is; None: neither."""
    if len(plan) == 1 or not isinstance(plan.steps[0].t.tolist(), int):
        return None
    plain = DiscreteSchedule.from_scheduler(teacher_scheduler)
    for schedule in (plain, ZeroTerminalSNR()(plain)):
        trailing = StepPlan.from_schedule(schedule, len(plan), plan.transition)
        found, alphas = (
            torch.stack([step.output.alpha for step in each.steps]) for each in (plan, trailing)
        )
        if torch.allclose(found, alphas, atol=1e-6) and torch.equal(
            plan.timesteps(), trailing.timesteps()
        ):
            return schedule
    return None


def _neighbours(num_inference_steps: int, total: int) -> list[int]:
    """Other step counts, the nearest first: one and two away, and those that divide the timesteps."""
    divisors = [n for n in range(2, total + 1) if total % n == 0]
    near = {num_inference_steps + shift for shift in (-2, -1, 1, 2)}
    near |= set([n for n in divisors if n < num_inference_steps][-1:])
    near |= set([n for n in divisors if n > num_inference_steps][:1])
    return sorted(
        (n for n in near if 1 < n <= total), key=lambda n: (abs(n - num_inference_steps), n)
    )


def _is_edm(scheduler: Any) -> bool:
    return type(scheduler).__name__.startswith("EDM")


def _exact_kinds(plan: StepPlan, prediction_type: PredictionType, edm: bool) -> tuple[str, ...]:
    if edm:  # EDMEulerScheduler loses sigma_max times float32's rounding in x - (x - x0)
        return ("EDMDPMSolverMultistepScheduler",)
    renoises = plan.transition == "renoise" and len(plan) > 1
    if prediction_type == "flow_prediction":
        return ("FlowMatchLCMScheduler" if renoises else "FlowMatchEulerDiscreteScheduler",)
    if renoises:
        return ("LCMScheduler",)
    several = ("DDIMScheduler", "DPMSolverMultistepScheduler")
    return several if len(plan) > 1 else several[:1]


def _build(
    scheduler_class: Any, table: Mapping[str, Any], prediction_type: str, num_inference_steps: int
) -> Any:
    wanted = {
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": False,
        "steps_offset": 1,  # any other value is rewritten by StableDiffusionPipeline
        "solver_order": 1,
        "final_sigmas_type": "zero",
        "original_inference_steps": num_inference_steps,  # LCM: the grid of T / N, 2 T / N, ... less 1
        "timestep_scaling": 1000.0,  # LCM: its x0 differs from ours by 1 / (2 t timestep_scaling)^2
        **table,
    }
    known = inspect.signature(scheduler_class.__init__).parameters
    return scheduler_class(**{key: value for key, value in wanted.items() if key in known})


def _disagreement(
    scheduler: Any, plan: StepPlan, probe: _Probe, call_sigmas: Sequence[float] | None
) -> str | None:
    """Runs scheduler and plan side by side as a pipeline would; None if they agree to 1e-5."""
    if call_sigmas is None:
        scheduler.set_timesteps(len(plan))
    else:
        scheduler.set_timesteps(sigmas=list(call_sigmas))
    if not _same_timesteps(scheduler, plan, probe):
        found, wanted = scheduler.timesteps.tolist(), plan.timesteps().tolist()
        if len(found) != len(wanted):
            return f"it would take {len(found)} steps"
        other = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
        return f"its timesteps would be {_brief(scheduler.timesteps)}, step {other + 1} at {found[other]:g}"
    noise = Draws(0, 0, torch.arange(2), purpose="export").normal("noise", (4, 8, 8))
    expected = sample(probe, plan, noise, Condition(), _renoise(noise))
    x_t, draws = noise * getattr(scheduler, "init_noise_sigma", 1.0), _own_draws(scheduler)
    scale_input = getattr(scheduler, "scale_model_input", lambda x, t: x)  # flows have none
    for t in scheduler.timesteps:
        prediction = probe.raw(scale_input(x_t, t))
        x_t = scheduler.step(prediction, t, x_t, return_dict=False, **draws)[0]
    error = relative_error(x_t, expected)
    return None if error <= TOLERANCE else f"its result would be off by {error:.2g}"


def _same_timesteps(scheduler: Any, plan: StepPlan, probe: _Probe) -> bool:
    """Whether the network gets the timesteps of the plan.

    A flow's timestep is sigma in a unit that only the network knows (1000 or 1), so that the plan's unit is
    divided out. EDM's network is told log(sigma) / 4.
    """
    found, wanted = scheduler.timesteps.double().cpu(), plan.timesteps().double()
    if found.shape != wanted.shape:
        return False
    if probe.preconditioning is not None:
        return bool(((found - wanted.log() / 4).abs() <= TOLERANCE).all())
    if probe.prediction_type != "flow_prediction":
        return torch.equal(found, wanted)
    unit = wanted[0] / plan.steps[0].output.sigma.double()
    total = scheduler.config.num_train_timesteps
    return bool(((found / total - wanted / unit).abs() <= TOLERANCE).all())


def _renoise(noise: Tensor) -> Any:
    """The noise that `scheduler.step` draws from `_own_draws`."""
    generator = torch.Generator().manual_seed(0)
    return lambda step: torch.randn(noise.shape, generator=generator, dtype=noise.dtype)


def _own_draws(scheduler: Any) -> dict[str, torch.Generator]:
    takes = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": torch.Generator().manual_seed(0)} if takes else {}


def _brief(timesteps: Tensor) -> str:
    """At most eight of them."""
    words = [str(round(t, 4)) for t in timesteps.tolist()]
    return f"[{', '.join(words if len(words) <= 8 else [*words[:6], '...', words[-1]])}]"


class _Probe:
    """A denoiser that answers something different for every input; its network is never used."""

    def __init__(
        self, prediction_type: PredictionType, preconditioning: EDMPreconditioning | None = None
    ) -> None:
        self.module: nn.Module = nn.Identity()
        self.prediction_type: PredictionType = prediction_type
        self.preconditioning: EDMPreconditioning | None = preconditioning
        self.schedule: NoiseSchedule = RectifiedFlow()  # sampling a plan reads none

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        if self.preconditioning is None:
            return self.raw(x_t)
        scaled, _ = self.preconditioning.input(x_t, t)
        return self.preconditioning.denoised(self.raw(scaled), x_t, t)

    def raw(self, shown: Tensor) -> Tensor:
        """What the network answers to what it is shown."""
        return torch.sin(2 * shown + 1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the larger of 1 and the largest expected value; inf where not finite."""
    error = float((found.double() - expected.double()).abs().max())
    scale = max(1.0, float(expected.double().abs().max()))
    return error / scale if math.isfinite(error) else math.inf
