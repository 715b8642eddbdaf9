"""Losses: pure functions with one value per sample (`functional`) and a module around each."""

from __future__ import annotations

from nitrodistill.losses.adversarial import (
    AdversarialLoss,
    HingeGANLoss,
    LeastSquaresGANLoss,
    NonSaturatingGANLoss,
    RelativisticGANLoss,
)
from nitrodistill.losses.base import Loss, Reduction
from nitrodistill.losses.composition import MultiScaleLoss, WeightedSum
from nitrodistill.losses.decoded import DecodedLoss
from nitrodistill.losses.denoising import denoising_loss
from nitrodistill.losses.gradient_penalty import approximate_gradient_penalty, gradient_penalty
from nitrodistill.losses.laplacian import LaplacianPyramidLoss
from nitrodistill.losses.lpips import LPIPSLoss, TargetFeatures
from nitrodistill.losses.ms_ssim import MSSSIMLoss
from nitrodistill.losses.named import LossSpec, check_losses, named_adversarial, named_loss
from nitrodistill.losses.reconstruction import (
    CharbonnierLoss,
    HuberLoss,
    L1Loss,
    L2Loss,
    PseudoHuberLoss,
    SmoothL1Loss,
)
from nitrodistill.losses.ssim import LatentSSIMLoss, SSIMLoss

__all__ = [
    "AdversarialLoss",
    "CharbonnierLoss",
    "DecodedLoss",
    "HingeGANLoss",
    "HuberLoss",
    "L1Loss",
    "L2Loss",
    "LPIPSLoss",
    "LaplacianPyramidLoss",
    "LatentSSIMLoss",
    "LeastSquaresGANLoss",
    "Loss",
    "LossSpec",
    "MSSSIMLoss",
    "MultiScaleLoss",
    "NonSaturatingGANLoss",
    "PseudoHuberLoss",
    "Reduction",
    "RelativisticGANLoss",
    "SSIMLoss",
    "SmoothL1Loss",
    "TargetFeatures",
    "WeightedSum",
    "approximate_gradient_penalty",
    "check_losses",
    "denoising_loss",
    "gradient_penalty",
    "named_adversarial",
    "named_loss",
]
