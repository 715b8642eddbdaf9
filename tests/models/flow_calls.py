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
    texts = [
        text[:length] for text, length in zip(c["encoder_hidden_states"], lengths, strict=True)
    ]
    answer = network(list(x_t[:, :, None].unbind(0)), 1 - t.float(), texts)
    return -torch.stack(list(answer.sample))[:, :, 0]


def _chroma(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    """As ChromaPipeline: the mask of text and image, as numbers."""
    pipe, (batch, channels, height, width) = diffusers.ChromaPipeline, x_t.shape
    mask = c["encoder_attention_mask"].float()
    answer = network(
        hidden_states=pipe._pack_latents(x_t, batch, channels, height, width),
        timestep=t.float(),
        encoder_hidden_states=c["encoder_hidden_states"],
        txt_ids=torch.zeros(mask.shape[1], 3),
        img_ids=pipe._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", x_t.dtype),
        attention_mask=torch.cat([mask, torch.ones(batch, height * width // 4).bool()], dim=1),
    )
    return pipe._unpack_latents(answer.sample, 8 * height, 8 * width, 8)


def _flux2(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    """As Flux2Pipeline, and Flux2KleinPipeline without guidance."""
    pipe, text = diffusers.Flux2Pipeline, c["encoder_hidden_states"]
    ids = pipe._prepare_latent_ids(x_t)
    answer = network(
        hidden_states=pipe._pack_latents(x_t),
        timestep=t.float(),
        guidance=c.tensors.get("guidance"),
        encoder_hidden_states=text,
        txt_ids=pipe._prepare_text_ids(text),
        img_ids=ids,
    )
    return pipe._unpack_latents_with_ids(answer.sample, ids)


def _aura_flow(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    return network(x_t, encoder_hidden_states=c["encoder_hidden_states"], timestep=t.float()).sample


def _lumina2(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    """As Lumina2Pipeline, a sample at a time without its padding; time and prediction are turned around."""
    text, lengths = c["encoder_hidden_states"], c["encoder_attention_mask"].sum(1).tolist()
    rows = [
        network(
            hidden_states=x_t[i : i + 1],
            timestep=1 - t[i : i + 1].float(),
            encoder_hidden_states=text[i : i + 1, :length],
            encoder_attention_mask=torch.ones(1, length, dtype=torch.long),
        ).sample
        for i, length in enumerate(lengths)
    ]
    return -torch.cat(rows)


CALLS: dict[str, Callable[[Any, Tensor, Tensor, Condition], Tensor]] = {
    "qwen-image": _qwen_image,
    "z-image": _z_image,
    "chroma": _chroma,
    "flux2-dev": _flux2,
    "flux2-klein": _flux2,
    "aura-flow": _aura_flow,
    "lumina2": _lumina2,
}
