"""scikit-learn's digits at 16x16 pixels, by class, as EDM trains a network: `benchmarks/edm_digits.py` distils it.

Karras et al. 2022, table 1: ln sigma is normal(-1.2, 1.2^2), and the denoiser D of the picture x0 learns from

    (1 / sigma^2 + 1 / sigma_data^2) (D(x0 + sigma eps, sigma) - x0)^2

with an average of the weights. Not one of the five of `benchmarks.teachers`. The pictures are those of `digits`,
enlarged (bicubic); the same 1197 are trained on and the same 600 held out. They are read by the same classifier,
trained at this size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline, EDMEulerScheduler, UNet2DModel
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.teachers.base import Quality, Teacher, Trained, shuffled
from benchmarks.teachers.digits import (
    HELD_OUT,
    digits,
    loaded_reader,
    measured_by,
    trained_reader,
)
from nitrodistill.models.preconditioning import EDMPreconditioning
from nitrodistill.types import expand
from tools.toy.loop import LoopConfig, build, fit

SIDE, CLASSES = 16, 10
STEPS = 1600


@cache
def large_digits() -> tuple[Tensor, Tensor]:
    """Pictures `(1797, 1, 16, 16)` in [-1, 1] and what they show; the first `HELD_OUT` are held out."""
    images, labels = digits()
    return interpolate(images, (SIDE, SIDE), mode="bicubic").clamp(-1, 1), labels


class EDMDigits(Teacher):
    """The teacher of EDM's kind."""

    name = "digits-edm"
    guidance = 1.0
    num_inference_steps = 40

    def prompts(self) -> list[str]:
        """The classes' numbers."""
        return shuffled([str(label) for label in range(CLASSES)])

    def training_set(self, count: int, seed: int) -> Tensor:
        """All but the held-out ones."""
        return large_digits()[0][HELD_OUT:][:count]

    def untrained(self) -> Any:
        """A UNet of three resolutions with EDM's noise levels."""
        network: Any = build(make_unet, 0, self.name)
        scheduler: Any = EDMEulerScheduler()
        return ConsistencyModelPipeline(network, scheduler)

    def train(self, folder: Path, share: float = 1.0) -> Trained:
        """The classifier, then the UNet."""
        pipe = self.untrained()
        images, labels = (part[HELD_OUT:] for part in large_digits())
        preconditioning = EDMPreconditioning(pipe.scheduler.config.sigma_data)

        def loss(unet: UNet2DModel, size: int, generator: torch.Generator) -> Tensor:
            pick = torch.randint(len(images), (size,), generator=generator)
            x0, eps = images[pick], torch.randn(images[pick].shape, generator=generator)
            sigma = torch.exp(1.2 * torch.randn(size, generator=generator) - 1.2)
            x_t = x0 + expand(sigma, x0) * eps
            shown, c_noise = preconditioning.input(x_t, sigma)
            raw = unet(shown, c_noise, class_labels=labels[pick], return_dict=False)[0]
            error = (preconditioning.denoised(raw, x_t, sigma) - x0).square().flatten(1).mean(1)
            return ((sigma**-2 + preconditioning.sigma_data**-2) * error).mean()

        reader = trained_reader(images, labels, folder, share)
        steps = max(1, round(share * STEPS))
        config = LoopConfig("unet", steps, 32, 2e-3, flat=0.4, ema_decay=0.995)
        pipe.register_modules(unet=fit(pipe.unet, loss, config, folder))
        return Trained(pipe, reader)

    def quality(self, reader: Path | None, seed: int) -> Quality:
        """The classifier's features and verdicts."""
        network = loaded_reader(reader, SIDE)

        def aligned(images: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
            asked = torch.tensor([int(text) for text in texts])
            return {"class": network(images).argmax(1) == asked}

        return measured_by(network, large_digits()[0], aligned)


def make_unet() -> UNet2DModel:
    """A UNet on 16x16 pixels and ten classes."""
    return UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=8,
        num_class_embeds=CLASSES,
    )
