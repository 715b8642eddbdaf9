"""Diffusers models behind the library's own nouns: denoisers, pipelines, feature taps."""

from nitrodistill.models.denoiser import DiffusersDenoiser, Guided
from nitrodistill.models.pipeline import Pipeline
from nitrodistill.models.taps import FeatureTaps

__all__ = ["DiffusersDenoiser", "FeatureTaps", "Guided", "Pipeline"]
