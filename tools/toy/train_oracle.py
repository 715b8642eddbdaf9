"""Trains the toy's oracle on fresh renders, some of them blurred or noisy.

    loss = sum over the four heads of cross entropy

Half of the pictures are softened by a random amount and get noise of up to 0.15, because the oracle has to read
decoded pictures, which are softer than renders.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from nitrodistill.toy.oracle import Oracle
from tools.toy.loop import LoopConfig, build, fit
from tools.toy.train_vae import random_scenes


def train_oracle(config: LoopConfig, folder: Path, device: torch.device) -> Oracle:
    """Trains the oracle; resumes from `folder`."""
    return fit(build(Oracle, config.seed, "oracle", device=device), _loss, config, folder)


def _loss(oracle: Oracle, batch_size: int, generator: torch.Generator) -> Tensor:
    device = oracle.embedding.weight.device
    indices, images = random_scenes(batch_size, generator, device)
    logits = oracle(degrade(images, generator))
    targets = indices.to(device).unbind(1)
    return torch.stack([cross_entropy(a, b) for a, b in zip(logits, targets, strict=True)]).sum()


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    count = len(images)
    amounts = torch.rand(count, 2, generator=generator) * (
        torch.rand(count, 1, generator=generator) < 0.5
    )
    blur, noise = amounts.to(images.device)[:, :, None, None, None].unbind(1)
    soft = avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    grain = torch.randn(images.shape, generator=generator).to(images)
    return torch.lerp(images, soft, blur) + 0.15 * noise * grain
