"""ZImageTransformer2DModel: Z-Image and Z-Image-Turbo (not Omni, which sees pictures too).

The network counts from noise (0) to data (1) and predicts x0 - eps; here t runs to 1 at noise, and the prediction
is eps - x0, as for the other flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from nitrodistill.models.adapters.base import Adapter, Entry, SigmaLinePipelineAdapter, masked_text
from nitrodistill.models.adapters.layout import first_tensor, on_grid
from nitrodistill.types import Condition


class ZImageAdapter(Adapter):
    """Text with a mask, which the network gets as a list of what the mask leaves of each sample.

    Its blocks see the image first, then the text; `context_refiner`, which sees text alone, is none of them.

    Raises:
        ValueError: if it takes pictures (Omni), or does not know patches of 2x2.
    """

    patch: int = 2
    multiple: int = 2
    default_side: int | None = 128
    timestep_scale: float = 1e-3
    block_lists: tuple[str, ...] = ("noise_refiner", "layers")
    depths: Mapping[str, str] = {"layers": "n_layers"}

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        if self.config.get("siglip_feat_dim") is not None or 2 not in self.config.all_patch_size:
            raise ValueError(
                "this ZImageTransformer2DModel takes pictures (siglip_feat_dim, of Z-Image-Omni) or has no "
                "patches of 2x2, which its adapter does not pass; distil from Z-Image itself."
            )

    def entries(self) -> Mapping[str, Entry]:
        """Text and its mask."""
        return masked_text(self.config.cap_feat_dim)

    def arguments(self, x_t: Tensor, t: Tensor, condition: Condition) -> dict[str, Any]:
        """Lists with an entry a sample; latents as videos of one frame."""
        text, mask = (condition[name] for name in self.entries())
        shown = mask.bool()
        # shapes alone hide no token
        texts = [row if row.is_meta else row[keep] for row, keep in zip(text, shown, strict=True)]
        return {"x": list(x_t.unsqueeze(2)), "t": 1 - t, "cap_feats": texts}

    def prediction(self, output: Any, x_t: Tensor) -> Tensor:
        """The list's videos as maps, from noise to data turned around."""
        return -torch.stack(output).squeeze(2)

    def image_part(self, output: object, grid: tuple[int, int]) -> Tensor:
        """The first h w tokens; behind them are those that round the number up to 32, and the text."""
        found = first_tensor(output)
        return on_grid(found[:, : grid[0] * grid[1]] if found.ndim == 3 else found, grid)


class ZImagePipelineAdapter(SigmaLinePipelineAdapter):
    """`ZImagePipeline`: the last layer but one of Qwen3, of a chat with the prompt.

    Its call's `guidance_scale` is the scale here less 1.
    """

    def encode(self, pipe: Any, prompts: list[str], size: tuple[int, int]) -> Condition:
        """Qwen3's tokens and mask, as long as the longest prompt."""
        # a list of its own, which it changes
        texts, _ = pipe.encode_prompt(
            list(prompts), device=pipe.device, do_classifier_free_guidance=False
        )
        text = pad_sequence(texts, batch_first=True)
        mask = pad_sequence([one.new_ones(len(one)).long() for one in texts], batch_first=True)
        return Condition({"encoder_hidden_states": text, "encoder_attention_mask": mask})
