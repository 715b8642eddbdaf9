"""Evaluation: does the student match its teacher?"""

from nitrodistill.evaluation.alignment import Alignment
from nitrodistill.evaluation.catalogue import MetricInfo, info
from nitrodistill.evaluation.config import EvaluateConfig
from nitrodistill.evaluation.cost import Timing, count_flops, measure, peak_memory
from nitrodistill.evaluation.discrepancy import KernelDistance
from nitrodistill.evaluation.diversity import PromptSpread
from nitrodistill.evaluation.evaluate import evaluate, help_draw
from nitrodistill.evaluation.features import Extractor
from nitrodistill.evaluation.frechet import (
    GaussianStatistics,
    extrapolated_floor,
    frechet_distance,
    gaussian_distance,
)
from nitrodistill.evaluation.manifold import manifold_scores
from nitrodistill.evaluation.nearest import NearestPair
from nitrodistill.evaluation.picture import draw_grid
from nitrodistill.evaluation.real import ImageFolder, RealImages
from nitrodistill.evaluation.result import Evaluation, Metric, Pictures, Sample
from nitrodistill.evaluation.sharpness import (
    TextureFeatures,
    edge_strength,
    gradient_energy,
    high_frequency_energy,
)
from nitrodistill.evaluation.text import TextScore

__all__ = [
    "Alignment",
    "EvaluateConfig",
    "Evaluation",
    "Extractor",
    "GaussianStatistics",
    "ImageFolder",
    "KernelDistance",
    "Metric",
    "MetricInfo",
    "NearestPair",
    "Pictures",
    "PromptSpread",
    "RealImages",
    "Sample",
    "TextScore",
    "TextureFeatures",
    "Timing",
    "count_flops",
    "draw_grid",
    "edge_strength",
    "evaluate",
    "extrapolated_floor",
    "frechet_distance",
    "gaussian_distance",
    "gradient_energy",
    "help_draw",
    "high_frequency_energy",
    "info",
    "manifold_scores",
    "measure",
    "peak_memory",
]
