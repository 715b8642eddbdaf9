"""Formulas on features and pictures that the embedded teacher's own report and `evaluation` share."""

from nitrodistill.measures.colour import colour_features
from nitrodistill.measures.frechet import (
    GaussianStatistics,
    extrapolated_floor,
    finite,
    frechet_distance,
    gaussian_distance,
)
from nitrodistill.measures.sharpness import (
    TextureFeatures,
    edge_strength,
    gradient_energy,
    gradient_magnitude,
    high_frequency_energy,
)

__all__ = [
    "GaussianStatistics",
    "TextureFeatures",
    "colour_features",
    "edge_strength",
    "extrapolated_floor",
    "finite",
    "frechet_distance",
    "gaussian_distance",
    "gradient_energy",
    "gradient_magnitude",
    "high_frequency_energy",
]
