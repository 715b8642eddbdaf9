"""Pairs: what a teacher made and from what; their store on disk, their maker and their loader."""

from nitrodistill.data.columns import Column
from nitrodistill.data.conditioning import Embeddings, FloatType
from nitrodistill.data.encode import EncodeConfig, Encoding, encode
from nitrodistill.data.generate import complete, generate
from nitrodistill.data.generation import DryRun, GenerateConfig, Generation, Noise
from nitrodistill.data.images import Captioned, open_images
from nitrodistill.data.latents import LatentStore, Prompts
from nitrodistill.data.loader import BatchStream, DictRows, RowPairs, collate_pairs, together
from nitrodistill.data.manifest import File, Manifest
from nitrodistill.data.merge import Merge, merge
from nitrodistill.data.nitro import NitroConfig, NitroImport
from nitrodistill.data.pairs import PairStore
from nitrodistill.data.prefetch import Prefetch
from nitrodistill.data.prompts import PromptConfig, read_prompts
from nitrodistill.data.sources import Encoded, Generated, Grid, Imported, Source
from nitrodistill.data.statistics import Statistics, Values, statistics
from nitrodistill.data.text import read_lines
from nitrodistill.data.work import Work

__all__ = [
    "BatchStream",
    "Captioned",
    "Column",
    "DictRows",
    "DryRun",
    "Embeddings",
    "EncodeConfig",
    "Encoded",
    "Encoding",
    "File",
    "FloatType",
    "GenerateConfig",
    "Generated",
    "Generation",
    "Grid",
    "Imported",
    "LatentStore",
    "Manifest",
    "Merge",
    "NitroConfig",
    "NitroImport",
    "Noise",
    "PairStore",
    "Prefetch",
    "PromptConfig",
    "Prompts",
    "RowPairs",
    "Source",
    "Statistics",
    "Values",
    "Work",
    "collate_pairs",
    "complete",
    "encode",
    "generate",
    "merge",
    "open_images",
    "read_lines",
    "read_prompts",
    "statistics",
    "together",
]
