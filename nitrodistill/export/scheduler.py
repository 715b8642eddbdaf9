"""The diffusers scheduler that does what a StepPlan says.

For a student that is told t = T - 1 that is the teacher's own table (rescaled to zero SNR or not, as the plan
says) with "trailing" spacing, whose only step is then T - 1. For a student told an earlier t (Nitro-PixArt
400, DMD2-SDXL 399) it is the table cut after t: K = t + 1 timesteps, for linear betas with

    beta_end' = b_0 + (b_1 - b_0) (K - 1) / (T - 1)        (scaled_linear: the same for the square roots),

else with the betas themselves. No table is believed: each candidate is run beside the plan on a probe, and the
first that agrees to 1e-5 is taken.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.method import Draws
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.types import Condition, NoiseSchedule, PredictionType

__all__ = ["scheduler_for_plan"]

TOLERANCE = 1e-5


def scheduler_for_plan(
    plan: StepPlan,
    teacher_scheduler: Any,
    prediction_type: PredictionType,
    kind: str = "DDIMScheduler",
) -> Any:
    """Builds the diffusers scheduler that does what a plan says with `num_inference_steps=len(plan)`.

    Args:
        plan: the student's plan.
        teacher_scheduler: a diffusers scheduler with betas; its table is the starting point.
        prediction_type: what the student predicts.
        kind: diffusers class name. DDIM and DDPM are exact in one step, DDIM also in several.

    Raises:
        ValueError: if no table makes this class follow the plan to 1e-5.
    """
    import diffusers

    plan.check(prediction_type)
    if plan.transition == "renoise" and len(plan) > 1:
        raise ValueError(
            f"a plan of {len(plan)} steps that renoises cannot be exported, because its noise would be "
            "drawn elsewhere; export a one-step plan or one with transition='ode'."
        )
    scheduler_class = getattr(diffusers, kind, None)
    if scheduler_class is None or not kind.endswith("Scheduler"):
        raise ValueError(
            f"diffusers has no scheduler {kind!r}; use 'DDIMScheduler' or 'DDPMScheduler'."
        )
    reasons: list[str] = []
    for table in _tables(plan, teacher_scheduler):
        candidate = _build(scheduler_class, table, prediction_type)
        reason = _disagreement(candidate, plan, prediction_type)
        if reason is None:
            return candidate
        reasons.append(reason)
    raise ValueError(
        f"{kind} cannot express this plan of {len(plan)} step(s) at t={plan.timesteps().tolist()} with "
        f"{prediction_type!r} ({'; '.join(dict.fromkeys(reasons))}). DDIMScheduler and DDPMScheduler are "
        "exact in one step if the plan reads its prediction at the scales of its own timestep."
    )


def _tables(plan: StepPlan, scheduler: Any) -> Iterator[dict[str, Any]]:
    """Arguments that make noise tables: the teacher's, rescaled or not, whole or cut after plan's t."""
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    whole = {key: scheduler.config[key] for key in keys if key in scheduler.config}
    yield {**whole, "rescale_betas_zero_snr": True}
    yield {**whole, "rescale_betas_zero_snr": False}
    length, total = int(plan.steps[0].t) + 1, int(whole["num_train_timesteps"])
    if length >= total:
        return
    power = {"linear": 1.0, "scaled_linear": 0.5}.get(str(whole["beta_schedule"]))
    if power is not None and whole.get("trained_betas") is None:
        low, high = (float(whole[key]) ** power for key in ("beta_start", "beta_end"))
        end = (low + (high - low) * (length - 1) / (total - 1)) ** (1 / power)
        yield {**whole, "num_train_timesteps": length, "beta_end": end}
    betas = [float(beta) for beta in scheduler.betas[:length]]
    yield {**whole, "num_train_timesteps": length, "trained_betas": betas}


def _build(scheduler_class: Any, table: Mapping[str, Any], prediction_type: str) -> Any:
    wanted = {
        **table,
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": False,
        "steps_offset": 1,  # any other value is rewritten by StableDiffusionPipeline
    }
    known = inspect.signature(scheduler_class.__init__).parameters
    return scheduler_class(**{key: value for key, value in wanted.items() if key in known})


def _disagreement(scheduler: Any, plan: StepPlan, prediction_type: PredictionType) -> str | None:
    """Runs scheduler and plan side by side as a pipeline would; None if they agree to 1e-5."""
    index = torch.arange(2)
    noise = Draws(0, 0, index).normal("export_probe", (4, 8, 8))
    probe = _Probe(prediction_type)
    expected = sample(probe, plan, noise, Condition())
    try:
        scheduler.set_timesteps(len(plan))
        if scheduler.timesteps.tolist() != plan.timesteps().tolist():
            return f"its timesteps would be {scheduler.timesteps.tolist()}"
        x_t = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            prediction = probe(scheduler.scale_model_input(x_t, t), t, Condition())
            x_t = scheduler.step(prediction, t, x_t, return_dict=False, **_own_draws(scheduler))[0]
    except (ValueError, NotImplementedError) as error:
        return f"it fails: {error}"
    error = relative_error(x_t, expected)
    return None if error <= TOLERANCE else f"its result would be off by {error:.2g}"


def _own_draws(scheduler: Any) -> dict[str, torch.Generator]:
    takes = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": torch.Generator().manual_seed(0)} if takes else {}


class _Probe:
    """A denoiser that answers something different for every input; its network is never used."""

    def __init__(self, prediction_type: PredictionType) -> None:
        self.module: nn.Module = nn.Identity()
        self.prediction_type: PredictionType = prediction_type

    @property
    def schedule(self) -> NoiseSchedule:
        raise AssertionError("sampling a plan reads no schedule")

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return torch.sin(2 * x_t + 1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the larger of 1 and the largest expected value; inf where not finite."""
    error = float((found.double() - expected.double()).abs().max())
    scale = max(1.0, float(expected.double().abs().max()))
    return error / scale if math.isfinite(error) else math.inf
