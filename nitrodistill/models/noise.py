"""What a diffusers scheduler says of its network: schedule, prediction type, preconditioning, clamp.

Options are read where the scheduler's class takes them: a config also keeps those of other classes. What bends
the meaning of a timestep, or a flow's or EDM's noise levels, is honoured or refused. How the scheduler steps is
not read, for a `StepPlan` says that: solver and order, timestep spacing, Karras' or other sigmas over betas, fresh
noise, where the last step begins (`shift_terminal`, Qwen-Image's) and ends.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from nitrodistill.models.preconditioning import EDMPreconditioning
from nitrodistill.prediction import Clamp
from nitrodistill.schedules import DiscreteSchedule, KarrasSchedule, RectifiedFlow
from nitrodistill.types import NoiseSchedule, PredictionType, check_prediction_type

_BENT = (
    "invert_sigmas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "scale_factors",
)
"""Options that give a flow other noise levels than `RectifiedFlow` has."""


def noise_of(
    scheduler: Any,
    timestep_scale: float = 1.0,
    num_tokens: int | None = None,
    mu: float | None = None,
) -> tuple[NoiseSchedule, PredictionType, EDMPreconditioning | None]:
    """Reads a diffusers scheduler.

    Args:
        scheduler: with `alphas_cumprod`, a flow-matching one, or EDM's.
        timestep_scale: the network's timestep over the scheduler's (Flux: 1/1000).
        num_tokens: image tokens, on which some schedulers' shift depends (Flux).
        mu: of such a shift, where a pipeline has a formula of its own (FLUX.2); by default a line through the
            scheduler's settings.

    Returns:
        the schedule in the network's unit, the prediction type, and EDM's preconditioning or None.

    Raises:
        TypeError: if it is none of these.
        ValueError: if an option gives timesteps or noise levels another meaning than these schedules have.
    """
    name, options = type(scheduler).__name__, _options(scheduler)
    kind = options.get("prediction_type")
    flow = name.startswith("FlowMatch") or bool(options.get("use_flow_sigmas"))
    if flow != (name.startswith("FlowMatch") or kind == "flow_prediction"):
        raise ValueError(
            f"{name} has prediction_type={kind!r} and use_flow_sigmas={options.get('use_flow_sigmas', False)}; a "
            "network that predicts 'flow_prediction' needs flow sigmas, and others must not have them: give it "
            "FlowMatchEulerDiscreteScheduler, or set the two as the network was trained."
        )
    if flow:
        _check_flow(name, options)
        t_max = options["num_train_timesteps"] * timestep_scale
        return RectifiedFlow(t_max, _shift(name, options, num_tokens, mu)), "flow_prediction", None
    if name.startswith("EDM"):
        if options.get("sigma_schedule", "karras") != "karras":
            raise _unread(name, options, "sigma_schedule", "karras")
        schedule = KarrasSchedule(options["sigma_min"], options["sigma_max"], options["rho"])
        return (
            schedule,
            "sample",
            EDMPreconditioning(options["sigma_data"], options["prediction_type"]),
        )
    if options.get("timestep_type") == "continuous" and kind == "v_prediction":
        raise _unread(name, options, "timestep_type", "discrete")  # it tells log(sigma) / 4
    return DiscreteSchedule.from_scheduler(scheduler), check_prediction_type(str(kind)), None


def clamp_of(scheduler: Any) -> Clamp | None:
    """How a diffusers scheduler clamps x0 while sampling, by `thresholding` or else `clip_sample`, or None."""
    name, options = type(scheduler).__name__, _options(scheduler)
    if name.startswith(("CogVideoX", "TCD")) or not options.get("predict_x0", True):
        return None  # these take the options and do nothing with them
    keeps_eps = name.startswith(("DDIM", "RePaint"))
    if options.get("thresholding"):
        ratio, limit = options["dynamic_thresholding_ratio"], options["sample_max_value"]
        return Clamp(limit, ratio, rederives_eps=not keeps_eps)
    if options.get("clip_sample"):
        return Clamp(options.get("clip_sample_range", 1.0), rederives_eps=not keeps_eps)
    return None


def _options(scheduler: Any) -> dict[str, Any]:
    """The options that its class takes."""
    takes, config = inspect.signature(type(scheduler).__init__).parameters, scheduler.config
    return {key: config[key] for key in takes if key in config}


def _check_flow(name: str, options: Mapping[str, Any]) -> None:
    if not {"shift", "flow_shift"} & set(options) or "stages" in options:
        raise ValueError(
            f"{name} is a flow-matching scheduler that is not read; give the pipeline "
            "FlowMatchEulerDiscreteScheduler with the shift that the network was trained at."
        )
    for key in _BENT:
        if options.get(key):
            raise _unread(name, options, key, None if key == "scale_factors" else False)


def _unread(name: str, options: Mapping[str, Any], key: str, default: Any) -> ValueError:
    return ValueError(
        f"{name} has {key}={options[key]!r}, which gives timesteps or noise levels that are not read; rebuild it "
        f"with {key}={default!r} if the network can be used so: "
        f"{name}.from_config(scheduler.config, {key}={default!r})."
    )


def _shift(
    name: str, options: Mapping[str, Any], num_tokens: int | None, mu: float | None
) -> float:
    """The resolution shift: a number, or a line through the number of tokens (diffusers' `calculate_shift`)."""
    if not options.get("use_dynamic_shifting", False):
        return float(options.get("shift", options.get("flow_shift", 1.0)))
    if num_tokens is None or "base_image_seq_len" not in options:
        raise _unread(name, options, "use_dynamic_shifting", False)
    if mu is not None:
        bent = mu
    else:
        low, high = options["base_image_seq_len"], options["max_image_seq_len"]
        slope = (options["max_shift"] - options["base_shift"]) / (high - low)
        bent = options["base_shift"] + slope * (num_tokens - low)
    return bent if options.get("time_shift_type") == "linear" else math.exp(bent)
