"""How long a stage takes: counted operations over what GPUs are said to do, and real steps on this machine.

    seconds = operations of the stage / (utilisation * published peak)

Operations (`estimate.Counts.flops`) are those of matrix products, convolutions and attention, of the losses and
their backward passes; a multiplication and an addition are two. The utilisation is assumed, not measured.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from nitrodistill.method import Draws
from nitrodistill.models import Pipeline
from nitrodistill.training.log import make_accelerator
from nitrodistill.training.networks import StageNetworks
from nitrodistill.training.passes import turns_of
from nitrodistill.training.recipe import Stage
from nitrodistill.training.trainer import Trainer
from nitrodistill.types import Batch, Latents, Pairs

UTILISATION = 0.4
"""The part of the published peak that is assumed."""
_MOST = 8
"""Steps of one kind that are timed."""


class Peak(NamedTuple):
    """Operations a second, in units of 1e12, dense, as the maker publishes them.

    Attributes:
        half: bfloat16 and float16 with sums in float32.
        single: float32.
    """

    half: float
    single: float

    def seconds(self, flops: float, half: bool) -> float:
        """What so many operations take at `UTILISATION`."""
        return flops / (UTILISATION * 1e12 * (self.half if half else self.single))


GPUS = {
    "MI325X, MI300X": Peak(1307.4, 163.4),
    "MI250X": Peak(383.0, 95.7),
    "H200, H100 SXM": Peak(989.4, 66.9),
    "A100": Peak(312.0, 19.5),
    "RTX 4090": Peak(165.2, 82.6),
    "RX 7900 XTX": Peak(122.8, 61.4),
}
"""Data sheets of AMD and NVIDIA."""


def stage_seconds(
    pipeline: Pipeline, stage: Stage, *, text_length: int, patience: float = 10.0
) -> tuple[float, int]:
    """The seconds of all steps of a stage here, from real steps on random latents; and how many those were.

    The pipeline's networks move to the fastest device.

    Args:
        pipeline: the teacher.
        stage: method and trainer; it starts from the teacher.
        text_length: tokens of a prompt.
        patience: seconds after which no further step is begun, once each kind of step was timed twice.

    Raises:
        ValueError: if the stage goes on with the student of an earlier one.
    """
    if "previous" in (stage.student, stage.teacher):
        raise ValueError(
            "the stage goes on with the student of the one before, which is not trained yet; measure stage 0."
        )
    quiet = replace(stage.trainer, evaluate_every=0, best_metric="", diagnose_every=0)
    quiet = replace(quiet, term_gradients_every=0, checkpoint_every=0)
    accelerator = make_accelerator(quiet.mixed_precision, cpu_offload=quiet.cpu_offload)
    method, _ = StageNetworks(pipeline, accelerator, Path()).build(0, stage)
    like = torch.empty(1, *pipeline.latent_shape)
    text, size = pipeline.denoiser.adapter.example_condition(like, text_length), quiet.batch_size

    def stream(number: int) -> Batch:
        index = torch.arange(number * size, (number + 1) * size)
        x0, condition = Draws(0, 0, index).normal("x0", like.shape[1:]), text.index([0] * size)
        return Batch(index, Pairs(x0, x0, condition), Latents(x0, condition), condition)

    turns, count, total = turns_of(method, quiet.steps), 0, 0.0
    trainer = Trainer(method, stream, quiet, accelerator=accelerator)
    for steps in turns.values():
        found, start = list[float](), time.perf_counter()
        for step in steps[:_MOST]:
            trainer.step = step  # steps of a kind may lie far apart, or begin late
            found.append(next(trainer.fit()).seconds)
            if len(found) > 1 and time.perf_counter() - start > patience / len(turns):
                break
        # the first is slower: memory is asked for, kernels are chosen
        total += len(steps) * median(found[1:] or found)
        count += len(found)
    return total, count
