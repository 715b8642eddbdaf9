"""Evaluation: does the student match its teacher?"""

from nitrodistill.evaluation.alignment import Alignment, AlignmentCounts
from nitrodistill.evaluation.catalogue import MetricInfo, info
from nitrodistill.evaluation.config import EvaluateConfig
from nitrodistill.evaluation.cost import Timing, measure
from nitrodistill.evaluation.diversity import PromptSpread
from nitrodistill.evaluation.evaluate import RealImages, evaluate
from nitrodistill.evaluation.frechet import (
    GaussianStatistics,
    extrapolated_floor,
    frechet_distance,
    gaussian_distance,
)
from nitrodistill.evaluation.picture import draw_curves, draw_grid
from nitrodistill.evaluation.result import Evaluation, Metric, Pictures, Sample
from nitrodistill.evaluation.sharpness import (
    TextureFeatures,
    edge_strength,
    high_frequency_energy,
)

__all__ = [
    "Alignment",
    "AlignmentCounts",
    "EvaluateConfig",
    "Evaluation",
    "GaussianStatistics",
    "Metric",
    "MetricInfo",
    "Pictures",
    "PromptSpread",
    "RealImages",
    "Sample",
    "TextureFeatures",
    "Timing",
    "draw_curves",
    "draw_grid",
    "edge_strength",
    "evaluate",
    "extrapolated_floor",
    "frechet_distance",
    "gaussian_distance",
    "high_frequency_energy",
    "info",
    "measure",
]
