"""Candidates for the noise tables of an exported scheduler, as arguments of diffusers' classes.

**Betas.** For a student of t = T - 1 it is the teacher's own table (rescaled to zero SNR or not, as
the plan says) with "trailing" spacing, whose only step is then T - 1. For a student of an earlier t
(Nitro-PixArt 400, DMD2-SDXL 399) it is the table cut after t: K = t + 1 timesteps, for linear betas with

    beta_end' = b_0 + (b_1 - b_0) (K - 1) / (T - 1)        (scaled_linear: the same for the square roots),

else with the betas themselves.

**Flows.** One step starts from sigma = 1 whatever the shift. For several, diffusers lays a grid v (from the call,
or a line from 1 to the smallest training sigma, which would waste the last step), shifts and stretches it,

    f(v) = shift v / (1 + (shift - 1) v),     sigma_i = 1 - (1 - f(v_i)) (1 - terminal) / (1 - f(v_last)),

and both numbers are in its config: `shift_terminal` is the plan's last sigma, and the shift is solved for the
plan's second one. That is exact for every plan of up to three steps, and for every shifted trailing grid
(`RectifiedFlow.timesteps`), because f after a line and a line after f are the same family of functions.

**EDM.** The grid has no setting but its two ends and rho, which are the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nitrodistill.sampling import StepPlan


def beta_tables(plan: StepPlan, scheduler: Any) -> Iterator[dict[str, Any]]:
    """The teacher's betas, rescaled or not, whole or cut after the plan's first t.

    Args:
        plan: whose first timestep is the last one of a cut table.
        scheduler: the teacher's, with betas.

    Raises:
        ValueError: if the scheduler has no betas.
    """
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    whole = {key: scheduler.config[key] for key in keys if key in scheduler.config}
    if "beta_schedule" not in whole:
        raise ValueError(
            f"the teacher's {type(scheduler).__name__} has no betas, so only students that predict "
            "'flow_prediction' can be exported with it; convert the student's prediction, or give the "
            "pipeline a scheduler with betas."
        )
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


def edm_table(scheduler: Any) -> dict[str, Any]:
    """The noise levels and the preconditioning of EDM's scheduler, for one that samples on its own grid."""
    keys = ("sigma_min", "sigma_max", "sigma_data", "rho", "prediction_type")
    return {key: scheduler.config[key] for key in keys}


def flow_tables(
    plan: StepPlan, scheduler: Any, call_sigmas: Sequence[float] | None
) -> Iterator[dict[str, Any]]:
    """Shifts of a flow: one that bends the pipeline's grid into the plan's.

    Args:
        plan: of at least one step.
        scheduler: the teacher's.
        call_sigmas: see `scheduler_for_plan`.
    """
    total = int(scheduler.config.num_train_timesteps)
    base = {"num_train_timesteps": total, "use_dynamic_shifting": False, "use_flow_sigmas": True}
    wanted = torch.stack([step.output.sigma for step in plan.steps]).double()
    if len(plan) == 1:
        yield {**base, **_shifted(1.0)}
        return
    if call_sigmas is not None and 0 < wanted[1] < 1:
        v = float(call_sigmas[1])
        yield {**base, **_shifted(float(wanted[1]) * (1 - v) / (v * (1 - float(wanted[1]))))}
    shift = _solve_shift(wanted, call_sigmas, total)
    yield {**base, **_shifted(shift), "shift_terminal": float(wanted[-1])}


def _shifted(shift: float) -> dict[str, float]:
    return {"shift": shift, "flow_shift": shift}  # FlowMatch schedulers; DPM++ and UniPC


def _solve_shift(wanted: Tensor, call_sigmas: Sequence[float] | None, total: int) -> float:
    """The shift for which the stretched grid meets the plan's second sigma, by bisection of its logarithm."""
    if len(wanted) < 3:
        return 1.0
    goal = float((1 - wanted[1]) / (1 - wanted[-1]))

    def bent(shift: float, v: float) -> float:
        return shift * v / (1 + (shift - 1) * v)

    def way(shift: float) -> float:
        """How far of the way from 1 to the last sigma the second one is; falls with the shift."""
        if call_sigmas is not None:
            second, last = float(call_sigmas[1]), float(call_sigmas[-1])
        else:
            last = bent(shift, 1 / total)
            second = 1 + (last - 1) / (len(wanted) - 1)
        return (1 - bent(shift, second)) / (1 - bent(shift, last))

    low, high = -10.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if way(math.exp(middle)) > goal else (low, middle)
    return math.exp((low + high) / 2)
