"""Parts of tiny pipelines: networks, autoencoders, tokenizers and text encoders of the real classes."""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import diffusers
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from nitrodistill.toy.scenes import WORDS
from tools.toy.text import MAX_TOKENS, make_tokenizer

LETTERS = string.ascii_letters + string.digits + string.punctuation
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def unet(**settings: Any) -> Any:
    """A UNet of two levels."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **settings,
    )


def vae(
    latent_channels: int,
    scaling_factor: float,
    channels: tuple[int, ...] = (4, 8),
    **settings: Any,
) -> Any:
    """A KL autoencoder."""
    blocks: dict[str, Any] = {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
    }
    return diffusers.AutoencoderKL(
        norm_num_groups=4,
        latent_channels=latent_channels,
        scaling_factor=scaling_factor,
        **blocks,
        **settings,
    )


@cache
def clip_tokenizer() -> Any:
    """The toy's."""
    return make_tokenizer()


def clip(encoder: Any, width: int, **settings: Any) -> Any:
    """CLIP's text encoder."""
    tokenizer = clip_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )
    return encoder(config)


@cache
def t5_tokenizer() -> Any:
    """The toy's words, and letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"▁{word}", -1.0) for word in WORDS if len(word) > 1]
    letters = [("▁", -3.0), *((letter, -5.0) for letter in LETTERS)]
    return transformers.T5Tokenizer(
        vocab=[*special, *words, *letters], extra_ids=0, model_max_length=512
    )


def t5(width: int) -> Any:
    """T5's encoder."""
    return transformers.T5EncoderModel(transformers.T5Config(**_t5_sizes(width)))


def umt5(width: int) -> Any:
    """UMT5's encoder."""
    return transformers.UMT5EncoderModel(transformers.UMT5Config(**_t5_sizes(width)))


def _t5_sizes(width: int) -> dict[str, Any]:
    return {
        "vocab_size": len(t5_tokenizer()),
        "d_model": width,
        "d_kv": 8,
        "d_ff": 2 * width,
        "num_layers": 1,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "use_cache": False,
    }


@cache
def gemma_tokenizer() -> Any:
    """Letters alone."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *LETTERS]
    vocabulary = {name: i for i, name in enumerate(names)}
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=2048)


def gemma(width: int, layers: int = 1) -> Any:
    """Gemma 2."""
    tokenizer = gemma_tokenizer()
    return transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=4096,
            sliding_window=4096,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


@cache
def qwen_tokenizer() -> Any:
    """Bytes alone, and a chat template like Qwen's."""
    names = [*ByteLevel.alphabet(), *QWEN_SPECIAL]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={name: i for i, name in enumerate(sorted(names))},
        merges=[],
        unk_token=QWEN_SPECIAL[0],
        eos_token=QWEN_SPECIAL[2],
        pad_token=QWEN_SPECIAL[0],
        additional_special_tokens=list(QWEN_SPECIAL),
        model_max_length=4096,
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
        "{{ message.content }}{% else %}{{ message.content[0].text }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def qwen_sizes(width: int, layers: int) -> dict[str, Any]:
    """The settings of a tiny Qwen."""
    tokenizer = qwen_tokenizer()
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": width // 2,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
