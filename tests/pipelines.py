"""Whole diffusers pipelines of every family, tiny and random: real classes, real configs, no download.

    pipe = tiny_pipeline("sdxl")    # shared: read it, do not change it
    pipe = make_pipeline("sdxl")    # a new one

Each is what the family's checkpoints are but for its size: scheduler (with the published settings), prediction
type, text encoders, latent channels, VAE scale and shift, learned-sigma channels, guidance embedding. Default
calls work: the sizes are those that diffusers' resolution bins know, so that PixArt-Sigma draws 32x32 latents,
Sana 16x16 and Flux, whose pipeline fixes them, 128x128.

Under pytest, import this as `tests.pipelines`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import diffusers
import torch
import transformers

from tests import flow_pipelines, parts

__all__ = ["FAMILIES", "make_pipeline", "tiny_pipeline"]

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


@cache
def tiny_pipeline(family: str) -> Any:
    """The pipeline of a family, built once; for those who only read it."""
    return make_pipeline(family)


def make_pipeline(family: str) -> Any:
    """A new pipeline of a family, in eval mode; the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = (FAMILIES | WITHOUT_TEXT)[family]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd15() -> Any:
    """Stable Diffusion 1.5: epsilon, PNDM, one CLIP."""
    scheduler = diffusers.PNDMScheduler(
        **SCALED_LINEAR, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
    )
    return _stable_diffusion(scheduler, attention_head_dim=2)


def sd21_v() -> Any:
    """Stable Diffusion 2.1: v-prediction, DDIM, linear projections."""
    scheduler = diffusers.DDIMScheduler(
        **SCALED_LINEAR,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return _stable_diffusion(scheduler, attention_head_dim=(2, 4), use_linear_projection=True)


def _stable_diffusion(scheduler: Any, **unet: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=parts.vae(4, 0.18215),
        text_encoder=parts.clip(transformers.CLIPTextModel, 16),
        tokenizer=parts.clip_tokenizer(),
        unet=parts.unet(cross_attention_dim=16, **unet),
        scheduler=scheduler,
        **_no_checker(),
    )


def _no_checker() -> dict[str, Any]:
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sdxl() -> Any:
    """SDXL: epsilon, two CLIPs (penultimate layers side by side), pooled text and time ids."""
    unet = parts.unet(
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
    )
    scheduler: Any = diffusers.EulerDiscreteScheduler(
        **SCALED_LINEAR, timestep_spacing="leading", steps_offset=1
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=parts.vae(4, 0.13025, force_upcast=True),
        text_encoder=parts.clip(transformers.CLIPTextModel, 8),
        text_encoder_2=parts.clip(transformers.CLIPTextModelWithProjection, 16, projection_dim=12),
        tokenizer=parts.clip_tokenizer(),
        tokenizer_2=parts.clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def pixart_sigma() -> Any:
    """PixArt-Sigma: epsilon with learned-sigma channels, DPM++, T5 of 300 tokens with a mask."""
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        cross_attention_dim=16,
        caption_channels=32,
        sample_size=32,
        patch_size=2,
        use_additional_conditions=False,
    )
    scheduler: Any = diffusers.DPMSolverMultistepScheduler(**LINEAR)
    return diffusers.PixArtSigmaPipeline(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.t5(32),
        vae=parts.vae(4, 0.13025, channels=(4, 4, 4, 4)),
        transformer=transformer,
        scheduler=scheduler,
    )


def sd3() -> Any:
    """Stable Diffusion 3.5: flow with shift 3, two CLIPs and T5, dual attention in the first block."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=12 + 10,
        out_channels=16,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    encoder = transformers.CLIPTextModelWithProjection
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=parts.vae(
            16, 1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=parts.clip(encoder, 8, projection_dim=12),
        tokenizer=parts.clip_tokenizer(),
        text_encoder_2=parts.clip(encoder, 16, projection_dim=10),
        tokenizer_2=parts.clip_tokenizer(),
        text_encoder_3=parts.t5(32),
        tokenizer_3=parts.t5_tokenizer(),
    )


def flux_dev() -> Any:
    """Flux.1-dev: flow with a shift that follows the resolution, guidance embedded."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    return _flux(scheduler, guidance_embeds=True)


def flux_schnell() -> Any:
    """Flux.1-schnell: flow without shift, no guidance embedding."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=1.0, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    return _flux(scheduler, guidance_embeds=False)


def _flux(scheduler: Any, guidance_embeds: bool) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.FluxPipeline(
        scheduler=scheduler,
        vae=parts.vae(
            16, 0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=parts.clip(transformers.CLIPTextModel, 16),
        tokenizer=parts.clip_tokenizer(),
        text_encoder_2=parts.t5(32),
        tokenizer_2=parts.t5_tokenizer(),
        transformer=transformer,
    )


def sana() -> Any:
    """Sana: flow with shift 3 on DPM++, Gemma 2 with instructions, a deep-compression autoencoder."""
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=32,
        out_channels=32,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=16,
    )
    half: dict[str, Any] = {
        "block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        "block_out_channels": (4, 4, 8, 8, 16, 32),
        "layers_per_block": (1,) * 6,
        "qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    }
    vae = diffusers.AutoencoderDC(
        latent_channels=32,
        attention_head_dim=4,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
        **{
            f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in half.items()
        },
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(
        parts.gemma_tokenizer(), parts.gemma(16), vae, transformer, scheduler
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "sd15": sd15,
    "sd21-v": sd21_v,
    "sdxl": sdxl,
    "pixart-sigma": pixart_sigma,
    "sd3": sd3,
    "flux-dev": flux_dev,
    "flux-schnell": flux_schnell,
    "sana": sana,
    **flow_pipelines.FAMILIES,
}


def ddpm(channels: int = 1, **settings: Any) -> Any:
    """A pixel-space UNet, by default unconditional and grey."""
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        **settings,
    )
    return diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(clip_sample=False))


def ddim() -> Any:
    """The same network, colours, and DDIM."""
    unet = ddpm(channels=3).unet
    return diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(clip_sample=False))


def edm() -> Any:
    """EDM's network of four classes, in colours, drawn by Euler's steps from sigma 80."""
    unet = ddpm(channels=3, num_class_embeds=4).unet
    scheduler: Any = diffusers.EDMEulerScheduler()
    return diffusers.ConsistencyModelPipeline(unet, scheduler)


def dit() -> Any:
    """DiT: classes, learned sigma."""
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=1,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        out_channels=8,
        num_embeds_ada_norm=3,
    )
    names = {0: "tench, Tinca tinca", 1: "goldfish", 2: "great white shark"}
    scheduler: Any = diffusers.DDIMScheduler(clip_sample=False)
    pipe: Any = diffusers.DiTPipeline(transformer, parts.vae(4, 0.18215), scheduler, id2label=names)
    pipe.register_to_config(id2label={str(label): name for label, name in names.items()})
    return pipe  # as its checkpoint is: diffusers reads the names and would not save them


WITHOUT_TEXT: dict[str, Callable[[], Any]] = {
    "ddpm": ddpm,
    "ddpm-rgb": partial(ddpm, 3),
    "ddpm-classes": partial(ddpm, num_class_embeds=4),
    "ddim": ddim,
    "edm": edm,
    "dit": dit,
}
"""Unconditional and class-conditional pipelines."""
