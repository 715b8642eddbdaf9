"""`nitrodistill estimate`: what a recipe needs, before anything is downloaded or allocated.

Count what a recipe needs: parameters, weights, gradients, AdamW's moments and moving average of every role,
exactly, and the activations that the backward passes keep, by running the losses on shapes alone. Then say which
switches help, and the largest micro-batch that fits. Then the time of all steps: measured, by some real steps on
random latents, where the weights are here and the networks are small, or with --measure; and for GPUs by
arithmetic. Of the teacher else only the config files are read: a directory without weights is enough, and of a
name on the Hub no weights are downloaded. Not counted: what the allocator and the kernels need for themselves, and
the VAE's activations while previews are drawn; leave some memory free.

example:
  nitrodistill estimate toy
  nitrodistill estimate nitro-sd21 --teacher path/to/pipeline --memory 64
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nitrodistill.cli.arguments import Parser, parse
from nitrodistill.cli.terminal import results, say, size_text, time_text
from nitrodistill.models import Pipeline

if TYPE_CHECKING:
    from nitrodistill.training.estimate import Memory
    from nitrodistill.training.recipe import Stage

_GIB = 2**30
_SMALL = 50_000_000
"""Parameters below which some steps take seconds."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        config: recipe: a YAML file, or the name of one that `nitrodistill recipes` lists.
        teacher: null takes the recipe's; a directory or a name.
        stage: which stage of the recipe, from 0.
        memory: GiB of the GPU; null takes this machine's.
        text_length: tokens of a prompt; null takes the text encoder's length, or 300 where it has none (T5).
        measure: take real steps on this machine however large the networks are; weights are loaded.
        lora_rank: of the LoRA student, where the recipe has none.
    """

    config: str
    teacher: str | None = None
    stage: int = 0
    memory: float | None = None
    measure: bool = False
    text_length: int | None = None
    lora_rank: int = 64


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill estimate --help`."""
    given = parse(Parser("estimate", __doc__, _Options, words="config"), argv)
    for name in ("memory", "text_length", "lora_rank"):
        value = getattr(given, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} is {value}; it must be above 0.")

    from nitrodistill.teachers import load_teacher, teacher_shapes
    from nitrodistill.training.estimate import Counts, what_helps
    from nitrodistill.training.recipe import load_recipe
    from nitrodistill.training.speed import GPUS, stage_seconds

    recipe = load_recipe(given.config)
    if not 0 <= given.stage < len(recipe.stages):
        raise ValueError(
            f"stage is {given.stage}; the recipe has {len(recipe.stages)}, counted from 0."
        )
    teacher, stage = given.teacher or recipe.teacher, recipe.stages[given.stage]
    pipeline = teacher_shapes(teacher, recipe.teacher_settings)
    length = given.text_length or _text_length(pipeline)
    counts = Counts(pipeline, length, recipe.stages[: given.stage])
    found = what_helps(counts, stage, lora_rank=given.lora_rank)
    flops = counts.flops(stage)
    half, measured = stage.trainer.half is not None, None
    if given.measure or (_is_small(found["as it is"]) and _is_here(teacher, stage)):
        _log.info("measuring some steps")
        measured = stage_seconds(
            load_teacher(teacher, recipe.teacher_settings),
            stage,
            text_length=length,
            patience=10.0 if given.measure else 0.5,  # nobody asked for it
        )
    capacity = None if given.memory is None else int(given.memory * _GIB)
    results(
        roles=found["as it is"].roles,
        peak_bytes={name: memory.peak() for name, memory in found.items()},
        flops=flops,
        measured_seconds=measured and measured[0],
        arithmetic_seconds={name: gpu.seconds(flops, half) for name, gpu in GPUS.items()},
    )
    say(_roles(found["as it is"]), lines=True)
    say(_switches(found, _own_memory() if capacity is None else capacity), lines=True)
    say(_times(stage, flops, measured), lines=True)
    return 0


def _is_here(teacher: str, stage: Stage) -> bool:
    """Whether the weights are on this machine, and the stage needs no earlier one."""
    from nitrodistill.teachers import EMBEDDED

    whole = teacher in EMBEDDED or any(Path(teacher).glob("*/*.safetensors"))
    return whole and not {stage.student, stage.teacher} - {"teacher", "recipe"}


def _is_small(memory: Memory) -> bool:
    return sum(role.parameters for role in memory.roles.values()) < _SMALL


def _times(stage: Stage, flops: float, measured: tuple[float, int] | None) -> str:
    from nitrodistill.training.speed import GPUS, UTILISATION

    steps, half = stage.trainer.steps, stage.trainer.half is not None
    lines = [f"\n{f'time of {steps:,} steps':<36}{'a step':>10}{'all':>16}"]

    def add(name: str, seconds: float) -> None:
        lines.append(f"{name:<36}{time_text(seconds / steps):>10}{time_text(seconds):>16}")

    if measured is not None:
        add(f"measured here, by {measured[1]} steps", measured[0])
    for name, gpu in GPUS.items():
        add(f"{name}, by arithmetic", gpu.seconds(flops, half))
    share, kind = f"{UTILISATION:.0%}", "bf16 and fp16" if half else "float32"
    lines.append(
        f"arithmetic, not measured: {flops / steps / 1e12:.3g} TFLOP a step, at {share} of what is published for "
        f"one GPU in {kind};\nsmall networks are slower than that, and data and the optimizer are left out"
    )
    return "\n".join(lines)


def _text_length(pipeline: Pipeline) -> int:
    """What the text encoder has positions for; T5 has none, and PixArt, SD3 and Sana pad it to 300 or so."""
    encoder = pipeline.diffusers.components.get("text_encoder")
    return getattr(getattr(encoder, "config", None), "max_position_embeddings", 300)


def _own_memory() -> int | None:
    return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None


def _roles(memory: Memory) -> str:
    names = ("weights", "gradients", "moments", "average")
    columns = "".join(f"{name:>10}" for name in names)
    lines = [f"{'role':<16}{'parameters':>15}{'trained':>15}{columns}"]
    for name, role in memory.roles.items():
        sizes = role.weights, role.gradients, role.optimizer, role.average
        columns = "".join(f"{size_text(size):>10}" for size in sizes)
        lines.append(f"{name:<16}{role.parameters:>15,}{role.trained:>15,}{columns}")
    lines.append("")
    lines += [
        f"activations, {' and '.join(turn)} learning, {backward.role}'s backward pass: "
        f"{size_text(backward.kept.fixed + backward.block.fixed)} + "
        f"{size_text(backward.kept.each + backward.block.each)} a sample"
        for turn, passes in memory.turns.items()
        for backward in passes
    ]
    lines.append(f"peak with micro-batches of {memory.batch_size}: {size_text(memory.peak())}\n")
    return "\n".join(lines)


def _switches(found: dict[str, Memory], capacity: int | None) -> str:
    fits = "" if capacity is None else f"   largest micro-batch in {size_text(capacity)}"
    lines = [f"{'what helps':<36}{'peak':>10}{fits}"]
    for name, memory in found.items():
        size = "" if capacity is None else f"   {memory.largest_batch(capacity) or 'none fits'}"
        lines.append(f"{name:<36}{size_text(memory.peak()):>10}{size}")
    return "\n".join(lines)
