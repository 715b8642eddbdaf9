"""PixArtTransformer2DModel: PixArt-alpha (with size conditioning at 1024 pixels) and PixArt-Sigma."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters.base import Entry, PatchAdapter, PipelineAdapter, masked_text
from nitrodistill.types import Condition


class PixArtAdapter(PatchAdapter):
    """Text with a mask; the learned-sigma half of the output is dropped.

    PixArt-alpha's 1024 pixel network (`use_additional_conditions`) also takes `resolution` (height, width)
    and `aspect_ratio` (height / width).
    """

    depths: Mapping[str, str] = {"transformer_blocks": "num_layers"}

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self._takes_size = _takes_size(self.config)

    def entries(self) -> Mapping[str, Entry]:
        """Text and its mask; alpha's sizes too."""
        width = self.config.caption_channels or self.config.cross_attention_dim
        entries = masked_text(width)
        if self._takes_size:
            entries |= {"resolution": Entry((2,)), "aspect_ratio": Entry((1,))}
        return entries

    def arguments(self, x_t: Tensor, t: Tensor, condition: Condition) -> dict[str, Any]:
        """Sizes go in `added_cond_kwargs`, None where there are none."""
        return {
            "hidden_states": x_t,
            "timestep": t,
            "encoder_hidden_states": condition["encoder_hidden_states"],
            "encoder_attention_mask": condition["encoder_attention_mask"],
            "added_cond_kwargs": {
                key: condition[key] if self._takes_size else None
                for key in ("resolution", "aspect_ratio")
            },
        }


class PixArtPipelineAdapter(PipelineAdapter):
    """`PixArtAlphaPipeline` and `PixArtSigmaPipeline`: T5 with a mask; captions are not cleaned.

    diffusers cleans them by default where bs4 and ftfy are installed, so that the same prompt has other tokens on
    another machine; Sana's pipeline does not by default.
    """

    call_settings: Mapping[str, Any] = {"clean_caption": False}

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """T5's tokens and mask, as long as the longest prompt: what the mask hides changes nothing."""
        text, mask, _, _ = pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=pipe.device, clean_caption=False
        )
        return _condition(pipe, text, mask, size)

    def null(self, pipe: Any, negative_prompt: str | None, size: tuple[int, int]) -> Condition:
        """The negative prompt, by default the empty one."""
        _, _, text, mask = pipe.encode_prompt(
            "",
            do_classifier_free_guidance=True,
            negative_prompt=negative_prompt or "",
            device=pipe.device,
            clean_caption=False,
        )
        return _condition(pipe, text, mask, size)


def _takes_size(config: Any) -> bool:
    """diffusers' own rule where the config does not say: alpha's 1024 pixel network has 128 latent pixels."""
    stated = config.use_additional_conditions
    return config.sample_size == 128 if stated is None else bool(stated)


def _condition(pipe: Any, text: Tensor, mask: Tensor, size: tuple[int, int]) -> Condition:
    length = max(1, int(mask.sum(1).max()))  # the pipeline pads to 300
    text, mask = text[:, :length], mask[:, :length]
    tensors = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
    if _takes_size(pipe.transformer.config):
        height, width = size
        for key, value in (("resolution", size), ("aspect_ratio", (height / width,))):
            row = torch.tensor([value], dtype=text.dtype, device=text.device)
            tensors[key] = row.repeat(len(text), 1)
    return Condition(tensors)
