"""AuraFlowTransformer2DModel: AuraFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nitrodistill.models.adapters.base import JOINT_TARGETS, Entry, PatchAdapter, PipelineAdapter
from nitrodistill.models.adapters.layout import image_tokens, on_grid
from nitrodistill.types import Condition


class AuraFlowAdapter(PatchAdapter):
    """Joint text tokens without a mask (padding is zeros); t runs to 1.

    Joint blocks return (text, image), single ones both in one; eight learnt tokens stand before the text.
    """

    timestep_scale: float = 1e-3
    block_lists: tuple[str, ...] = ("joint_transformer_blocks", "single_transformer_blocks")
    depths: Mapping[str, str] = {
        "joint_transformer_blocks": "num_mmdit_layers",
        "single_transformer_blocks": "num_single_dit_layers",
    }
    lora_targets: tuple[str, ...] = JOINT_TARGETS

    def entries(self) -> Mapping[str, Entry]:
        """Text."""
        return {"encoder_hidden_states": Entry((None, self.config.joint_attention_dim))}

    def image_part(self, output: object, grid: tuple[int, int]) -> Tensor:
        """The image's tokens, alone or behind the text's."""
        return on_grid(image_tokens(output, grid), grid)


class AuraFlowPipelineAdapter(PipelineAdapter):
    """`AuraFlowPipeline`: UMT5, zeros where the prompt has ended."""

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """Text, padded to 256."""
        text, *_ = pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=pipe.device
        )
        return Condition({"encoder_hidden_states": text})
