"""The toy's tokenizer and text encoder: CLIP's classes, at the size of a grammar of 19 words.

The tokenizer's merges are learnt (BPE) until each word is one token; hand-made merges mis-split a fifth of the
captions. Letters stay in the vocabulary, so an unknown word is spelt out rather than lost: the embedded teacher
has no use for it, and `scenes.check_prompt` says so.
"""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nitrodistill.toy import scenes

MAX_TOKENS = scenes.MAX_WORDS + 2  # with the start and the end of the text
START, END = "<|startoftext|>", "<|endoftext|>"
TEXT_WIDTH = 64


def make_tokenizer() -> CLIPTokenizer:
    """Learns the merges on the captions and returns a tokenizer that reads each word as one token."""
    letters = [*string.ascii_lowercase, *(letter + "</w>" for letter in string.ascii_lowercase)]
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        special_tokens=[START, END, *letters],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    model.train_from_iterator(scenes.captions(), trainer)
    learnt = json.loads(model.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in learnt["merges"]]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(learnt["vocab"]))
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": MAX_TOKENS,
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
        }
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))
        return CLIPTokenizer.from_pretrained(folder)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Returns an untrained text encoder (two layers of width 64) for the tokenizer's vocabulary."""
    vocabulary = tokenizer.get_vocab()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[END],
        )
    )


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Returns token ids `(B, 12)`, int64, padded with the end token as `StableDiffusionPipeline` pads them."""
    encoded = tokenizer(
        prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    return torch.as_tensor(encoded["input_ids"])
