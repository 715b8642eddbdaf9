"""`nitrodistill estimate`: what a recipe needs, before anything is downloaded or allocated.

Count what a recipe needs: parameters, weights, gradients, AdamW's moments and moving average of every role,
exactly, and the activations that the backward passes keep, by running the losses on shapes alone. Then say which
switches help, and the largest micro-batch that fits. Of the teacher only the config files are read: a directory
without weights is enough, and of a name on the Hub no weights are downloaded. Not counted: what the allocator and
the kernels need for themselves, and the VAE's activations while previews are drawn; leave some memory free.

example:
  nitrodistill estimate --config examples/recipes/toy.yaml
  nitrodistill estimate --config examples/recipes/nitro-sd21.yaml --teacher path/to/pipeline --memory 64
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nitrodistill.cli.arguments import Parser, parse
from nitrodistill.cli.terminal import say, size_text

if TYPE_CHECKING:
    from nitrodistill.models import Pipeline
    from nitrodistill.training.estimate import Memory

_GIB = 2**30


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        config: recipe, a YAML file.
        teacher: null takes the recipe's; a directory or a name.
        stage: which stage of the recipe, from 0.
        memory: GiB of the GPU; null takes this machine's.
        text_length: tokens of a prompt; null takes the text encoder's length, or 300 where it has none (T5).
        lora_rank: of the LoRA student, where the recipe has none.
    """

    config: str
    teacher: str | None = None
    stage: int = 0
    memory: float | None = None
    text_length: int | None = None
    lora_rank: int = 64


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill estimate --help`."""
    given = parse(Parser("estimate", __doc__, _Options), argv)
    for name in ("memory", "text_length", "lora_rank"):
        value = getattr(given, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} is {value}; it must be above 0.")

    from nitrodistill.teachers import teacher_shapes
    from nitrodistill.training.estimate import what_helps
    from nitrodistill.training.recipe import load_recipe

    recipe = load_recipe(given.config)
    if not 0 <= given.stage < len(recipe.stages):
        raise ValueError(
            f"stage is {given.stage}; the recipe has {len(recipe.stages)}, counted from 0."
        )
    pipeline = teacher_shapes(given.teacher or recipe.teacher, recipe.teacher_settings)
    found = what_helps(
        pipeline,
        recipe.stages[given.stage],
        text_length=given.text_length or _text_length(pipeline),
        lora_rank=given.lora_rank,
        earlier=recipe.stages[: given.stage],
    )
    capacity = None if given.memory is None else int(given.memory * _GIB)
    say(_roles(found["as it is"]), lines=True)
    say(_switches(found, _own_memory() if capacity is None else capacity), lines=True)
    return 0


def _text_length(pipeline: Pipeline) -> int:
    """What the text encoder has positions for; T5 has none, and PixArt, SD3 and Sana pad it to 300 or so."""
    encoder = pipeline.diffusers.components.get("text_encoder")
    return getattr(getattr(encoder, "config", None), "max_position_embeddings", 300)


def _own_memory() -> int | None:
    import torch

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
