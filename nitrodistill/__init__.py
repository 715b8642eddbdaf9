"""nitrodistill: distil diffusion models to one step.

Losses, schedules and discriminators for any training loop; methods with a reference trainer; a command
line for the whole road. Importing this loads torch and nothing heavier: what needs diffusers or
accelerate is imported when it is first used.

The examples in docstrings run in the tests. They take `import torch`, `import nitrodistill as nd` and
`teacher = nd.load_teacher("toy")` as done, with two prompts, their `condition`, and `x0` and `noise` of shape
(2, 4, 8, 8).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nitrodistill.discriminator import (
    AdversarialGame,
    Augmentation,
    ConvHead,
    LatentDiscriminator,
    MLPHead,
    Noising,
    TokenHead,
)
from nitrodistill.losses import (
    AdversarialLoss,
    ApproximateR1Penalty,
    ApproximateR1R2Penalty,
    CharbonnierLoss,
    DecodedLoss,
    HingeGANLoss,
    HuberLoss,
    L1Loss,
    L2Loss,
    LaplacianPyramidLoss,
    LatentLPIPSLoss,
    LatentSSIMLoss,
    LazyPenalty,
    LeastSquaresGANLoss,
    Loss,
    LPIPSLoss,
    MSSSIMLoss,
    MultiScaleLoss,
    NonSaturatingGANLoss,
    Penalty,
    PseudoHuberLoss,
    R1Penalty,
    R1R2Penalty,
    Reduction,
    RelativisticGANLoss,
    Side,
    SmoothL1Loss,
    SSIMLoss,
    TargetFeatures,
    WeightedSum,
    check_losses,
    denoising_loss,
    functional,
    named_adversarial,
    named_loss,
    named_penalties,
)
from nitrodistill.method import Cast, DistillationMethod, Draws, Frozen, Role, frozen_within
from nitrodistill.methods import (
    DMD2,
    LADD,
    Consistency,
    ConsistencyConfig,
    DMD2Config,
    FeatureKD,
    FeatureKDConfig,
    FlowMap,
    FlowMapConfig,
    LADDConfig,
    Progressive,
    ProgressiveConfig,
)
from nitrodistill.models import (
    DiffusersDenoiser,
    FeatureTaps,
    Guided,
    LoRAConfig,
    Pipeline,
    PruneSpec,
    add_lora,
    prune,
)
from nitrodistill.prediction import (
    check_convertible,
    convert_prediction,
    prediction_target,
    to_eps,
    to_x0,
)
from nitrodistill.sampling import Step, StepPlan, ode_step, predict_both, predict_x0, sample
from nitrodistill.schedules import DiscreteSchedule, KarrasSchedule, RectifiedFlow, ZeroTerminalSNR
from nitrodistill.timesteps import (
    Histogram,
    Karras,
    LogitNormal,
    Shifted,
    TimestepLaw,
    Uniform,
    named_law,
)
from nitrodistill.types import (
    Batch,
    Condition,
    Denoiser,
    Latents,
    NoiseSchedule,
    Pairs,
    PredictionType,
    Scales,
    Terms,
    expand,
)
from nitrodistill.weighting import min_snr_weight, snr_plus_one_weight, truncated_snr_weight

if TYPE_CHECKING:
    from nitrodistill.data import (
        BatchStream,
        GenerateConfig,
        LatentStore,
        PairStore,
        Prompts,
        generate,
    )
    from nitrodistill.evaluation import evaluate
    from nitrodistill.evaluation.student import measure_student
    from nitrodistill.teachers import load_teacher
    from nitrodistill.training import OptimizerConfig, Trainer, TrainerConfig

__version__ = "0.1.0.dev0"

_LAZY = {
    "data": ("BatchStream", "GenerateConfig", "LatentStore", "PairStore", "Prompts", "generate"),
    "evaluation": ("evaluate",),
    "evaluation.student": ("measure_student",),
    "teachers": ("load_teacher",),
    "training": ("OptimizerConfig", "Trainer", "TrainerConfig"),
}
"""A module -> the names that are taken from it when they are first used."""

_PACKAGES = ("data", "demo", "evaluation", "export", "kernels", "toy", "training")
"""Imported when they are first named, `nitrodistill.training` for example."""

__all__ = [
    "DMD2",
    "LADD",
    "AdversarialGame",
    "AdversarialLoss",
    "ApproximateR1Penalty",
    "ApproximateR1R2Penalty",
    "Augmentation",
    "Batch",
    "BatchStream",
    "Cast",
    "CharbonnierLoss",
    "Condition",
    "Consistency",
    "ConsistencyConfig",
    "ConvHead",
    "DMD2Config",
    "DecodedLoss",
    "Denoiser",
    "DiffusersDenoiser",
    "DiscreteSchedule",
    "DistillationMethod",
    "Draws",
    "FeatureKD",
    "FeatureKDConfig",
    "FeatureTaps",
    "FlowMap",
    "FlowMapConfig",
    "Frozen",
    "GenerateConfig",
    "Guided",
    "HingeGANLoss",
    "Histogram",
    "HuberLoss",
    "Karras",
    "KarrasSchedule",
    "L1Loss",
    "L2Loss",
    "LADDConfig",
    "LPIPSLoss",
    "LaplacianPyramidLoss",
    "LatentDiscriminator",
    "LatentLPIPSLoss",
    "LatentSSIMLoss",
    "LatentStore",
    "Latents",
    "LazyPenalty",
    "LeastSquaresGANLoss",
    "LoRAConfig",
    "LogitNormal",
    "Loss",
    "MLPHead",
    "MSSSIMLoss",
    "MultiScaleLoss",
    "NoiseSchedule",
    "Noising",
    "NonSaturatingGANLoss",
    "OptimizerConfig",
    "PairStore",
    "Pairs",
    "Penalty",
    "Pipeline",
    "PredictionType",
    "Progressive",
    "ProgressiveConfig",
    "Prompts",
    "PruneSpec",
    "PseudoHuberLoss",
    "R1Penalty",
    "R1R2Penalty",
    "RectifiedFlow",
    "Reduction",
    "RelativisticGANLoss",
    "Role",
    "SSIMLoss",
    "Scales",
    "Shifted",
    "Side",
    "SmoothL1Loss",
    "Step",
    "StepPlan",
    "TargetFeatures",
    "Terms",
    "TimestepLaw",
    "TokenHead",
    "Trainer",
    "TrainerConfig",
    "Uniform",
    "WeightedSum",
    "ZeroTerminalSNR",
    "add_lora",
    "check_convertible",
    "check_losses",
    "convert_prediction",
    "denoising_loss",
    "evaluate",
    "expand",
    "frozen_within",
    "functional",
    "generate",
    "load_teacher",
    "measure_student",
    "min_snr_weight",
    "named_adversarial",
    "named_law",
    "named_loss",
    "named_penalties",
    "ode_step",
    "predict_both",
    "predict_x0",
    "prediction_target",
    "prune",
    "sample",
    "snr_plus_one_weight",
    "to_eps",
    "to_x0",
    "truncated_snr_weight",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"nitrodistill.{name}")
    module = next((place for place, names in _LAZY.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'nitrodistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nitrodistill.{module}"), name)
