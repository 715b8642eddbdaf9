"""A pipeline's shapes without its weights: every network on the meta device, built from the config files alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nitrodistill.models.adapters import PIPELINES
from nitrodistill.models.folders import check_installed, check_local
from nitrodistill.models.pipeline import Pipeline, without_broken_torchvision


def skeleton(
    path: str | Path, *, resolution: tuple[int, int] | None = None, revision: str | None = None
) -> Pipeline:
    """Builds a pipeline of which only the shapes are real; it costs no memory and cannot draw.

    Tokenizers and safety checkers are left out. Of a pipeline on the Hub only configs are downloaded.

    Args:
        path: a directory with a `model_index.json`, or a Hub name such as `"user/model"`. Of each network its
            config is enough.
        resolution: (height, width) of its pictures in pixels; by default what the network was made for.
        revision: branch, tag or commit of a pipeline on the Hub.

    Raises:
        FileNotFoundError: if there is no such directory, and no pipeline of that name.
        ValueError: if it is a pipeline of no known family, or a config is missing.
    """
    without_broken_torchvision()
    check_local(path, revision)
    import diffusers

    try:
        index: Any = diffusers.DiffusionPipeline.load_config(str(path), revision=revision)
        kind = index.get("_class_name")
        check_installed(path, kind)
        parts = {
            name: _part(str(path), revision, name, *entry)
            for name, entry in index.items()
            if isinstance(entry, (list, tuple))
        }
    except OSError as error:
        raise FileNotFoundError(
            f"no configs of a pipeline at {str(path)!r} ({' '.join(str(error).split())[:160]}); give the "
            "directory of a diffusers pipeline, or its name on the Hub (user/model)."
        ) from error
    pipe = getattr(diffusers, kind)(**parts | dict(PIPELINES[kind].load_arguments))
    return Pipeline.from_diffusers(pipe, resolution=resolution)


def shapes_of(pipeline: Pipeline) -> Pipeline:
    """The same pipeline with copies of its networks on the meta device; the given one stays as it is."""
    parts = {
        name: _on_meta(part) if isinstance(part, nn.Module) else part
        for name, part in pipeline.diffusers.components.items()
    }
    copied = copy.copy(pipeline)
    copied.diffusers = copy.copy(pipeline.diffusers)
    for name, part in parts.items():
        setattr(copied.diffusers, name, part)
    copied.other_vae = pipeline.other_vae and _on_meta(pipeline.other_vae)
    copied.denoiser = pipeline.denoiser.with_module(parts[pipeline.adapter.network])
    return copied


def _on_meta(module: nn.Module) -> nn.Module:
    """A deep copy of which no weight is real."""
    weights = (*module.parameters(), *module.buffers())
    memo = {id(value): _hollow(value) for value in weights}
    return copy.deepcopy(module, memo)


def _hollow(value: torch.Tensor) -> torch.Tensor:
    shape = value.detach().to("meta")
    return nn.Parameter(shape, value.requires_grad) if isinstance(value, nn.Parameter) else shape


def _part(path: str, revision: str | None, name: str, library: str | None, kind: str | None) -> Any:
    """A network on the meta device, a scheduler, or None for what holds no weights that train or draw."""
    import diffusers
    import transformers

    if library not in ("diffusers", "transformers") or kind is None or name == "safety_checker":
        return None
    cls: Any = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind)
    if issubclass(cls, diffusers.SchedulerMixin):
        return cls.from_pretrained(path, subfolder=name, revision=revision)
    if not issubclass(cls, nn.Module):
        return None
    network: Any = cls
    with torch.device("meta"):
        if library == "diffusers":
            config = network.load_config(path, subfolder=name, revision=revision)
            return network.from_config(config)
        config = network.config_class.from_pretrained(path, subfolder=name, revision=revision)
        return network(config)
