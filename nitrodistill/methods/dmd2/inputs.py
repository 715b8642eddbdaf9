"""What the student is fed: noise, its own trajectory (backward simulation), noised data, or a pair's noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nitrodistill.method import Draws
from nitrodistill.methods.dmd2.config import DMD2Config
from nitrodistill.models import DiffusersDenoiser
from nitrodistill.rows import is_chosen
from nitrodistill.sampling import Step, StepPlan, sample
from nitrodistill.types import (
    Batch,
    Condition,
    Denoiser,
    Latents,
    NoiseSchedule,
    Pairs,
    Part,
    expand,
)


@dataclass(frozen=True)
class Inputs:
    """An input of the student.

    Attributes:
        step: of its plan, the same for all rows.
        fraction: of the way from data to noise at that step.
        x_t: `(B, C, H, W)`.
        condition: the prompts.
        rows: `(B,)` bool, which rows are pairs; None: none.
    """

    step: Step
    fraction: float
    x_t: Tensor
    condition: Condition
    rows: Tensor | None


def plans_of(config: DMD2Config, schedule: NoiseSchedule) -> tuple[StepPlan, tuple[StepPlan, ...]]:
    """How the student samples, and the trajectories that it is trained on."""
    if config.timestep is not None:
        plan = StepPlan.from_noise(schedule, config.timestep)
        return plan, (plan,)
    low, high = config.step_range or (config.num_inference_steps, config.num_inference_steps)
    plan, *plans = (
        StepPlan.from_schedule(schedule, n, config.transition)
        for n in (config.num_inference_steps, *range(low, high + 1))
    )
    return plan, tuple(plans)


@torch.no_grad()
def make_inputs(
    config: DMD2Config, student: Denoiser, plans: tuple[StepPlan, ...], batch: Batch, draws: Draws
) -> Inputs:
    """The input of a step that is drawn for all samples, micro-batches and processes alike.

    So that all call the student equally often. Where it is a later step, the sampler itself goes there; or it is
    noised data, with their own prompts. Where all rows are pairs, nothing is simulated.

    Raises:
        ValueError: if the batch lacks a part that the settings ask for.
        TypeError: if nothing says the shape of the latents.
    """
    condition = prompts_of(batch, config.conditions)
    device, shape = _device(condition), _shape(config, student, batch)
    noise = draws.normal("noise", shape, device)
    plan = plans[int(draws.shared.uniform("plan").item() * len(plans))]
    number = int(draws.shared.uniform("step").item() * len(plan))
    step, share = plan.steps[number], _paired_share(config, draws)
    simulated = draws.shared.uniform("backward").item() < config.backward and share < 1
    x0 = None
    if number > 0 and not simulated:
        assert config.data is not None
        data = latents_of(batch, config.data)
        x0, condition = data.x0.to(noise.dtype), data.condition
    rows = is_chosen(batch.index, share) if share else None
    if rows is not None:
        both = Condition.cat([condition, prompts_of(batch, "pairs")])
        condition = both.index(torch.arange(len(rows)) + len(rows) * rows)
    if number == 0:
        x_t = step.input.sigma.to(noise.dtype) * noise
    elif x0 is not None:
        x_t = step.input.mix(x0, noise)
    else:
        steps = range(1, number + 1)
        fresh = {i: draws.normal(f"renoise.{i}", shape, device) for i in steps}
        x_t = sample(student, plan, noise, condition, fresh.__getitem__, stop=number)
    if rows is not None:
        pairs = latents_of(batch, "pairs")
        assert isinstance(pairs, Pairs)
        paired = step.input.mix(pairs.x0.to(x_t.dtype), pairs.noise.to(x_t.dtype))
        x_t = torch.where(expand(rows, x_t), paired, x_t)
    fraction = 1.0 if number == 0 else float(student.schedule.fraction(step.t))
    return Inputs(step, fraction, x_t, condition, rows)


def latents_of(batch: Batch, part: Literal["pairs", "real"]) -> Pairs | Latents:
    """The data of a batch.

    Raises:
        ValueError: if it is not there.
    """
    found = batch.pairs if part == "pairs" else batch.real
    if found is None:
        raise ValueError(f"the batch has no {part}, which DMD2's settings ask for.")
    return found


def prompts_of(batch: Batch, part: Part) -> Condition:
    """The prompts of a part of a batch.

    Raises:
        ValueError: if it is not there.
    """
    if part != "prompts":
        return latents_of(batch, part).condition
    if batch.prompts is None:
        raise ValueError("the batch has no prompts, which DMD2's settings ask for.")
    return batch.prompts


def _paired_share(config: DMD2Config, draws: Draws) -> float:
    """The share of the rows that are pairs."""
    if config.regression is None:
        return 0.0
    return 1.0 if draws.step < config.warmup_steps else config.regression.share


def _shape(config: DMD2Config, student: Denoiser, batch: Batch) -> tuple[int, ...]:
    """Of a latent: the data's, or what the student draws."""
    if config.data is not None:
        return tuple(latents_of(batch, config.data).x0.shape[1:])
    if not isinstance(student, DiffusersDenoiser):
        raise TypeError(
            f"{type(student).__name__} does not say the shape of its latents, and no data does; train a "
            "DiffusersDenoiser, or set gan or regression."
        )
    return student.latent_shape()


def _device(condition: Condition) -> torch.device:
    tensors = (*condition.tensors.values(), condition.prompt_ids)
    return next((x.device for x in tensors if x is not None), torch.device("cpu"))
