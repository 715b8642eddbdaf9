"""FluxTransformer2DModel: Flux.1 dev (with embedded guidance) and schnell.

The network sees latents as tokens of 2x2 pixels; here they go in and come out as maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters.base import (
    JOINT_TARGETS,
    Entry,
    SigmaLinePipelineAdapter,
    call_default,
)
from nitrodistill.models.adapters.layout import packed, positions
from nitrodistill.models.adapters.packed import PackedAdapter
from nitrodistill.models.weights import rebuilt
from nitrodistill.types import Condition


class FluxAdapter(PackedAdapter):
    """Joint text tokens, pooled text, position ids; t runs to 1. Blocks return (text, image).

    The dev network also takes `guidance` `(B,)`, the scale that it was distilled to.
    """

    block_lists: tuple[str, ...] = ("transformer_blocks", "single_transformer_blocks")
    depths: Mapping[str, str] = {
        "transformer_blocks": "num_layers",
        "single_transformer_blocks": "num_single_layers",
    }
    lora_targets: tuple[str, ...] = JOINT_TARGETS
    pooled_text: str | None = "pooled_projections"

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.embeds_guidance: bool = bool(self.config.guidance_embeds)

    def entries(self) -> Mapping[str, Entry]:
        """Text and pooled text; dev's guidance too."""
        entries = {
            "encoder_hidden_states": Entry((None, self.config.joint_attention_dim)),
            "pooled_projections": Entry((self.config.pooled_projection_dim,)),
        }
        return {**entries, "guidance": Entry()} if self.embeds_guidance else entries

    def arguments(self, x_t: Tensor, t: Tensor, condition: Condition) -> dict[str, Any]:
        """Packed latents and the positions of all tokens."""
        text = condition["encoder_hidden_states"]
        tensors = {name: condition[name] for name in self.entries()}
        return {
            "hidden_states": packed(x_t),
            "timestep": t,
            "img_ids": positions(self.grid(x_t), x_t),
            "txt_ids": x_t.new_zeros(text.shape[1], 3),
            **tensors,
        }

    def with_guidance_baked(self, network: nn.Module, guidance: float) -> nn.Module:
        """The embedding of the scale is a constant; it joins the bias of the timestep's, which it is added to."""
        if not self.embeds_guidance:  # schnell
            return network
        embedding: Any = network.time_text_embed
        bare: Any = network
        scale = torch.tensor([1000 * guidance], device=bare.device)
        with torch.no_grad():
            projected = embedding.time_proj(scale.to(bare.dtype)).to(bare.dtype)
            constant = embedding.guidance_embedder(projected)[0]
        weights = {
            name: value
            for name, value in network.state_dict().items()
            if not name.startswith("time_text_embed.guidance_embedder.")
        }
        bias = "time_text_embed.timestep_embedder.linear_2.bias"
        weights[bias] = (weights[bias].to(constant) + constant).to(weights[bias])
        return rebuilt(network, {**self.config, "guidance_embeds": False}, weights)


class FluxPipelineAdapter(SigmaLinePipelineAdapter):
    """`FluxPipeline`: CLIP's pooled text and T5; dev's guidance is what diffusers takes by default (3.5)."""

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """T5's tokens, CLIP's pooled text, dev's guidance."""
        text, pooled, _ = pipe.encode_prompt(prompts, device=pipe.device)
        tensors = {"encoder_hidden_states": text, "pooled_projections": pooled}
        if pipe.transformer.config.guidance_embeds:
            tensors["guidance"] = text.new_full((len(text),), call_default(pipe, "guidance_scale"))
        return Condition(tensors)
