"""The families of today, as `tests.pipelines` has the others: flows whose text encoder is a language model.

Their schedulers have the published settings; text encoders and autoencoders are of the published classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import transformers

from tests import parts


def qwen_image() -> Any:
    """Qwen-Image: a shift that follows the resolution and a stretched grid, Qwen2.5-VL, a VAE of videos."""
    tokenizer = parts.qwen_tokenizer()
    sizes = parts.qwen_sizes(16, layers=1)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            text_config={**sizes, "rope_parameters": rope},
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 16,
                "fullatt_block_indexes": [0],
            },
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=16,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )
    return diffusers.QwenImagePipeline(scheduler, vae, encoder, tokenizer, transformer)


def z_image() -> Any:
    """Z-Image: flow with shift 3, Qwen3 in a chat, Flux's autoencoder; counts from noise to data."""
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=16,
        dim=64,
        n_layers=8,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 12, 12],
        axes_lens=[1024, 64, 64],
    )
    encoder = transformers.Qwen3Model(transformers.Qwen3Config(**parts.qwen_sizes(16, layers=2)))
    return diffusers.ZImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        _flux_vae(),
        encoder,
        parts.qwen_tokenizer(),
        transformer,
    )


def chroma() -> Any:
    """Chroma: Flux without pooled text; T5 with a mask."""
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return diffusers.ChromaPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        _flux_vae(),
        parts.t5(32),
        parts.t5_tokenizer(),
        transformer,
    )


def flux2_dev() -> Any:
    """FLUX.2 dev: guidance embedded, Mistral 3; a tokenizer with a chat template stands for its processor."""
    tokenizer = parts.qwen_tokenizer()
    sizes = parts.qwen_sizes(8, layers=31)
    encoder = transformers.Mistral3ForConditionalGeneration(
        transformers.Mistral3Config(
            text_config={"model_type": "mistral", **sizes},
            vision_config={
                "model_type": "pixtral",
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "head_dim": 8,
                "image_size": 28,
                "patch_size": 14,
            },
        )
    )
    return diffusers.Flux2Pipeline(
        _flux2_scheduler(), _flux2_vae(), encoder, tokenizer, _flux2(True)
    )


def flux2_klein() -> Any:
    """FLUX.2 klein: no guidance embedding, Qwen3."""
    encoder = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**parts.qwen_sizes(8, layers=28))
    )
    return diffusers.Flux2KleinPipeline(
        _flux2_scheduler(), _flux2_vae(), encoder, parts.qwen_tokenizer(), _flux2(False)
    )


def _flux2(guidance_embeds: bool) -> Any:
    return diffusers.Flux2Transformer2DModel(
        in_channels=128,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )


def _flux2_vae() -> Any:
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=32,
        norm_num_groups=4,
    )
    vae.bn.running_mean.normal_()  # statistics of patches, as training leaves them
    vae.bn.running_var.uniform_(0.5, 2)
    return vae


def _flux2_scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def aura_flow() -> Any:
    """AuraFlow: flow with shift 1.73, UMT5, SDXL's autoencoder."""
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pos_embed_max_size=1024,
    )
    return diffusers.AuraFlowPipeline(
        parts.t5_tokenizer(),
        parts.umt5(32),
        parts.vae(4, 0.13025, force_upcast=True),
        transformer,
        diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def lumina2() -> Any:
    """Lumina 2: flow with shift 6, Gemma 2, Flux's autoencoder; counts from noise to data."""
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        hidden_size=48,
        num_layers=8,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 8, 8),
        axes_lens=(300, 64, 64),
        cap_feat_dim=16,
    )
    return diffusers.Lumina2Pipeline(
        transformer,
        diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        _flux_vae(),
        parts.gemma(16, layers=2),
        parts.gemma_tokenizer(),
    )


def _flux_vae() -> Any:
    return parts.vae(
        16, 0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "qwen-image": qwen_image,
    "z-image": z_image,
    "chroma": chroma,
    "flux2-dev": flux2_dev,
    "flux2-klein": flux2_klein,
    "aura-flow": aura_flow,
    "lumina2": lumina2,
}
