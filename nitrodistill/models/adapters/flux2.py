"""Flux2Transformer2DModel: FLUX.2 dev (with embedded guidance) and klein.

Its latents are maps of patches: 2x2 pixels of the VAE's 32 channels are one of 128 channels, which is one token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters.base import (
    JOINT_TARGETS,
    Adapter,
    Entry,
    SigmaLinePipelineAdapter,
    call_default,
)
from nitrodistill.models.adapters.layout import image_tokens, on_grid
from nitrodistill.models.weights import rebuilt
from nitrodistill.types import Condition


class Flux2Adapter(Adapter):
    """Joint text tokens, position ids of four axes; t runs to 1. Blocks return (text, image), or both in one.

    The dev network also takes `guidance` `(B,)`, the scale that it was distilled to.
    """

    default_side: int | None = 64  # 128 pixels of the VAE, in patches of 2
    timestep_scale: float = 1e-3
    block_lists: tuple[str, ...] = ("transformer_blocks", "single_transformer_blocks")
    depths: Mapping[str, str] = {
        "transformer_blocks": "num_layers",
        "single_transformer_blocks": "num_single_layers",
    }
    lora_targets: tuple[str, ...] = (*JOINT_TARGETS, "to_qkv_mlp_proj")

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.embeds_guidance: bool = bool(self.config.guidance_embeds)

    def entries(self) -> Mapping[str, Entry]:
        """Text; dev's guidance too."""
        entries = {"encoder_hidden_states": Entry((None, self.config.joint_attention_dim))}
        return {**entries, "guidance": Entry()} if self.embeds_guidance else entries

    def arguments(self, x_t: Tensor, t: Tensor, condition: Condition) -> dict[str, Any]:
        """Tokens and their positions: (time, row, column, place in the text)."""
        tensors = {name: condition[name] for name in self.entries()}
        rows, columns, places = (
            torch.arange(n, device=x_t.device)
            for n in (*x_t.shape[-2:], tensors["encoder_hidden_states"].shape[1])
        )
        zero = rows[:1] * 0
        return {
            "hidden_states": x_t.flatten(2).transpose(1, 2),
            "timestep": t,
            "img_ids": torch.cartesian_prod(zero, rows, columns, zero),
            "txt_ids": torch.cartesian_prod(zero, zero, zero, places),
            **tensors,
        }

    def unpacked(self, latents: Tensor, x_t: Tensor) -> Tensor:
        """Lays the tokens out."""
        return latents.transpose(1, 2).unflatten(2, x_t.shape[-2:])

    def image_part(self, output: object, grid: tuple[int, int]) -> Tensor:
        """The image's tokens, alone or behind the text's."""
        return on_grid(image_tokens(output, grid), grid)

    def with_guidance_baked(self, network: nn.Module, guidance: float) -> nn.Module:
        """For a call with `guidance_scale=0`, which then draws as at `guidance`; other scales lose their sense.

        FLUX.2's embeddings have no bias that a constant could join, and its pipeline always tells a scale. So the
        first layer W of the scale's embedding is moved along the features p of 0, W' = W + W (q - p) p^T / |p|^2,
        with q the features of `guidance`: W' p = W q.
        """
        if not self.embeds_guidance:  # klein
            return network
        embedding: Any = network.time_guidance_embed
        name = "time_guidance_embed.guidance_embedder.linear_1.weight"
        weights = dict(network.state_dict())
        weight = weights[name]
        scales = torch.tensor([0.0, 1000 * guidance], device=weight.device)
        with torch.no_grad():
            zero, told = embedding.time_proj(scales.to(weight.dtype)).to(weight.dtype).double()
            moved = torch.outer(weight.double() @ (told - zero), zero / zero.square().sum())
            weights[name] = (weight.double() + moved).to(weight.dtype)
        return rebuilt(network, self.config, weights)


class Flux2PipelineAdapter(SigmaLinePipelineAdapter):
    """`Flux2Pipeline` (Mistral 3) and `Flux2KleinPipeline` (Qwen3): three layers of a chat, side by side.

    dev's guidance is what diffusers takes by default (4). The shift of the schedule is that of diffusers' own
    number of steps: its pipelines take another one for another number.
    """

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """Text, padded to 512; dev's guidance."""
        text, _ = pipe.encode_prompt(prompts, device=pipe.device)
        tensors = {"encoder_hidden_states": text}
        if pipe.transformer.config.guidance_embeds:
            tensors["guidance"] = text.new_full((len(text),), call_default(pipe, "guidance_scale"))
        return Condition(tensors)

    def shift_mu(self, pipe: Any, num_tokens: int) -> float:
        """diffusers' fit, at its default number of steps."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return compute_empirical_mu(num_tokens, call_default(pipe, "num_inference_steps"))
