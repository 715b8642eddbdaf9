"""Every family, as the tests see it: a tiny network, its inputs, and a call of diffusers written by hand.

The hand-written calls are how diffusers' own pipelines call their network; nothing of the library is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.types import Condition
from tests.pipelines import make_pipeline

Call = Callable[[Any, Tensor, Tensor, Condition], Tensor]


@dataclass(frozen=True)
class Family:
    """One row of the table of families.

    Attributes:
        make: a new denoiser, frozen, and the diffusers scheduler that its schedule is from.
        call: `(network, x_t, t, condition) -> prediction`, by hand.
    """

    make: Callable[[], tuple[DiffusersDenoiser, Any]]
    call: Call


def _from_pipeline(name: str) -> Callable[[], tuple[DiffusersDenoiser, Any]]:
    def make() -> tuple[DiffusersDenoiser, Any]:
        pipe = make_pipeline(name)
        return Pipeline.from_diffusers(pipe).denoiser, pipe.scheduler

    return make


def _stable_diffusion(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    return network(x_t, t, encoder_hidden_states=c["encoder_hidden_states"]).sample


def _sdxl(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    added = {"text_embeds": c["text_embeds"], "time_ids": c["time_ids"]}
    text = c["encoder_hidden_states"]
    return network(x_t, t, encoder_hidden_states=text, added_cond_kwargs=added).sample


def _pixart(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    answer = network(
        x_t,
        encoder_hidden_states=c["encoder_hidden_states"],
        encoder_attention_mask=c["encoder_attention_mask"],
        timestep=t,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    )
    return answer.sample.chunk(2, dim=1)[0]


FAMILIES: dict[str, Family] = {
    "sd15": Family(_from_pipeline("sd15"), _stable_diffusion),
    "sd21-v": Family(_from_pipeline("sd21-v"), _stable_diffusion),
    "sdxl": Family(_from_pipeline("sdxl"), _sdxl),
    "pixart-sigma": Family(_from_pipeline("pixart-sigma"), _pixart),
}


def inputs(
    denoiser: DiffusersDenoiser, batch: int = 2, size: tuple[int, int] = (8, 8)
) -> tuple[Tensor, Tensor, Condition]:
    """Random `(x_t, t, condition)`; the timesteps differ within the batch."""
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(batch, denoiser.latent_shape()[0], *size, generator=generator)
    t = denoiser.schedule.timestep(torch.linspace(0.3, 0.9, batch))
    example = denoiser.adapter.example_condition(x_t, length=5)

    def draw(name: str, value: Tensor) -> Tensor:
        shape = (batch, *value.shape[1:])
        if name.endswith("mask"):
            return torch.ones(shape, dtype=torch.long).index_fill(1, torch.tensor([4]), 0)
        if not value.is_floating_point():
            return torch.arange(batch)
        return torch.randn(shape, generator=generator)

    return x_t, t, Condition({name: draw(name, v) for name, v in example.tensors.items()})
