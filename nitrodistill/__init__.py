"""nitrodistill: distil diffusion models to one step.

Losses, schedules and discriminators for any training loop; methods with a reference trainer; a command
line for the whole road. Importing this loads torch and nothing heavier: what needs diffusers, datasets or
accelerate is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nitrodistill.discriminator import LatentDiscriminator
from nitrodistill.losses import *  # noqa: F403
from nitrodistill.losses import __all__ as _losses
from nitrodistill.losses import functional
from nitrodistill.method import DistillationMethod, Draws, Role
from nitrodistill.methods import LADD, LADDConfig
from nitrodistill.models import DiffusersDenoiser, FeatureTaps, Guided, Pipeline
from nitrodistill.prediction import (
    check_convertible,
    convert_prediction,
    prediction_target,
    to_eps,
    to_x0,
)
from nitrodistill.sampling import Step, StepPlan, predict_x0, sample
from nitrodistill.schedules import DiscreteSchedule, KarrasSchedule, RectifiedFlow, ZeroTerminalSNR
from nitrodistill.timesteps import LogitNormal, Shifted, TimestepLaw, Uniform
from nitrodistill.types import (
    Batch,
    Condition,
    Denoiser,
    NoiseSchedule,
    PredictionType,
    Scales,
    Terms,
)
from nitrodistill.weighting import min_snr_weight, snr_plus_one_weight, truncated_snr_weight

if TYPE_CHECKING:
    from nitrodistill.data import GenerateConfig, PairStore, PairStream, generate
    from nitrodistill.evaluation import evaluate
    from nitrodistill.export import export
    from nitrodistill.training import Trainer, TrainerConfig

__version__ = "0.1.0.dev0"

_LAZY = {
    "GenerateConfig": "nitrodistill.data",
    "PairStore": "nitrodistill.data",
    "PairStream": "nitrodistill.data",
    "Trainer": "nitrodistill.training",
    "TrainerConfig": "nitrodistill.training",
    "evaluate": "nitrodistill.evaluation",
    "export": "nitrodistill.export",
    "generate": "nitrodistill.data",
}

__all__ = [
    "LADD",
    "Batch",
    "Condition",
    "Denoiser",
    "DiffusersDenoiser",
    "DiscreteSchedule",
    "DistillationMethod",
    "Draws",
    "FeatureTaps",
    "GenerateConfig",
    "Guided",
    "KarrasSchedule",
    "LADDConfig",
    "LatentDiscriminator",
    "LogitNormal",
    "NoiseSchedule",
    "PairStore",
    "PairStream",
    "Pipeline",
    "PredictionType",
    "RectifiedFlow",
    "Role",
    "Scales",
    "Shifted",
    "Step",
    "StepPlan",
    "Terms",
    "TimestepLaw",
    "Trainer",
    "TrainerConfig",
    "Uniform",
    "ZeroTerminalSNR",
    "check_convertible",
    "convert_prediction",
    "evaluate",
    "export",
    "functional",
    "generate",
    "min_snr_weight",
    "predict_x0",
    "prediction_target",
    "sample",
    "snr_plus_one_weight",
    "to_eps",
    "to_x0",
    "truncated_snr_weight",
    *_losses,
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'nitrodistill' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
