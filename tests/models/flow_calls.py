"""How diffusers' pipelines call the networks of `tests.flow_pipelines`, by hand; see `tests.models.families`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

from nitrodistill.types import Condition


def _qwen_image(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    """As QwenImagePipeline: it is the one that packs and unpacks, to a video of one frame."""
    pipe, (batch, channels, height, width) = diffusers.QwenImagePipeline, x_t.shape
    answer = network(
        hidden_states=pipe._pack_latents(x_t, batch, channels, height, width),
        timestep=t.float(),
        guidance=None,
        encoder_hidden_states=c["encoder_hidden_states"],
        encoder_hidden_states_mask=c["encoder_hidden_states_mask"],
        img_shapes=[[(1, height // 2, width // 2)]] * batch,
    )
    return pipe._unpack_latents(answer.sample, 8 * height, 8 * width, 8)[:, :, 0]


def _z_image(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    """As ZImagePipeline: lists, the text cut to each sample's; time and prediction are turned around."""
    lengths = c["encoder_attention_mask"].sum(1)
    texts = [text[:length] for text, length in zip(c["encoder_hidden_states"], lengths, strict=True)]
    answer = network(list(x_t[:, :, None].unbind(0)), 1 - t, texts)
    return -torch.stack(answer.sample)[:, :, 0]


CALLS: dict[str, Callable[[Any, Tensor, Tensor, Condition], Tensor]] = {
    "qwen-image": _qwen_image,
    "z-image": _z_image,
}
