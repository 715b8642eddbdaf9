"""Every family, as the tests see it: a tiny network, its inputs, and a call of diffusers written by hand.

The hand-written calls are how diffusers' own pipelines call their network; nothing of the library is in them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.models.noise import noise_of
from nitrodistill.types import Condition
from tests import flow_pipelines
from tests.models import flow_calls
from tests.pipelines import make_pipeline

Call = Callable[[Any, Tensor, Tensor, Condition], Tensor]


@dataclass(frozen=True)
class Family:
    """One row of the table of families.

    Attributes:
        make: a new denoiser, frozen, and the diffusers scheduler that its schedule is from.
        call: `(network, x_t, t, condition) -> prediction`, by hand.
        sizes: two sizes of latents that the network takes.
        raw: what a scheduler's step is given, where that is not the prediction (EDM).
    """

    make: Callable[[], tuple[DiffusersDenoiser, Any]]
    call: Call
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((8, 8), (8, 12))
    raw: Call | None = None


def _from_pipeline(name: str) -> Callable[[], tuple[DiffusersDenoiser, Any]]:
    def make() -> tuple[DiffusersDenoiser, Any]:
        pipe = make_pipeline(name)
        free = name.startswith("flux") or name in flow_pipelines.FAMILIES
        size = (64, 64) if free else None
        return Pipeline.from_diffusers(pipe, resolution=size).denoiser, pipe.scheduler

    return make


def _from_network(network: Callable[[], Any], scheduler: Callable[[], Any]) -> Any:
    def make() -> tuple[DiffusersDenoiser, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = network().requires_grad_(False).eval()
        found = scheduler()
        schedule, kind, preconditioning = noise_of(found)
        return DiffusersDenoiser(module, schedule, kind, preconditioning=preconditioning), found

    return make


def _sd21_eps() -> Any:
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )


def _pixart_alpha() -> Any:
    """With PixArt-alpha's conditioning on sizes, which goes with 128 latent pixels and this width."""
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=4,
        cross_attention_dim=24,
        caption_channels=32,
        sample_size=128,
    )


def _dit() -> Any:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        out_channels=8,
        num_layers=4,
        sample_size=8,
        num_embeds_ada_norm=10,
    )


def _ddpm() -> Any:
    return diffusers.DDPMScheduler(clip_sample=False)


def _unet2d(**settings: Any) -> Any:
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **settings,
    )


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


def _pixart_alpha_call(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    answer = network(
        x_t,
        encoder_hidden_states=c["encoder_hidden_states"],
        encoder_attention_mask=c["encoder_attention_mask"],
        timestep=t,
        added_cond_kwargs={"resolution": c["resolution"], "aspect_ratio": c["aspect_ratio"]},
    )
    return answer.sample.chunk(2, dim=1)[0]


def _sd3(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    return network(
        hidden_states=x_t,
        timestep=t.float(),
        encoder_hidden_states=c["encoder_hidden_states"],
        pooled_projections=c["pooled_projections"],
    ).sample


def _flux(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    """As FluxPipeline: it is the one that packs and unpacks."""
    pipe, (batch, channels, height, width) = diffusers.FluxPipeline, x_t.shape
    ids = pipe._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", x_t.dtype)
    answer = network(
        hidden_states=pipe._pack_latents(x_t, batch, channels, height, width),
        timestep=t.float(),
        guidance=c.tensors.get("guidance"),
        pooled_projections=c["pooled_projections"],
        encoder_hidden_states=c["encoder_hidden_states"],
        txt_ids=torch.zeros(c["encoder_hidden_states"].shape[1], 3),
        img_ids=ids,
    )
    return pipe._unpack_latents(answer.sample, 8 * height, 8 * width, 8)


def _sana(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    return network(
        x_t,
        encoder_hidden_states=c["encoder_hidden_states"],
        encoder_attention_mask=c["encoder_attention_mask"],
        timestep=t.float(),
    ).sample


def _dit_call(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    return network(x_t, timestep=t, class_labels=c["class_labels"]).sample.chunk(2, dim=1)[0]


def _unet2d_call(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    return network(x_t, t, class_labels=c.tensors.get("class_labels")).sample


def _edm_call(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    """As diffusers' EDM scheduler scales what goes in and comes out, sample by sample."""
    scheduler, rows = _edm(), []
    for x, sigma, label in zip(x_t, t.float(), c["class_labels"], strict=True):
        scaled = scheduler.precondition_inputs(x[None], sigma)
        raw = network(scaled, scheduler.precondition_noise(sigma), class_labels=label[None]).sample
        rows.append(scheduler.precondition_outputs(x[None], raw, sigma))
    return torch.cat(rows)


def _edm() -> Any:
    return diffusers.EDMEulerScheduler(sigma_max=80.0)


_SQUARE = ((8, 8), (12, 12))

FAMILIES: dict[str, Family] = {
    "sd15": Family(_from_pipeline("sd15"), _stable_diffusion),
    "sd21-eps": Family(
        _from_network(lambda: make_pipeline("sd21-v").unet, _sd21_eps), _stable_diffusion
    ),
    "sd21-v": Family(_from_pipeline("sd21-v"), _stable_diffusion),
    "sdxl": Family(_from_pipeline("sdxl"), _sdxl),
    "unet2d": Family(_from_network(_unet2d, _ddpm), _unet2d_call),
    "unet2d-classes": Family(
        _from_network(lambda: _unet2d(num_class_embeds=5), _ddpm), _unet2d_call
    ),
    "unet2d-edm": Family(
        _from_network(lambda: _unet2d(num_class_embeds=5), _edm), _edm_call, raw=_unet2d_call
    ),
    "dit": Family(_from_network(_dit, _ddpm), _dit_call, _SQUARE),
    "pixart-alpha": Family(_from_network(_pixart_alpha, _ddpm), _pixart_alpha_call),
    "pixart-sigma": Family(_from_pipeline("pixart-sigma"), _pixart),
    "sd3": Family(_from_pipeline("sd3"), _sd3),
    "flux-dev": Family(_from_pipeline("flux-dev"), _flux),
    "flux-schnell": Family(_from_pipeline("flux-schnell"), _flux),
    "sana": Family(_from_pipeline("sana"), _sana),
    **{
        name: Family(_from_pipeline(name), call, ((8, 8), (6, 10)))
        for name, call in flow_calls.CALLS.items()
    },
}


def inputs(
    denoiser: DiffusersDenoiser, batch: int = 2, size: tuple[int, int] = (8, 8)
) -> tuple[Tensor, Tensor, Condition]:
    """Random `(x_t, t, condition)`; the timesteps differ within the batch."""
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(batch, denoiser.adapter.channels(), *size, generator=generator)
    t = denoiser.schedule.timestep(torch.linspace(0.3, 0.9, batch))
    example = denoiser.adapter.example_condition(x_t, length=5)

    def draw(name: str, value: Tensor) -> Tensor:
        shape = (batch, *value.shape[1:])
        if name.endswith("mask"):
            lengths = 4 - torch.arange(batch) % 2  # of 5: they differ
            return (torch.arange(shape[1]) < lengths[:, None]).long()
        if not value.is_floating_point():
            return torch.arange(batch)
        return torch.randn(shape, generator=generator)

    return x_t, t, Condition({name: draw(name, v) for name, v in example.tensors.items()})


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors, made inside of it, that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size
