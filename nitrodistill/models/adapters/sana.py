"""SanaTransformer2DModel: Sana (not Sana-Sprint, which is distilled already)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nitrodistill.models.adapters.base import (
    Entry,
    PatchAdapter,
    PipelineAdapter,
    call_default,
    masked_text,
)
from nitrodistill.types import Condition


class SanaAdapter(PatchAdapter):
    """Text with a mask; t runs to 1000 times the config's `timestep_scale`.

    Raises:
        ValueError: if it embeds guidance, as Sana-Sprint does.
    """

    depths: Mapping[str, str] = {"transformer_blocks": "num_layers"}

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        if self.config.get("guidance_embeds"):
            raise ValueError(
                "this SanaTransformer2DModel has guidance_embeds=True (Sana-Sprint), which its adapter does not "
                "pass; distil from Sana itself."
            )
        self.timestep_scale: float = float(self.config.get("timestep_scale", 1.0))

    def entries(self) -> Mapping[str, Entry]:
        """Text and its mask."""
        return masked_text(self.config.caption_channels)


class SanaPipelineAdapter(PipelineAdapter):
    """`SanaPipeline`: Gemma 2 with the pipeline's own instruction before each prompt."""

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """Gemma's tokens and mask."""
        text, mask, _, _ = pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=pipe.device,
            complex_human_instruction=call_default(pipe, "complex_human_instruction"),
        )
        return Condition({"encoder_hidden_states": text, "encoder_attention_mask": mask})

    def null(self, pipe: Any, negative_prompt: str | None, size: tuple[int, int]) -> Condition:
        """The negative prompt, by default the empty one, without the instruction."""
        _, _, text, mask = pipe.encode_prompt(
            "",
            do_classifier_free_guidance=True,
            negative_prompt=negative_prompt or "",
            device=pipe.device,
        )
        return Condition({"encoder_hidden_states": text, "encoder_attention_mask": mask})
