"""All losses as pure functions with one value per sample, and targets: `nitrodistill.functional`."""

from __future__ import annotations

from nitrodistill.losses.adversarial import (
    hinge_discriminator,
    hinge_generator,
    least_squares_discriminator,
    least_squares_generator,
    non_saturating_discriminator,
    non_saturating_generator,
    relativistic_discriminator,
    relativistic_generator,
)
from nitrodistill.losses.denoising import denoising_loss
from nitrodistill.losses.distribution_matching import (
    distribution_matching,
    f_divergence_weight,
    guidance_matching,
)
from nitrodistill.losses.few_step import ThreePoints, ddim_target, flow_map_target, x0_of_both
from nitrodistill.losses.gradient_penalty import approximate_gradient_penalty, gradient_penalty
from nitrodistill.losses.laplacian import laplacian_pyramid_loss
from nitrodistill.losses.lpips import lpips_distance
from nitrodistill.losses.ms_ssim import ms_ssim_loss
from nitrodistill.losses.reconstruction import (
    charbonnier_loss,
    huber_loss,
    l1_loss,
    l2_loss,
    pseudo_huber_loss,
    smooth_l1_loss,
)
from nitrodistill.losses.ssim import ssim_loss

__all__ = [
    "ThreePoints",
    "approximate_gradient_penalty",
    "charbonnier_loss",
    "ddim_target",
    "denoising_loss",
    "distribution_matching",
    "f_divergence_weight",
    "flow_map_target",
    "gradient_penalty",
    "guidance_matching",
    "hinge_discriminator",
    "hinge_generator",
    "huber_loss",
    "l1_loss",
    "l2_loss",
    "laplacian_pyramid_loss",
    "least_squares_discriminator",
    "least_squares_generator",
    "lpips_distance",
    "ms_ssim_loss",
    "non_saturating_discriminator",
    "non_saturating_generator",
    "pseudo_huber_loss",
    "relativistic_discriminator",
    "relativistic_generator",
    "smooth_l1_loss",
    "ssim_loss",
    "x0_of_both",
]
