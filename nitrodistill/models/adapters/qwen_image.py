"""QwenImageTransformer2DModel: Qwen-Image (not its editing and layered versions, which see pictures too)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters.base import (
    JOINT_TARGETS,
    Entry,
    RescaleBy,
    SigmaLinePipelineAdapter,
)
from nitrodistill.models.adapters.layout import packed
from nitrodistill.models.adapters.packed import PackedAdapter
from nitrodistill.types import Condition

_EDITING = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")


class QwenImageAdapter(PackedAdapter):
    """Joint text tokens with a mask; t runs to 1. Blocks return (text, image).

    Text stands behind the image in the rotary positions, by its place among the tokens; the mask hides padding.

    Raises:
        ValueError: if it is a network that edits pictures, or draws in layers.
    """

    depths: Mapping[str, str] = {"transformer_blocks": "num_layers"}

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        blocks = [f"transformer_blocks.{i}." for i in range(self.config.num_layers)]
        joined = (f"{block}attn.to_add_out" for block in blocks[:-1])
        self.lora_targets: tuple[str, ...] = (*JOINT_TARGETS[:-1], *joined)
        # the last block's text is dropped
        self.unused: tuple[str, ...] = (f"{blocks[-1]}attn.to_add_out", f"{blocks[-1]}txt_mlp")
        for setting in _EDITING:
            if self.config.get(setting):
                raise ValueError(
                    f"this QwenImageTransformer2DModel has {setting}=True (a version that edits, or draws in "
                    "layers), which its adapter does not pass; distil from Qwen-Image itself."
                )

    def entries(self) -> Mapping[str, Entry]:
        """Text and its mask."""
        return {
            "encoder_hidden_states": Entry((None, self.config.joint_attention_dim)),
            "encoder_hidden_states_mask": Entry((None,), integer=True),
        }

    def arguments(self, x_t: Tensor, t: Tensor, condition: Condition) -> dict[str, Any]:
        """Packed latents, and the size of the grid of their tokens, as of a video of one frame."""
        tensors = {name: condition[name] for name in self.entries()}
        shapes = [[(1, *self.grid(x_t))]] * len(x_t)
        return {"hidden_states": packed(x_t), "timestep": t, "img_shapes": shapes, **tensors}

    def predicted_channels(self) -> int | None:
        """The config counts what a token goes in with, but what a latent pixel comes out with."""
        return self.config.out_channels * self.config.patch_size**2


class QwenImagePipelineAdapter(SigmaLinePipelineAdapter):
    """`QwenImagePipeline`: Qwen2.5-VL with the pipeline's own instruction, which is cut off again."""

    rescale_by: RescaleBy | None = "token"

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """Its tokens and mask; where diffusers leaves a mask of ones out, it is put back."""
        text, mask = pipe.encode_prompt(prompts, device=pipe.device)
        if mask is None:
            mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
        return Condition({"encoder_hidden_states": text, "encoder_hidden_states_mask": mask})
