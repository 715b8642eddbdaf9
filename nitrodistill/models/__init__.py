"""Diffusers models behind the library's own nouns: denoisers, pipelines, feature taps."""

from nitrodistill.models.adapters import Adapter, Entry, PipelineAdapter
from nitrodistill.models.denoiser import DiffusersDenoiser
from nitrodistill.models.guidance import Guided
from nitrodistill.models.latent_features import DecoderFeatures
from nitrodistill.models.lora import LoRAConfig, add_lora, merged
from nitrodistill.models.pipeline import Pipeline
from nitrodistill.models.pruning import PruneSpec, prune
from nitrodistill.models.taps import FeatureShape, FeatureTaps

__all__ = [
    "Adapter",
    "DecoderFeatures",
    "DiffusersDenoiser",
    "Entry",
    "FeatureShape",
    "FeatureTaps",
    "Guided",
    "LoRAConfig",
    "Pipeline",
    "PipelineAdapter",
    "PruneSpec",
    "add_lora",
    "merged",
    "prune",
]
