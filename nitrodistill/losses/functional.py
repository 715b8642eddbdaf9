"""All losses as pure functions with one value per sample: `nitrodistill.functional`."""

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
from nitrodistill.losses.reconstruction import (
    charbonnier_loss,
    huber_loss,
    l1_loss,
    l2_loss,
    pseudo_huber_loss,
    smooth_l1_loss,
)

__all__ = [
    "charbonnier_loss",
    "hinge_discriminator",
    "hinge_generator",
    "huber_loss",
    "l1_loss",
    "l2_loss",
    "least_squares_discriminator",
    "least_squares_generator",
    "non_saturating_discriminator",
    "non_saturating_generator",
    "pseudo_huber_loss",
    "relativistic_discriminator",
    "relativistic_generator",
    "smooth_l1_loss",
]
