"""The families: one small file each, found by the name of diffusers' class.

An `if` on a family lives in these files and nowhere else.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from nitrodistill.models.adapters.aura_flow import AuraFlowAdapter, AuraFlowPipelineAdapter
from nitrodistill.models.adapters.base import Adapter, Entry, PipelineAdapter
from nitrodistill.models.adapters.chroma import ChromaAdapter, ChromaPipelineAdapter
from nitrodistill.models.adapters.dit import DiTAdapter, DiTPipelineAdapter
from nitrodistill.models.adapters.flux import FluxAdapter, FluxPipelineAdapter
from nitrodistill.models.adapters.flux2 import Flux2Adapter, Flux2PipelineAdapter
from nitrodistill.models.adapters.layout import first_tensor, image_tokens, on_grid
from nitrodistill.models.adapters.lumina2 import Lumina2Adapter, Lumina2PipelineAdapter
from nitrodistill.models.adapters.pixart import PixArtAdapter, PixArtPipelineAdapter
from nitrodistill.models.adapters.qwen_image import QwenImageAdapter, QwenImagePipelineAdapter
from nitrodistill.models.adapters.sana import SanaAdapter, SanaPipelineAdapter
from nitrodistill.models.adapters.sd3 import SD3Adapter, SD3PipelineAdapter
from nitrodistill.models.adapters.unet import (
    StableDiffusionPipelineAdapter,
    StableDiffusionXLPipelineAdapter,
    UNetAdapter,
)
from nitrodistill.models.adapters.unet2d import UNet2DAdapter, UNet2DPipelineAdapter
from nitrodistill.models.adapters.z_image import ZImageAdapter, ZImagePipelineAdapter

__all__ = [
    "ADAPTERS",
    "PIPELINES",
    "Adapter",
    "Entry",
    "PipelineAdapter",
    "adapter_for",
    "first_tensor",
    "image_tokens",
    "on_grid",
    "pipeline_adapter_for",
]

ADAPTERS: dict[str, type[Adapter]] = {
    "AuraFlowTransformer2DModel": AuraFlowAdapter,
    "ChromaTransformer2DModel": ChromaAdapter,
    "DiTTransformer2DModel": DiTAdapter,
    "Flux2Transformer2DModel": Flux2Adapter,
    "FluxTransformer2DModel": FluxAdapter,
    "Lumina2Transformer2DModel": Lumina2Adapter,
    "PixArtTransformer2DModel": PixArtAdapter,
    "QwenImageTransformer2DModel": QwenImageAdapter,
    "SD3Transformer2DModel": SD3Adapter,
    "SanaTransformer2DModel": SanaAdapter,
    "UNet2DConditionModel": UNetAdapter,
    "UNet2DModel": UNet2DAdapter,
    "ZImageTransformer2DModel": ZImageAdapter,
}
"""diffusers' class of a network -> its adapter."""

PIPELINES: dict[str, PipelineAdapter] = {
    "AuraFlowPipeline": AuraFlowPipelineAdapter(),
    "ChromaPipeline": ChromaPipelineAdapter(),
    "ConsistencyModelPipeline": UNet2DPipelineAdapter(),
    "DDIMPipeline": UNet2DPipelineAdapter(),
    "DDPMPipeline": UNet2DPipelineAdapter(),
    "DiTPipeline": DiTPipelineAdapter(),
    "Flux2KleinPipeline": Flux2PipelineAdapter(),
    "Flux2Pipeline": Flux2PipelineAdapter(),
    "FluxPipeline": FluxPipelineAdapter(),
    "Lumina2Pipeline": Lumina2PipelineAdapter(),
    "PixArtAlphaPipeline": PixArtPipelineAdapter(),
    "PixArtSigmaPipeline": PixArtPipelineAdapter(),
    "QwenImagePipeline": QwenImagePipelineAdapter(),
    "SanaPipeline": SanaPipelineAdapter(),
    "StableDiffusion3Pipeline": SD3PipelineAdapter(),
    "StableDiffusionPipeline": StableDiffusionPipelineAdapter(),
    "StableDiffusionXLPipeline": StableDiffusionXLPipelineAdapter(),
    "ZImagePipeline": ZImagePipelineAdapter(),
}
"""diffusers' class of a pipeline -> its adapter."""


def adapter_for(network: nn.Module) -> Adapter:
    """The adapter of a diffusers network.

    Raises:
        TypeError: if its class is not one of the families; the message lists what an adapter must say.
        ValueError: if it wants conditioning that the family's adapter does not pass.

    Example:
        >>> nd.models.adapters.adapter_for(teacher.diffusers.unet).latent_shape()
        (4, 8, 8)
    """
    name = type(network).__name__
    if name not in ADAPTERS:
        raise TypeError(
            f"{name} is not a known family ({', '.join(ADAPTERS)} are). Write a "
            "nitrodistill.models.Adapter that says "
            "entries() (the tensors of its Condition), arguments(x_t, t, condition) (of its forward), and "
            "where they differ from the defaults prediction, image_part, latent_shape, patch, multiple, "
            "block_lists and lora_targets, and pass it as DiffusersDenoiser(..., adapter=MyAdapter(network)); "
            "docs/extending.md shows one. Or pass any object with module, schedule, prediction_type and "
            "__call__(x_t, t, condition) -> prediction: it is a Denoiser."
        )
    return ADAPTERS[name](network)


def pipeline_adapter_for(pipe: Any) -> PipelineAdapter:
    """The adapter of a diffusers pipeline.

    Raises:
        TypeError: if its class is not one of the families.

    Example:
        >>> type(nd.models.adapters.pipeline_adapter_for(teacher.diffusers)).__name__
        'StableDiffusionPipelineAdapter'
    """
    name = type(pipe).__name__
    if name not in PIPELINES:
        raise TypeError(
            f"{name} is not a supported pipeline; {', '.join(PIPELINES)} are. Or pass an adapter of your "
            "own (docs/extending.md)."
        )
    return PIPELINES[name]
