"""LatentLPIPS on the embedded teacher's VAE: the fit that is distributed, and what ranks pairs as its pictures do.

    python -m benchmarks.latent_lpips --fit DIR     fits and prints rank correlations on held-out pairs
    python -m benchmarks.latent_lpips --features    ranks held-out pairs by features of the teacher and the decoder
    python -m benchmarks.latent_lpips --speed       the published architecture against a replica with batch norm

The distance of the pictures is LPIPS' formula on the oracle's feature maps. The last two write their tables into
docs/losses.md, and `--speed` what it measured into results/latent_lpips_speed.json.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks._measure import (
    Spread,
    environment,
    interleave,
    markdown_table,
    peak_mib,
    replace_between_markers,
    write_json,
)
from nitrodistill import toy
from nitrodistill.losses import DecodedLoss, LatentLPIPSLoss, LPIPSLoss
from nitrodistill.losses.latent_trunk import fitted_trunk, read_latent_trunk
from nitrodistill.losses.lpips import FeatureTrunk, lpips_distance
from nitrodistill.method import Draws
from nitrodistill.models import DecoderFeatures, FeatureTaps, Pipeline
from nitrodistill.toy import scenes
from nitrodistill.training.latent_lpips import (
    FitConfig,
    fit_latent_lpips,
    make_pairs,
    rank_correlation,
)

DOCS = Path(__file__).parents[1] / "docs" / "losses.md"
FLOORS = {"`LatentLPIPSLoss`": 1.15, "with `target_features`": 1.4}
"""Times the replica's speed that we demand."""
FRACTIONS = (0.02, 0.1, 0.25, 0.5, 0.75)


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


def features(count: int) -> None:
    """Spearman's correlation with the distance of the pictures, by what sees the latents."""
    pipeline = Pipeline.from_diffusers(toy.load_pipeline())
    teacher, empty = pipeline.denoiser, pipeline.null_condition()
    decoded = DecodedLoss(LPIPSLoss(toy.oracle_maps), pipeline.decode, None)
    drawn = Draws(0, 0, torch.arange(count), purpose="features")
    x, y = make_pairs(toy_latents(pipeline, 512, 1), drawn)
    noise = drawn.normal("noise", x.shape[1:])
    chunks = torch.arange(count).split(64)

    def ranks(distance: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
        with torch.no_grad():
            values = torch.cat([distance(x[rows], y[rows], rows) for rows in chunks])
        return rank_correlation(values, truth)

    def of(trunk: FeatureTrunk) -> float:
        loss = LatentLPIPSLoss(trunk)
        return ranks(lambda a, b, rows: loss.per_sample(a, b))

    def of_teacher(u: float, noised: bool) -> list[float]:
        """By each block alone, and by all together."""

        def distances(rows: Tensor) -> Tensor:
            t = teacher.schedule.timestep(torch.full((len(rows),), u))
            trunk, sides = taps.bind(t, empty.index([0] * len(rows))), [x[rows], y[rows]]
            if noised:
                sides = [teacher.schedule(t).mix(side, noise[rows]) for side in sides]
            each = [
                lpips_distance([a], [b], [a.new_ones(a.shape[1])], eps=1e-8)
                for a, b in zip(*map(trunk, sides), strict=True)
            ]
            return torch.stack([*each, torch.stack(each).sum(0)])

        with torch.no_grad():
            values = torch.cat([distances(rows) for rows in chunks], dim=1)
        return [rank_correlation(one, truth) for one in values]

    with torch.no_grad():
        truth = torch.cat([decoded.per_sample(x[rows], y[rows]) for rows in chunks])
    blocks = list(teacher.adapter.blocks(teacher.network))
    taps, lines = FeatureTaps(teacher, blocks), []
    for noised in (False, True):
        found = zip(*(of_teacher(u, noised) for u in FRACTIONS), strict=True)
        for name, values in zip([*blocks, "all of them"], found, strict=True):
            about = f"teacher, {name}{', noised' if noised else ''}"
            lines.append([about, *(f"{value:.3f}" for value in values)])
    torch.manual_seed(0)
    random = fitted_trunk(x.shape[1], [(32, 32), (64, 64)])
    vae = pipeline.diffusers.vae
    fitted = LatentLPIPSLoss(weights="toy")
    others = {
        '`weights="toy"`': ranks(lambda a, b, rows: fitted.per_sample(a, b)),
        "the decoder's `mid_block`": of(DecoderFeatures(vae, ("mid_block",))),
        "the decoder's `mid_block`, `up_blocks.0`": of(DecoderFeatures(vae)),
        "a trunk with random weights": of(random),
        "mean squared difference": ranks(lambda a, b, rows: (a - b).square().mean((1, 2, 3))),
    }
    lines += [[name, f"{value:.3f}", *[""] * 4] for name, value in others.items()]
    text = markdown_table(["features", *[f"u = {u:g}" for u in FRACTIONS]], lines)
    text += f"\n\n{count} pairs. Made by `python -m benchmarks.latent_lpips --features`."
    print(text)
    replace_between_markers(DOCS, "latent-lpips-features", text)


@dataclass(frozen=True)
class SpeedRow:
    """One competitor's result; `speedup` is the replica's time over this one's, round by round."""

    name: str
    milliseconds: Spread
    speedup: Spread
    peak_mib: float | None


def competitors() -> dict[str, Callable[[], Tensor]]:
    """Losses of one pair of latents, `(2, 4, 32, 32)`: of a replica with batch norm, and ours."""
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

    return {
        "replica": replica,
        "`LatentLPIPSLoss`": lambda: loss(x, y),
        "with `target_features`": lambda: loss(x, target),
    }


def speed(rounds: int) -> None:
    """Interleaved forward and backward passes, the medians of the ratios; into results and docs."""
    losses = competitors()
    calls = {n: lambda loss=loss: loss().backward() for n, loss in losses.items()}
    times = interleave(calls, seconds=0, least=rounds)
    theirs = times["replica"]
    rows = [
        SpeedRow(name, own.spread, theirs.speedup_of(own), peak_mib(calls[name]))
        for name, own in times.items()
    ]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        calls["replica"]()
    spent = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    share = sum(v for key, v in spent.items() if "convolution" in key) / sum(spent.values())
    about = {"rounds": rounds, "load_average": os.getloadavg()[0], "floors": FLOORS}
    write_json("latent_lpips_speed", rows, {**about, "replicas_convolutions": share})
    known = environment()
    text = markdown_table(["", "ms", "times the replica's speed", "MiB"], map(cells, rows)) + (
        f"\n\nConvolutions are {share:.0%} of the replica's time. "
        f"Forward and backward, 2x4x32x32, {rounds} rounds, median (20-80 %); one thread of {known['cpu']} "
        f"(torch {known['torch']}), shared with other work. Made by `python -m benchmarks.latent_lpips --speed`."
    )
    print(text)
    replace_between_markers(DOCS, "latent-lpips-speed", text)


def cells(row: SpeedRow) -> list[str]:
    """A line of the table."""
    times, memory = row.speedup, row.peak_mib
    spread = f"{times.median:.2f} ({times.low:.2f} to {times.high:.2f})"
    shown = "-" if memory is None else f"{memory:.0f}"
    return [row.name, f"{row.milliseconds.median:.0f}", spread, shown]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fit", type=Path)
    parser.add_argument("--features", action="store_true")
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.fit:
        fit(given.fit)
    if given.features:
        features(given.pairs)
    if given.speed:
        speed(given.rounds)
