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
from nitrodistill.losses.gradient_penalty import (
    ApproximateR1Penalty,
    ApproximateR1R2Penalty,
    LazyPenalty,
    Penalty,
    R1Penalty,
    R1R2Penalty,
    Side,
    approximate_gradient_penalty,
    gradient_penalty,
)
from nitrodistill.losses.laplacian import LaplacianPyramidLoss
from nitrodistill.losses.latent_augmentation import augment_latents
from nitrodistill.losses.latent_lpips import LatentLPIPSLoss
from nitrodistill.losses.lpips import LPIPSLoss, TargetFeatures
from nitrodistill.losses.ms_ssim import MSSSIMLoss
from nitrodistill.losses.named import (
    LossSpec,
    check_losses,
    named_adversarial,
    named_loss,
    named_penalties,
)
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
    "ApproximateR1Penalty",
    "ApproximateR1R2Penalty",
    "CharbonnierLoss",
    "DecodedLoss",
    "HingeGANLoss",
    "HuberLoss",
    "L1Loss",
    "L2Loss",
    "LPIPSLoss",
    "LaplacianPyramidLoss",
    "LatentLPIPSLoss",
    "LatentSSIMLoss",
    "LazyPenalty",
    "LeastSquaresGANLoss",
    "Loss",
    "LossSpec",
    "MSSSIMLoss",
    "MultiScaleLoss",
    "NonSaturatingGANLoss",
    "Penalty",
    "PseudoHuberLoss",
    "R1Penalty",
    "R1R2Penalty",
    "Reduction",
    "RelativisticGANLoss",
    "SSIMLoss",
    "Side",
    "SmoothL1Loss",
    "TargetFeatures",
    "WeightedSum",
    "approximate_gradient_penalty",
    "augment_latents",
    "check_losses",
    "denoising_loss",
    "gradient_penalty",
    "named_adversarial",
    "named_loss",
    "named_penalties",
]
