"""What a diffusers scheduler says of its network: schedule, prediction type, preconditioning."""

from __future__ import annotations

import math
from typing import Any

from nitrodistill.models.preconditioning import EDMPreconditioning
from nitrodistill.schedules import DiscreteSchedule, KarrasSchedule, RectifiedFlow
from nitrodistill.types import NoiseSchedule, PredictionType, check_prediction_type

__all__ = ["noise_of"]


def noise_of(
    scheduler: Any, timestep_scale: float = 1.0, num_tokens: int | None = None
) -> tuple[NoiseSchedule, PredictionType, EDMPreconditioning | None]:
    """Reads a diffusers scheduler.

    Args:
        scheduler: with `alphas_cumprod`, a flow-matching one, or EDM's.
        timestep_scale: the network's timestep over the scheduler's (Flux: 1/1000).
        num_tokens: image tokens, on which some schedulers' shift depends (Flux).

    Returns:
        the schedule in the network's unit, the prediction type, and EDM's preconditioning or None.

    Raises:
        TypeError: if it is none of these.
    """
    config = scheduler.config
    kind = config.get("prediction_type")
    if type(scheduler).__name__.startswith("FlowMatch") or kind == "flow_prediction":
        t_max = config.num_train_timesteps * timestep_scale
        return RectifiedFlow(t_max, _shift(config, num_tokens)), "flow_prediction", None
    if type(scheduler).__name__.startswith("EDM"):
        schedule = KarrasSchedule(config.sigma_min, config.sigma_max, config.rho)
        return schedule, "sample", EDMPreconditioning(config.sigma_data, kind)
    return DiscreteSchedule.from_scheduler(scheduler), check_prediction_type(str(kind)), None


def _shift(config: Any, num_tokens: int | None) -> float:
    """The resolution shift: a number, or a line through the number of tokens (diffusers' `calculate_shift`)."""
    if not config.get("use_dynamic_shifting", False) or num_tokens is None:
        return float(config.get("shift") or config.get("flow_shift") or 1.0)
    low, high = config.base_image_seq_len, config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (high - low)
    mu = config.base_shift + slope * (num_tokens - low)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)
