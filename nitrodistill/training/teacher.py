"""Where a recipe's teacher is while a stage trains: whole on the device, or shared out by the processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.models.denoiser import frozen
from nitrodistill.models.lora import base_copy
from nitrodistill.training.parallel import prepare_frozen
from nitrodistill.training.recipe import Stage
from nitrodistill.training.roles import checkpoint_gradients

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["PlacedTeacher"]


class PlacedTeacher:
    """A pipeline's network, and what stands in its place.

    Args:
        pipeline: whose network is the teacher.
        accelerator: whose device and processes.

    Attributes:
        own: the pipeline's own network, whole; students are copies of it.
    """

    def __init__(self, pipeline: Pipeline, accelerator: Accelerator) -> None:
        self.own: DiffusersDenoiser = pipeline.denoiser
        self._pipeline = pipeline
        self._accelerator = accelerator

    def place(self, stage: Stage) -> None:
        """Moves the pipeline to the device; with FSDP2 its network stays behind.

        In its place the pipeline then has a copy of which each process holds a part, so that no device holds the
        whole. Previews and evaluations are drawn with it, too.
        """
        self.restore()
        diffusers, device = self._pipeline.diffusers, self._accelerator.device
        if stage.trainer.parallel == "ddp":
            diffusers.to(device)
            return
        for name, part in diffusers.components.items():
            if isinstance(part, nn.Module) and name != self._pipeline.adapter.network:
                part.to(device)
        self._put(self._frozen_copy(stage))

    def backbone(self, stage: Stage) -> DiffusersDenoiser:
        """The teacher as the discriminator sees it: the pipeline's network of now, or a copy in bfloat16."""
        teacher = self._pipeline.denoiser
        if stage.trainer.mixed_precision == "bf16":
            teacher = self._frozen_copy(stage, torch.bfloat16)
        if (
            stage.trainer.gradient_checkpointing
        ):  # the student's gradient goes through the frozen one
            checkpoint_gradients(teacher.module)
        return teacher

    def restore(self) -> None:
        """Gives the pipeline its own network again."""
        if self._pipeline.denoiser is not self.own:
            self._put(self.own)

    def _put(self, denoiser: DiffusersDenoiser) -> None:
        self._pipeline.denoiser = denoiser
        setattr(self._pipeline.diffusers, self._pipeline.adapter.network, denoiser.module)

    def _frozen_copy(self, stage: Stage, dtype: torch.dtype | None = None) -> DiffusersDenoiser:
        copied = base_copy(self.own)
        if dtype is not None:
            copied.module.to(dtype)
        parallel, taps = stage.trainer.parallel, stage.method.taps
        prepare_frozen(frozen(copied.module), self._accelerator, parallel, taps)
        return copied
