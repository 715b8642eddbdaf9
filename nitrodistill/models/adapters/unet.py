"""UNet2DConditionModel: Stable Diffusion 1.x and 2.x, and SDXL (pooled text and time ids)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nitrodistill.models.adapters.base import Entry, PipelineAdapter
from nitrodistill.models.adapters.unet_blocks import UNetBlocksAdapter
from nitrodistill.types import Condition

_TIME_IDS = 6  # original size, crop, target size: (height, width) each


class UNetAdapter(UNetBlocksAdapter):
    """`UNet2DConditionModel` conditioned on text, and on SDXL's `text_embeds` and `time_ids`.

    Raises:
        ValueError: if it wants other conditioning.
    """

    block_lists: tuple[str, ...] = ("down_blocks", "mid_block", "up_blocks")

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        config = self.config
        known = {
            "addition_embed_type": (None, "text_time"),
            "class_embed_type": (None,),
            "num_class_embeds": (None,),
            "time_cond_proj_dim": (None,),
            "encoder_hid_dim_type": (None,),
        }
        for key, values in known.items():
            if config.get(key) not in values:
                raise ValueError(
                    f"this UNet2DConditionModel has {key}={config[key]!r}, conditioning that its adapter does "
                    "not pass: Stable Diffusion 1.x, 2.x and SDXL are known. Write an adapter of your own "
                    "(docs/extending.md)."
                )
        self._is_xl: bool = config.get("addition_embed_type") == "text_time"
        self.pooled_text: str | None = "text_embeds" if self._is_xl else None

    def entries(self) -> Mapping[str, Entry]:
        """Text; SDXL's pooled text and sizes too."""
        config = self.config
        width = config.cross_attention_dim
        width = width if isinstance(width, int) else width[0]
        entries = {"encoder_hidden_states": Entry((None, width))}
        if self._is_xl:
            sizes = _TIME_IDS * config.addition_time_embed_dim
            pooled = config.projection_class_embeddings_input_dim - sizes
            entries |= {"text_embeds": Entry((pooled,)), "time_ids": Entry((_TIME_IDS,))}
        return entries

    def arguments(self, x_t: Tensor, t: Tensor, condition: Condition) -> dict[str, Any]:
        """Text as such; SDXL's two in `added_cond_kwargs`."""
        text = condition["encoder_hidden_states"]
        arguments: dict[str, Any] = {"sample": x_t, "timestep": t, "encoder_hidden_states": text}
        if self._is_xl:
            keys = ("text_embeds", "time_ids")
            arguments["added_cond_kwargs"] = {key: condition[key] for key in keys}
        return arguments

    def example_side(self) -> int:
        """One more halving than there are, so that the deepest map is 2x2."""
        return 2 ** len(self.config.block_out_channels)


class StableDiffusionPipelineAdapter(PipelineAdapter):
    """`StableDiffusionPipeline`; its safety checker is not loaded."""

    network: str = "unet"
    load_arguments: Mapping[str, Any] = {"safety_checker": None, "requires_safety_checker": False}

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """The text encoder's tokens."""
        text, _ = pipe.encode_prompt(prompts, pipe.device, 1, do_classifier_free_guidance=False)
        return Condition({"encoder_hidden_states": text})


class StableDiffusionXLPipelineAdapter(PipelineAdapter):
    """`StableDiffusionXLPipeline`: two text encoders, and sizes without crop."""

    network: str = "unet"

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """Both encoders' tokens, the second one's pooled text, the size."""
        text, _, pooled, _ = pipe.encode_prompt(
            prompts, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return _xl_condition(text, pooled, size)

    def null(self, pipe: Any, negative_prompt: str | None, size: tuple[int, int]) -> Condition:
        """The negative prompt; without one, zeros where the pipeline is set to that."""
        _, text, _, pooled = pipe.encode_prompt(
            "",
            device=pipe.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=negative_prompt,
        )
        return _xl_condition(text, pooled, size)


def _xl_condition(text: Tensor, pooled: Tensor, size: tuple[int, int]) -> Condition:
    time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=text.dtype, device=text.device)
    return Condition(
        {
            "encoder_hidden_states": text,
            "text_embeds": pooled,
            "time_ids": time_ids.repeat(len(text), 1),
        }
    )
