"""UNet2DModel: unconditional or on class labels, in pixels or latents; EDM's networks too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters.base import Adapter, Entry, PipelineAdapter
from nitrodistill.types import Condition

__all__ = ["UNet2DAdapter", "UNet2DPipelineAdapter"]


class UNet2DAdapter(Adapter):
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
    """`DDPMPipeline` and `DDIMPipeline`: pixels, and numbers of classes as prompts where there are classes."""

    network: str = "unet"

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """The classes' numbers; empty for an unconditional network.

        Raises:
            ValueError: if a prompt is not the number of a class.
        """
        classes = pipe.unet.config.num_class_embeds
        if classes is None:
            return Condition()
        for prompt in prompts:
            if not prompt.isdecimal() or int(prompt) >= classes:
                raise ValueError(
                    f"{prompt!r} is no class of this network; give a number from 0 to {classes - 1}."
                )
        labels = [int(prompt) for prompt in prompts]
        return Condition({"class_labels": torch.tensor(labels, device=pipe.device)})

    def null(self, pipe: Any, negative_prompt: str | None, size: tuple[int, int]) -> Condition:
        """A class not to draw; diffusers' network has none that stands for none.

        Raises:
            ValueError: if no class is given.
        """
        if negative_prompt is None:
            raise ValueError(
                "this network has no class that stands for none, so there is no guidance without a negative "
                "prompt: sample with guidance 1, or give the number of a class."
            )
        return self.encode(pipe, [negative_prompt], size)
