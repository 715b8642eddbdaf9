"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nitrodistill.models.adapters.base import (
    JOINT_TARGETS,
    Adapter,
    Entry,
    PipelineAdapter,
    image_tokens,
    on_grid,
)
from nitrodistill.types import Condition


class SD3Adapter(Adapter):
    """Joint text tokens and pooled text; t runs to 1000. Blocks return (text, image)."""

    lora_targets: tuple[str, ...] = (*Adapter.lora_targets, *JOINT_TARGETS)
    pooled_text: str | None = "pooled_projections"

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.patch: int = self.config.patch_size
        self.multiple: int = self.patch

    def entries(self) -> Mapping[str, Entry]:
        """Text and pooled text."""
        return {
            "encoder_hidden_states": Entry((None, self.config.joint_attention_dim)),
            "pooled_projections": Entry((self.config.pooled_projection_dim,)),
        }

    def arguments(self, x_t: Tensor, t: Tensor, condition: Condition) -> dict[str, Any]:
        """The tensors under their own names."""
        tensors = {name: condition[name] for name in self.entries()}
        return {"hidden_states": x_t, "timestep": t, **tensors}

    def image_part(self, output: object, grid: tuple[int, int]) -> Tensor:
        """The one with as many tokens as the image has; the last block's text is None."""
        return on_grid(image_tokens(output, grid), grid)


class SD3PipelineAdapter(PipelineAdapter):
    """`StableDiffusion3Pipeline`: two CLIPs and T5, which may be left out: diffusers then takes zeros."""

    optional: tuple[str, ...] = (*PipelineAdapter.optional, "text_encoder_3", "tokenizer_3")

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """All encoders' tokens, and both CLIPs' pooled text."""
        text, _, pooled, _ = pipe.encode_prompt(
            prompts, None, None, device=pipe.device, do_classifier_free_guidance=False
        )
        return Condition({"encoder_hidden_states": text, "pooled_projections": pooled})

    def null(self, pipe: Any, negative_prompt: str | None, size: tuple[int, int]) -> Condition:
        """The negative prompt, by default the empty one."""
        return self.encode(pipe, [negative_prompt or ""], size)
