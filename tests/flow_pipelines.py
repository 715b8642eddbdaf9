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


def _flux_vae() -> Any:
    return parts.vae(
        16, 0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "qwen-image": qwen_image,
    "z-image": z_image,
}
