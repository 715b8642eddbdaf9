"""Pairs: what a teacher made and from what; their store on disk, their maker and their loader."""

from nitrodistill.data.generate import generate
from nitrodistill.data.generation import FloatType, GenerateConfig, Generation
from nitrodistill.data.loader import DictRows, PairStream, RowPairs
from nitrodistill.data.manifest import Column, File, Generated, Grid, Manifest
from nitrodistill.data.pairs import PairStore
from nitrodistill.data.text import read_prompts

__all__ = [
    "Column",
    "DictRows",
    "File",
    "FloatType",
    "GenerateConfig",
    "Generated",
    "Generation",
    "Grid",
    "Manifest",
    "PairStore",
    "PairStream",
    "RowPairs",
    "generate",
    "read_prompts",
]
