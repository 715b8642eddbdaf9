"""DiTTransformer2DModel: DiT, conditioned on classes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters.base import Entry, PatchAdapter, PipelineAdapter
from nitrodistill.types import Condition


class DiTAdapter(PatchAdapter):
    """Class labels; the learned-sigma half of the output is dropped. Square latents only.

    The label dropout that diffusers builds into each block (10% in train mode, drawn from the global
    generator, for each block by itself) is switched off on the network: dropping labels is the business of
    the data.
    """

    depths: Mapping[str, str] = {"transformer_blocks": "num_layers"}

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        for module in network.modules():
            if type(module).__name__ == "LabelEmbedding":
                module.dropout_prob = 0.0  # type: ignore[assignment]

    def entries(self) -> Mapping[str, Entry]:
        """Class labels 0..K-1, and K for none."""
        return {"class_labels": Entry((), integer=True)}

    def check(self, name: str, x_t: Tensor, condition: Condition) -> None:
        """Also refuses latents that are not square: diffusers lays the tokens out as a square."""
        super().check(name, x_t, condition)
        if x_t.shape[-2] != x_t.shape[-1]:
            raise ValueError(
                f"latents of {x_t.shape[-2]}x{x_t.shape[-1]} do not fit this {name}, which diffusers can run on "
                "square latents only."
            )


class DiTPipelineAdapter(PipelineAdapter):
    """`DiTPipeline`: a prompt is the name of a class, or its number; "" is the class that stands for none."""

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """The classes' numbers.

        Raises:
            ValueError: if there is no such class; the nearest are listed.
        """
        labels = [_label(pipe, prompt) for prompt in prompts]
        return Condition({"class_labels": torch.tensor(labels, device=pipe.device)})

    def check(self, pipe: Any, prompt: str) -> None:
        """Refuses what is no class."""
        _label(pipe, prompt)

    def call(self, pipe: Any, prompts: list[str]) -> dict[str, Any]:
        """The classes' numbers."""
        return {"class_labels": [_label(pipe, prompt) for prompt in prompts]}

    def saved_settings(self, pipe: Any) -> dict[str, Any]:
        """The classes' names, which diffusers reads with a pipeline and does not save."""
        names: dict[str, list[str]] = {}
        for name, label in pipe.labels.items():
            names.setdefault(str(label), []).append(name)
        return {"id2label": {label: ", ".join(found) for label, found in names.items()} or None}


def _label(pipe: Any, prompt: str) -> int:
    classes = pipe.transformer.config.num_embeds_ada_norm
    if not prompt:
        return classes
    if prompt.isdecimal() and int(prompt) < classes:
        return int(prompt)
    if prompt in pipe.labels:
        return pipe.labels[prompt]
    near = difflib.get_close_matches(prompt, pipe.labels, n=3)
    raise ValueError(
        f"{prompt!r} is no class of this network; give a number from 0 to {classes - 1}"
        + (f", or a name such as {', '.join(near)}." if near else ", or one of its names.")
    )
