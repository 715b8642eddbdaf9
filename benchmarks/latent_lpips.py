"""LatentLPIPS on the embedded teacher's VAE: the fit that is distributed, and what ranks pairs as its pictures do.

    python benchmarks/latent_lpips.py --fit DIR     fits and prints rank correlations on held-out pairs
    python benchmarks/latent_lpips.py --speed       the published architecture against a replica with batch norm

The distance of the pictures is LPIPS' formula on the oracle's feature maps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from nitrodistill import toy
from nitrodistill.losses import DecodedLoss, LatentLPIPSLoss, LPIPSLoss
from nitrodistill.losses.latent_trunk import read_latent_trunk
from nitrodistill.models import Pipeline
from nitrodistill.toy import scenes
from nitrodistill.training.latent_lpips import FitConfig, fit_latent_lpips


def toy_latents(pipeline: Pipeline, count: int, seed: int) -> Tensor:
    """Latents of `count` random scenes."""
    generator = torch.Generator().manual_seed(seed)
    captions = scenes.captions()
    picked = torch.randint(len(captions), (count,), generator=generator).tolist()
    images = scenes.render([captions[i] for i in picked], generator)
    return pipeline.encode_image(images)


def fit(folder: Path) -> None:
    pipeline = Pipeline.from_diffusers(toy.load_pipeline())
    decoded = DecodedLoss(LPIPSLoss(toy.oracle_maps), pipeline.decode, None)
    start = time.process_time()
    latents = toy_latents(pipeline, 2048, 0)
    found = fit_latent_lpips(latents, decoded.per_sample, folder, FitConfig())
    print(f"fitted {found.correlation:.3f}, latent L2 {found.l2_correlation:.3f}, "
          f"{time.process_time() - start:.0f} CPU seconds, {found.weights.stat().st_size} bytes")  # fmt: skip


def speed(rounds: int) -> None:
    """Interleaved forward and backward passes, 2 x 4 x 32 x 32, the medians of the ratios."""
    layers, channels = nn.Sequential(), 4
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, -1, 512, 512, 512, -1):
        if width <= 0:
            layers.append(nn.MaxPool2d(2) if width else nn.Identity())
            continue
        layers.extend([nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()])
        channels = width
    layers.eval().requires_grad_(False)
    trunk, _ = read_latent_trunk({f"features.{k}": v for k, v in layers.state_dict().items()})
    loss = LatentLPIPSLoss(trunk)
    x, y = torch.randn(2, 2, 4, 32, 32).unbind()
    x.requires_grad_()
    target = loss.target_features(y)

    def replica() -> Tensor:
        total, maps = torch.zeros(()), [x, y]
        for index, layer in enumerate(layers):
            maps = [layer(m) for m in maps]
            if index in (6, 13, 23, 33, 43):
                a, b = (m / (m.square().sum(1, keepdim=True) + 1e-8).sqrt() for m in maps)
                total = total + (a - b).square().sum(1).mean()
        return total

    tasks = {"replica": replica, "ours": lambda: loss(x, y), "cached": lambda: loss(x, target)}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            start = time.process_time()
            task().backward()
            seconds[name].append(time.process_time() - start)
    for name in ("ours", "cached"):
        ratios = [a / b for a, b in zip(seconds["replica"][1:], seconds[name][1:], strict=True)]
        print(
            f"{name}: {statistics.median(ratios):.2f} times the replica's speed (torch {torch.__version__})"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fit", type=Path)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.fit:
        fit(given.fit)
    if given.speed:
        speed(given.rounds)
