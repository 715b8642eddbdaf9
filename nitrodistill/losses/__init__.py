"""Losses: pure functions with one value per sample (`functional`) and a module around each."""

from __future__ import annotations

from nitrodistill.losses.adversarial import (
    AdversarialLoss,
    HingeLoss,
    LeastSquaresLoss,
    NonSaturatingLoss,
    RelativisticLoss,
)
from nitrodistill.losses.base import Loss, Reduction
from nitrodistill.losses.reconstruction import (
    CharbonnierLoss,
    HuberLoss,
    L1Loss,
    L2Loss,
    PseudoHuberLoss,
    SmoothL1Loss,
)

__all__ = [
    "AdversarialLoss",
    "CharbonnierLoss",
    "HingeLoss",
    "HuberLoss",
    "L1Loss",
    "L2Loss",
    "LeastSquaresLoss",
    "Loss",
    "NonSaturatingLoss",
    "PseudoHuberLoss",
    "Reduction",
    "RelativisticLoss",
    "SmoothL1Loss",
]
