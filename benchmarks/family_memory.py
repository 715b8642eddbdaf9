"""What the recipes of the families of today take on GPUs of 80 GB, counted on shapes.

    python benchmarks/family_memory.py [--recipes NAME ...] [--write]

Runs `training.estimate` for each recipe as it is, at 1024x1024 and 512 tokens of text, on networks of the
published sizes, text encoders too. Nothing is allocated or downloaded. What is counted is kept in
benchmarks/results/family_memory.json: remove it to count anew, minutes each. `--write` puts the table of all
that is counted into docs/families.md. Its columns of bfloat16 and of eight GPUs are arithmetic:

- bfloat16: with `teacher_settings: {weights_dtype: bfloat16}` the pipeline's own weights are half of what they
  are in float32, and what trains with bf16 uses the teacher itself and no copy of it.
- eight GPUs: LoRA roles are not shared out (DDP), so each GPU takes what one alone does. With `parallel: fsdp`
  each holds an eighth of teacher and student, of gradients, moments and average, and two gathered blocks in
  bfloat16.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from _measure import RESULTS, markdown_table, replace_between_markers

from nitrodistill.models import Pipeline
from nitrodistill.training.estimate import estimate
from nitrodistill.training.recipe import load_recipe

DOCS = Path(__file__).parent.parent / "docs" / "families.md"
PATH = RESULTS / "family_memory.json"
EMPTY: Any = None
GIB, GPU, GPUS = 2**30, 80 * 10**9, 8
TEXT_ENCODER = "text_encoder"
OWN, COPY = {"teacher", TEXT_ENCODER, "vae"}, "teacher's copy"
"""Roles whose weights have the dtype in which the pipeline is loaded; a copy of one in another dtype."""


def qwen3_4b() -> Any:
    """Qwen3 4B."""
    return transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=151936,
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
        )
    )


def qwen_image() -> Any:
    """Qwen-Image; Qwen2.5-VL 7B."""
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            text_config={
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
            },
            vision_config={
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
            },
            tie_word_embeddings=False,
        )
    )
    network, vae = diffusers.QwenImageTransformer2DModel(), diffusers.AutoencoderKLQwenImage()
    return diffusers.QwenImagePipeline(_scheduler(), vae, encoder, EMPTY, network)


def z_image() -> Any:
    """Z-Image; Qwen3 4B without its head, and Flux's autoencoder."""
    blocks: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    vae = diffusers.AutoencoderKL(latent_channels=16, layers_per_block=2, **blocks)
    network = diffusers.ZImageTransformer2DModel()
    return diffusers.ZImagePipeline(_scheduler(), vae, qwen3_4b().model, EMPTY, network)


def klein() -> Any:
    """FLUX.2 klein 4B; Qwen3 4B."""
    network = diffusers.Flux2Transformer2DModel(
        num_layers=5,
        num_single_layers=20,
        num_attention_heads=24,
        joint_attention_dim=7680,
        guidance_embeds=False,
    )
    vae = diffusers.AutoencoderKLFlux2()
    return diffusers.Flux2KleinPipeline(_scheduler(), vae, qwen3_4b(), EMPTY, network)


RECIPES: dict[str, Callable[[], Any]] = {
    "dmd-zimage-lora": z_image,
    "ladd-flux2-klein": klein,
    "dmd-decoupled-qwen-image-lora": qwen_image,
    "dit-depth-qwen-image": qwen_image,
}


def _scheduler() -> Any:
    with torch.device("cpu"):  # it computes on what it makes; the shift changes no shape
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def counted(recipe: str) -> dict[str, Any]:
    """What `estimate` says of a recipe; bytes."""
    start = time.perf_counter()
    with torch.device("meta"):
        pipe = RECIPES[recipe]()
    plan = load_recipe(recipe)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, getattr(torch, plan.teacher_settings.weights_dtype))
    pipeline = Pipeline.from_diffusers(pipe, resolution=(1024, 1024))
    (stage,) = plan.stages
    if stage.trainer.parallel == "fsdp":  # its batch is that of all GPUs
        share = replace(stage.trainer, batch_size=stage.trainer.batch_size // GPUS)
        stage = replace(stage, trainer=share)
    memory = estimate(pipeline, stage, text_length=512)
    kinds = set(pipe.transformer._no_split_modules)
    blocks = [m for m in pipe.transformer.modules() if type(m).__name__ in kinds]
    return {
        "batch_size": memory.batch_size,
        "lora": stage.lora is not None,
        "largest_block": max(sum(p.numel() for p in block.parameters()) for block in blocks),
        "peak": memory.peak(),
        "one_more": memory.peak(memory.batch_size + 1) - memory.peak(),
        "roles": {
            name: {
                "parameters": role.parameters,
                "trained": role.trained,
                "weights": role.weights,
                "gradients": role.gradients,
                "optimizer": role.optimizer,
                "average": role.average,
            }
            for name, role in memory.roles.items()
        },
        "seconds": round(time.perf_counter() - start),
    }


def in_bfloat16(found: dict[str, Any]) -> float:
    """The peak with the pipeline's own weights in bfloat16."""
    whole = [role for name, role in found["roles"].items() if name in OWN]
    spared = sum(max(0, role["weights"] - 2 * role["parameters"]) for role in whole)
    return found["peak"] - spared - found["roles"].get(COPY, {"weights": 0})["weights"]


def shared_out(found: dict[str, Any]) -> float:
    """`in_bfloat16`, on each of the GPUs."""
    whole = in_bfloat16(found)
    if found["lora"]:
        return whole
    shares = 0.0
    for name, role in found["roles"].items():
        if name not in (TEXT_ENCODER, "vae", COPY):
            weights = 2 * role["parameters"] if name in OWN else role["weights"]
            shares += weights + role["gradients"] + role["optimizer"] + role["average"]
    return whole - shares * (1 - 1 / GPUS) + 2 * 2 * found["largest_block"]


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""

    def size(number: float) -> str:
        return f"{number / GIB:.1f}" + ("" if number <= GPU else " (does not fit)")

    header = (
        "recipe",
        "teacher, billions",
        "trained, millions",
        "micro-batch",
        "one GPU, as it is, GiB",
        "teacher in bfloat16, GiB",
        "each of eight GPUs, the same, GiB",
        "one more sample, GiB",
    )
    return markdown_table(
        header,
        [
            (
                f"`{name}`",
                f"{found['roles']['teacher']['parameters'] / 1e9:.2f}",
                f"{sum(role['trained'] for role in found['roles'].values()) / 1e6:,.0f}",
                str(found["batch_size"]),
                size(found["peak"]),
                size(in_bfloat16(found)),
                f"{size(shared_out(found))}, {'DDP' if found['lora'] else 'FSDP2'}",
                f"{found['one_more'] / GIB:.1f}",
            )
            for name, found in rows.items()
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/families.md"
    )
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    rows = json.loads(PATH.read_text()) if PATH.is_file() else {}
    for recipe in options.recipes:
        if recipe not in rows:
            rows[recipe] = counted(recipe)
            PATH.write_text(json.dumps(rows, indent=1) + "\n")
    text = table({recipe: rows[recipe] for recipe in RECIPES if recipe in rows})
    print(text)
    if options.write:
        replace_between_markers(DOCS, "family-memory", text)


if __name__ == "__main__":
    main()
