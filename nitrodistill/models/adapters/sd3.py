"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nitrodistill.models.adapters.base import JOINT_TARGETS, Entry, PatchAdapter, PipelineAdapter
from nitrodistill.models.adapters.layout import image_tokens, on_grid
from nitrodistill.types import Condition


class SD3Adapter(PatchAdapter):
    """Joint text tokens and pooled text; t runs to 1000. Blocks return (text, image)."""

    depths: Mapping[str, str] = {"transformer_blocks": "num_layers"}
    lora_targets: tuple[str, ...] = JOINT_TARGETS
    pooled_text: str | None = "pooled_projections"

    def entries(self) -> Mapping[str, Entry]:
        """Text and pooled text."""
        return {
            "encoder_hidden_states": Entry((None, self.config.joint_attention_dim)),
            "pooled_projections": Entry((self.config.pooled_projection_dim,)),
        }

    def image_part(self, output: object, grid: tuple[int, int]) -> Tensor:
        """The one with as many tokens as the image has; the last block's text is None."""
        return on_grid(image_tokens(output, grid), grid)

    def pruned(
        self, network: nn.Module, keep: Mapping[str, tuple[int, ...]]
    ) -> tuple[Mapping[str, tuple[int, ...]], dict[str, Any]]:
        """The last block, which answers with the image alone, must stay; dual attention moves with its blocks."""
        keep, changes = super().pruned(network, keep)
        last = self.config.num_layers - 1
        kept = keep.get("transformer_blocks", tuple(range(last + 1)))
        if last not in kept:
            raise ValueError(
                f"'transformer_blocks.{last}' is the last block, which alone answers without text, so no "
                "other can stand in its place; keep it."
            )
        dual = self.config.get("dual_attention_layers", ())
        moved = [i for i, k in enumerate(kept) if k in dual]
        return keep, {**changes, "dual_attention_layers": moved}


class SD3PipelineAdapter(PipelineAdapter):
    """`StableDiffusion3Pipeline`: two CLIPs and T5, which may be left out: diffusers then takes zeros."""

    optional: tuple[str, ...] = (*PipelineAdapter.optional, "text_encoder_3", "tokenizer_3")

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """All encoders' tokens, and both CLIPs' pooled text."""
        text, _, pooled, _ = pipe.encode_prompt(
            prompts, None, None, device=pipe.device, do_classifier_free_guidance=False
        )
        return Condition({"encoder_hidden_states": text, "pooled_projections": pooled})
