"""ChromaTransformer2DModel: Chroma, which is Flux without pooled text and guidance, and with a mask of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters.base import (
    JOINT_TARGETS,
    Entry,
    SigmaLinePipelineAdapter,
    masked_text,
)
from nitrodistill.models.adapters.layout import packed, positions
from nitrodistill.models.adapters.packed import PackedAdapter
from nitrodistill.types import Condition

_MASK = "_nitrodistill_mask"


class ChromaAdapter(PackedAdapter):
    """Joint text tokens with a mask, position ids; t runs to 1. Blocks return (text, image), or both in one.

    The mask is handed on as numbers, as diffusers' pipeline does: attention adds 1 where text or image is, and 0
    elsewhere. With gradient checkpointing diffusers (0.42) leaves it out of the single blocks, which changes what
    the network draws; hooks on its blocks put it back.

    Blocks cannot be left out: their modulation is computed from their place among all of them.
    """

    block_lists: tuple[str, ...] = ("transformer_blocks", "single_transformer_blocks")
    lora_targets: tuple[str, ...] = JOINT_TARGETS

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        joint: Any = network.transformer_blocks
        single: Any = network.single_transformer_blocks
        for blocks, hook in ((joint, _remember_mask), (single, _recall_mask)):
            for block in blocks:
                if hook not in block._forward_pre_hooks.values():
                    block.register_forward_pre_hook(hook, with_kwargs=True)

    def entries(self) -> Mapping[str, Entry]:
        """Text and its mask."""
        return masked_text(self.config.joint_attention_dim)

    def arguments(self, x_t: Tensor, t: Tensor, condition: Condition) -> dict[str, Any]:
        """Packed latents, the positions of all tokens, and a mask of text and image."""
        text, mask = (condition[name] for name in self.entries())
        tokens = packed(x_t)
        image = tokens.new_ones(tokens.shape[:2])
        return {
            "hidden_states": tokens,
            "timestep": t,
            "encoder_hidden_states": text,
            "attention_mask": torch.cat([mask.to(text.dtype), image], dim=1),
            "img_ids": positions(self.grid(x_t), x_t),
            "txt_ids": x_t.new_zeros(text.shape[1], 3),
        }


class ChromaPipelineAdapter(SigmaLinePipelineAdapter):
    """`ChromaPipeline`: T5 with a mask that leaves the first token of padding visible."""

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """T5's tokens and mask, padded to 512."""
        text, _, mask, *_ = pipe.encode_prompt(
            prompts, device=pipe.device, do_classifier_free_guidance=False
        )
        return Condition({"encoder_hidden_states": text, "encoder_attention_mask": mask.long()})


def _argument(args: Any, kwargs: Any, place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _remember_mask(block: nn.Module, args: Any, kwargs: Any) -> None:
    """A joint block is always given the mask; it goes with the rotary embedding, which later blocks get too."""
    rotary = _argument(args, kwargs, 3, "image_rotary_emb")
    setattr(rotary[0], _MASK, _argument(args, kwargs, 4, "attention_mask"))


def _recall_mask(block: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    """A single block whose mask was left out gets it, also when it is recomputed in backward."""
    if _argument(args, kwargs, 3, "attention_mask") is not None:
        return None
    rotary = _argument(args, kwargs, 2, "image_rotary_emb")
    return args[:3], {**kwargs, "attention_mask": getattr(rotary[0], _MASK, None)}
