"""UNet2DModel: unconditional or on class labels, in pixels or latents; EDM's networks too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters.base import Entry, PipelineAdapter
from nitrodistill.models.adapters.unet_blocks import UNetBlocksAdapter
from nitrodistill.types import Condition

_CONDITIONAL = "ConsistencyModelPipeline"


class UNet2DAdapter(UNetBlocksAdapter):
    """`class_labels` where the network embeds them; else the Condition may be empty."""

    block_lists: tuple[str, ...] = ("down_blocks", "mid_block", "up_blocks")

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.multiple: int = 2 ** (len(self.config.block_out_channels) - 1)

    def entries(self) -> Mapping[str, Entry]:
        """Numbers of classes, or with `class_embed_type="identity"` their embeddings."""
        config = self.config
        if config.class_embed_type == "identity":
            return {"class_labels": Entry((4 * config.block_out_channels[0],))}
        if config.class_embed_type is None and config.num_class_embeds is None:
            return {}
        return {"class_labels": Entry((), integer=True)}

    def arguments(self, x_t: Tensor, t: Tensor, condition: Condition) -> dict[str, Any]:
        """The labels under their own name."""
        labels = {name: condition[name] for name in self.entries()}
        return {"sample": x_t, "timestep": t, **labels}


class UNet2DPipelineAdapter(PipelineAdapter):
    """`DDPMPipeline`, `DDIMPipeline`, `ConsistencyModelPipeline`: pixels. A prompt is a class's number, or "".

    `DDPMPipeline` runs with any scheduler, but passes no class on and scales neither noise nor input, as EDM's
    networks need; `ConsistencyModelPipeline` does all of that, and draws squares alone.
    """

    network: str = "unet"
    has_null: bool = False

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """The classes' numbers; empty for an unconditional network.

        Raises:
            ValueError: if a prompt is not the number of a class, or the network is unconditional and it is not "".
        """
        labels = [_label(pipe, prompt) for prompt in prompts]
        if not _entries(pipe):
            return Condition()
        return Condition({"class_labels": torch.tensor(labels, device=pipe.device)})

    def check(self, pipe: Any, prompt: str) -> None:
        """Refuses what is no class."""
        _label(pipe, prompt)

    def call(self, pipe: Any, prompts: list[str]) -> dict[str, Any]:
        """How many pictures, and of which classes.

        Raises:
            ValueError: if `ConsistencyModelPipeline` has to draw a picture that is not square, or a network that
                does not say how many classes it has.
        """
        config, count = pipe.unet.config, {"batch_size": len(prompts)}
        if self.exported_as(pipe) == _CONDITIONAL and not isinstance(config.sample_size, int):
            raise ValueError(
                f"{_CONDITIONAL}, which draws this student, draws squares of sample_size pixels alone, and the "
                f"network's is {config.sample_size}: use the student in Python."
            )
        if not _entries(pipe):
            return count
        if config.num_class_embeds is None:
            raise ValueError(
                f"{_CONDITIONAL}, which would draw this student, passes classes on where the network's config has "
                "num_class_embeds, and here it is None: use the student in Python."
            )
        return {"class_labels": [_label(pipe, prompt) for prompt in prompts], **count}

    def exported_as(self, pipe: Any) -> str:
        """`DDPMPipeline` where it can draw."""
        edm = type(pipe.scheduler).__name__.startswith("EDM")
        return _CONDITIONAL if edm or _entries(pipe) else "DDPMPipeline"

    def null(self, pipe: Any, negative_prompt: str | None, size: tuple[int, int]) -> Condition:
        """A class not to draw; diffusers' network has none that stands for none.

        Raises:
            ValueError: if no class is given, or there are none.
        """
        if not _entries(pipe):
            raise ValueError(
                "this network is unconditional, so there is nothing to guide it by; sample with guidance 1."
            )
        if not negative_prompt:
            raise ValueError(
                "this network has no class that stands for none, so there is no guidance without a negative "
                "prompt: sample with guidance 1, or give the number of a class."
            )
        return self.encode(pipe, [negative_prompt], size)


def _entries(pipe: Any) -> Mapping[str, Entry]:
    return UNet2DAdapter(pipe.unet).entries()


def _label(pipe: Any, prompt: str) -> int:
    entries, classes = _entries(pipe), pipe.unet.config.num_class_embeds
    if not entries:
        if prompt:
            raise ValueError(
                f'the prompt is {prompt!r}, but this network is unconditional: give the empty prompt, "".'
            )
        return 0
    if not entries["class_labels"].integer:
        raise ValueError(
            "this network takes an embedding of the class, which no prompt says; make the Condition yourself."
        )
    if not prompt.isdecimal() or (classes is not None and int(prompt) >= classes):
        most = "" if classes is None else f" to {classes - 1}"
        raise ValueError(f"{prompt!r} is no class of this network; give a number from 0{most}.")
    return int(prompt)
