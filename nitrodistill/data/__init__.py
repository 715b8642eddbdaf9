"""Pairs: what a teacher made and from what; their store on disk, their maker and their loader."""

from nitrodistill.data.columns import Column
from nitrodistill.data.conditioning import Embeddings, FloatType
from nitrodistill.data.generate import complete, generate
from nitrodistill.data.generation import Estimate, GenerateConfig, Generation, Noise
from nitrodistill.data.loader import DictRows, PairStream, RowPairs
from nitrodistill.data.manifest import File, Manifest
from nitrodistill.data.pairs import PairStore
from nitrodistill.data.sources import Encoded, Generated, Grid, Imported, Source
from nitrodistill.data.text import read_prompts
from nitrodistill.data.work import Work

__all__ = [
    "Column",
    "DictRows",
    "Embeddings",
    "Encoded",
    "Estimate",
    "File",
    "FloatType",
    "GenerateConfig",
    "Generated",
    "Generation",
    "Grid",
    "Imported",
    "Manifest",
    "Noise",
    "PairStore",
    "PairStream",
    "RowPairs",
    "Source",
    "Work",
    "complete",
    "generate",
    "read_prompts",
]
