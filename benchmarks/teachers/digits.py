"""scikit-learn's digits: 1797 grey pictures of 8x8, unconditional, a UNet on pixels, v-prediction, zero SNR.

A fixed 1197 are trained on; the other 600 are held out. The pictures are read by a small classifier that was
trained on the first, blurred and noisy ones among them; its 32 penultimate activations are the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.teachers.base import Quality, Teacher, Trained
from nitrodistill.evaluation import Extractor
from nitrodistill.evaluation.alignment import Alignment
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.prediction import prediction_target
from nitrodistill.schedules import DiscreteSchedule
from tools.toy.loop import LoopConfig, build, fit
from tools.toy.train_oracle import degrade
from tools.toy.train_teacher import make_scheduler, random_timesteps

HELD_OUT = 600
READER_STEPS, STEPS = 400, 1800


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Pictures `(1797, 1, 8, 8)` in [-1, 1] and what they show `(1797,)`, in a fixed random order."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return images[order], torch.tensor(found.target, dtype=torch.int64)[order]


class DigitReader(nn.Module):
    """Classifier with 32 features.

    Args:
        side: of the pictures, in pixels.
    """

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        self.body: nn.Module = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GroupNorm(8, 64),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64 * (side // 2) ** 2, 32),
            nn.SiLU(),
        )
        self.head: nn.Module = nn.Linear(32, 10)

    def features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)`, of which the first channel is looked at, to `(B, 32)`."""
        return self.body(images[:, :1])

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, 10)`."""
        return self.head(self.features(images))


def trained_reader(images: Tensor, labels: Tensor, folder: Path, share: float) -> nn.Module:
    """A classifier of these pictures; goes on with what `folder` holds."""

    def loss(reader: DigitReader, size: int, generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (size,), generator=generator)
        return cross_entropy(reader(degrade(images[pick], generator)), labels[pick])

    config = LoopConfig("reader", max(1, round(share * READER_STEPS)), 64, 2e-3)
    return fit(build(partial(DigitReader, images.shape[-1]), 0, "reader"), loss, config, folder)


def loaded_reader(reader: Path | None, side: int = 8) -> DigitReader:
    """The classifier, frozen; without a file an untrained one."""
    network = DigitReader(side)
    if reader is not None:
        network.load_state_dict(load_file(reader))
    return network.eval().requires_grad_(False)


def measured_by(
    network: DigitReader, images: Tensor, alignment: Alignment | None = None
) -> Quality:
    """The classifier's features; the held-out ones of all pictures, 300 to measure by and 300 for the floor."""
    rest = images[:HELD_OUT].repeat(1, 3, 1, 1)

    def real(texts: Sequence[str], index: Tensor) -> Tensor:
        return rest[index]

    features = Extractor("reader", network.features, fingerprint=fingerprint(network))
    return Quality(features, real, alignment, HELD_OUT // 2)


class Digits(Teacher):
    """The digits' teacher."""

    name = "digits"
    guidance = 1.0

    def prompts(self) -> list[str]:
        """The empty prompt alone."""
        return [""]

    def training_set(self, count: int, seed: int) -> Tensor:
        """All but the held-out ones."""
        return digits()[0][HELD_OUT:][:count]

    def untrained(self) -> Any:
        """DDIM on a UNet of two resolutions."""
        scheduler = DDIMScheduler.from_config(make_scheduler().config)
        return DDIMPipeline(build(make_unet, 0, "digits"), scheduler)  # pyright: ignore

    def train(self, folder: Path, share: float = 1.0) -> Trained:
        """The classifier, then the UNet."""
        pipe = self.untrained()
        images, labels = (part[HELD_OUT:] for part in digits())
        schedule = DiscreteSchedule.from_scheduler(pipe.scheduler)

        def loss(unet: UNet2DModel, size: int, generator: torch.Generator) -> Tensor:
            x0 = images[torch.randint(len(images), (size,), generator=generator)]
            eps = torch.randn(x0.shape, generator=generator)
            t = random_timesteps(size, generator)
            scales = schedule(t)
            found = unet(scales.mix(x0, eps), t, return_dict=False)[0]
            return mse_loss(found, prediction_target(x0, eps, scales, "v_prediction"))

        reader = trained_reader(images, labels, folder, share)
        steps = max(1, round(share * STEPS))
        config = LoopConfig("unet", steps, 32, 1e-3, flat=0.4, ema_decay=0.995)
        pipe.register_modules(unet=fit(pipe.unet, loss, config, folder))
        return Trained(pipe, reader)

    def quality(self, reader: Path | None, seed: int) -> Quality:
        """The classifier's features."""
        return measured_by(loaded_reader(reader), digits()[0])


def make_unet() -> UNet2DModel:
    """A UNet on 8x8 pixels."""
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(24, 48),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=12,
        norm_num_groups=8,
    )
