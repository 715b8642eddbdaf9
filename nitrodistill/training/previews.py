"""Previews: fixed prompts and seeds, drawn by the teacher, the student and its moving average."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nitrodistill.evaluation import Pictures, draw_grid
from nitrodistill.method import Draws
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.types import Denoiser

if TYPE_CHECKING:
    from nitrodistill.training.trainer import Trainer


class Previewer:
    """Draws a grid: a column each for teacher, student and average, a row a prompt, the same noise.

    Args:
        pipeline: the teacher, with its text encoder and VAE.
        prompts: one a column.
        plan: the student's steps.
        num_inference_steps: of the teacher's sampler.
        guidance: the teacher's scale.
        seed: of the noise.

    Example:
        >>> plan = nd.StepPlan.from_schedule(teacher.denoiser.schedule)
        >>> previewer = nd.training.Previewer(teacher, prompts, plan, num_inference_steps=2, guidance=3.0)
    """

    def __init__(
        self,
        pipeline: Pipeline,
        prompts: Sequence[str],
        plan: StepPlan,
        num_inference_steps: int,
        guidance: float,
        seed: int = 0,
    ) -> None:
        self.pipeline = pipeline
        self.prompts: tuple[str, ...] = tuple(prompts)
        self.plan = plan
        self.guidance = guidance
        self.teacher_plan: StepPlan = StepPlan.from_schedule(
            pipeline.denoiser.schedule, num_inference_steps
        )
        self._draws = Draws(seed, 0, torch.arange(len(self.prompts)), purpose="previews")

    def write(self, trainer: Trainer, student: Denoiser, file: Path) -> None:
        """Writes the grid as a PNG, and passes it to tensorboard, wandb, swanlab, aim, clearml or mlflow.

        All processes must call it; the main one writes.

        Args:
            trainer: whose moving average is drawn.
            student: the denoiser that it trains.
            file: where; its folder is made.
        """
        images = {"teacher": self._teacher, "student": self._draw(student, self.plan)}
        if "student" in trainer.averages:
            with trainer.averaged("student"):
                images["average"] = self._draw(student, self.plan)
        if not trainer.accelerator.is_main_process:
            return
        draw_grid(Pictures(self.prompts, images), file)
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        for tracker in trainer.accelerator.trackers:
            _show(tracker, file, pixels, trainer.step)

    @cached_property
    def _teacher(self) -> Tensor:
        return self._draw(self.pipeline.guided(self.guidance), self.teacher_plan)

    @torch.no_grad()
    def _draw(self, denoiser: Denoiser, plan: StepPlan) -> Tensor:
        device = self.pipeline.device
        shape = self.pipeline.latent_shape
        condition = self.pipeline.encode_prompt(self.prompts)
        x0 = sample(
            denoiser,
            plan,
            self._draws.normal("noise", shape, device),
            condition,
            renoise=lambda step: self._draws.normal(f"renoise {step}", shape, device),
        )
        return self.pipeline.decode(x0).cpu()


def _show(tracker: Any, file: Path, pixels: np.ndarray, step: int) -> None:
    """Passes a picture, `(H, W, 3)` in uint8, to a tracker, in the form that each of Accelerate's wants it.

    By name, since an older Accelerate lacks some of the classes.
    """
    if tracker.name == "tensorboard":
        tracker.log_images({"previews": pixels[None]}, step=step, dataformats="NHWC")
    elif tracker.name in ("wandb", "swanlab"):
        tracker.log_images({"previews": [pixels]}, step=step)
    elif tracker.name in ("aim", "clearml"):
        tracker.log_images({"previews": pixels}, step=step)
    elif tracker.name == "mlflow":
        tracker.log_artifact(str(file), "previews")
