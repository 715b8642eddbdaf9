"""What the benchmarks that distil the embedded teachers share: metrics, training, tables, docs."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from nitrodistill.data import EncodeConfig, encode, open_images
from nitrodistill.evaluation import Evaluation
from nitrodistill.models import Pipeline
from nitrodistill.toy import scenes
from nitrodistill.training import with_progress
from nitrodistill.training.recipe import Recipe
from nitrodistill.training.stages import run_recipe

METRICS = {
    "alignment": "alignment",
    "fd_real": "FD to real",
    "fd_teacher": "FD to teacher",
    "fd_texture": "texture-FD",
    "edge_ratio": "edge ratio",
    "high_frequency_ratio": "high-frequency ratio",
    "diversity": "diversity",
}


def scene_store(pipeline: Pipeline, folder: Path, captions: Sequence[str], teacher: str) -> Path:
    """Latents of rendered scenes, a discriminator's real side; made in this folder where they are not there."""
    store, archive = folder / "scenes", folder / "scenes.tar"
    scenes.save(captions, archive)
    images, config = open_images(archive), EncodeConfig(batch_size=64)
    encode(pipeline, images, store, config, teacher_name=teacher)
    return store


def make_parser(about: str | None, output: str) -> argparse.ArgumentParser:
    """The options that all have."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path(output))
    return parser


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, kept in a file: it is made once."""
    if not file.is_file():
        file.write_text(json.dumps(make()))
    return json.loads(file.read_text())


def train(recipe: Recipe, pipeline: Pipeline) -> float:
    """Trains a recipe, or what is left of it; returns the CPU seconds that it took, over all tries."""
    counter = Path(recipe.output).with_suffix(".cpu_seconds")
    before = float(counter.read_text()) if counter.is_file() else 0.0
    start, seconds = time.process_time(), before
    for state in with_progress(run_recipe(recipe, pipeline), show=True):
        seconds = before + time.process_time() - start
        every = recipe.stages[0].trainer.checkpoint_every
        if state.step % every == 0 or state.step == state.steps:
            counter.write_text(str(seconds))
    return seconds


def columns(found: Evaluation, metrics: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """Model -> metric -> value; the floors are one of their own."""
    models = {name: {key: found.value(name, key) for key in metrics} for name in found.models}
    return {**models, "floor": {key: found.floor(key) for key in METRICS}}


def table_cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = statistics.mean(known)
    digits = 0 if abs(mean) >= 100 else 1 if abs(mean) >= 10 else 4 if abs(mean) < 0.1 else 3
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def environment() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": model[0] if model else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def write_docs(page: Path, name: str, text: str) -> None:
    """Replaces what stands between the markers of `name` in a page of docs."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")
