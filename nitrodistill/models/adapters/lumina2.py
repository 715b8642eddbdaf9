"""Lumina2Transformer2DModel: Lumina-Image 2.0.

The network counts from noise (0) to data (1) and predicts x0 - eps; here t runs to 1 at noise, and the prediction
is eps - x0, as for the other flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters.base import (
    Entry,
    PatchAdapter,
    RescaleBy,
    SigmaLinePipelineAdapter,
    masked_text,
)
from nitrodistill.models.adapters.layout import first_tensor, on_grid
from nitrodistill.types import Condition


class Lumina2Adapter(PatchAdapter):
    """Text with a mask, whose ones come first; the image follows each sample's text where the mask ends.

    Blocks of `noise_refiner` see the image alone, those of `layers` text, image and padding. So the adapter keeps
    how long the texts of the latest call are: `image_part` needs it. `context_refiner` sees text alone.
    """

    timestep_scale: float = 1e-3
    block_lists: tuple[str, ...] = ("noise_refiner", "layers")
    depths: Mapping[str, str] = {"layers": "num_layers"}

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self._lengths: list[int] = []
        refiner: Any = network.context_refiner
        for block in refiner:
            if _move_mask not in block._forward_pre_hooks.values():
                block.register_forward_pre_hook(_move_mask)

    def entries(self) -> Mapping[str, Entry]:
        """Text and its mask."""
        return masked_text(self.config.cap_feat_dim)

    def arguments(self, x_t: Tensor, t: Tensor, condition: Condition) -> dict[str, Any]:
        """The tensors under their own names, time turned around."""
        text, mask = (condition[name] for name in self.entries())
        if mask.is_meta:  # the network reads numbers in it; shapes alone hide no token
            mask = torch.ones(mask.shape, dtype=torch.long, device="cpu")
        self._lengths = mask.sum(1).tolist()
        return {
            "hidden_states": x_t,
            "timestep": 1 - t,
            "encoder_hidden_states": text,
            "encoder_attention_mask": mask,
        }

    def prediction(self, output: Any, x_t: Tensor) -> Tensor:
        """From noise to data turned around."""
        return -super().prediction(output, x_t)

    def image_part(self, output: object, grid: tuple[int, int]) -> Tensor:
        """Each sample's tokens behind its text."""
        found, count = first_tensor(output), grid[0] * grid[1]
        if found.ndim == 3 and found.shape[1] > count:
            rows = zip(found, self._lengths, strict=True)
            found = torch.stack([row[start : start + count] for row, start in rows])
        return on_grid(found, grid)


class Lumina2PipelineAdapter(SigmaLinePipelineAdapter):
    """`Lumina2Pipeline`: the last layer but one of Gemma 2, of the pipeline's system prompt and the prompt."""

    rescale_by: RescaleBy | None = "row"

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """Gemma's tokens and mask, padded to 256."""
        text, mask, *_ = pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=pipe.device
        )
        return Condition({"encoder_hidden_states": text, "encoder_attention_mask": mask})

    def null(self, pipe: Any, negative_prompt: str | None, size: tuple[int, int]) -> Condition:
        """The negative prompt, by default the empty one, without the system prompt."""
        *_, text, mask = pipe.encode_prompt(
            "", negative_prompt=negative_prompt or "", device=pipe.device
        )
        return Condition({"encoder_hidden_states": text, "encoder_attention_mask": mask})


def _move_mask(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The mask goes to the text's device, where the text has shapes alone."""
    text, mask, *others = args
    return (text, mask.to(text.device), *others)
