"""LatentLPIPS on the embedded teacher's VAE: the fit that is distributed, and what ranks pairs as its pictures do.

    python -m benchmarks.latent_lpips --fit DIR     fits and prints rank correlations on held-out pairs
    python -m benchmarks.latent_lpips --features    ranks held-out pairs by features of the teacher and the decoder
    python -m benchmarks.latent_lpips --speed       the published architecture against a replica with batch norm

The distance of the pictures is LPIPS' formula on the oracle's feature maps. The last two write their tables into
docs/losses.md and their numbers into results/latent_lpips_features.json and latent_lpips_speed.json.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks._measure import (
    RESULTS,
    Spread,
    as_lines,
    environment,
    interleave,
    markdown_table,
    peak_mib,
    replace_between_markers,
    write_json,
)
from nitrodistill import toy
from nitrodistill.evaluation.intervals import TAIL, Resampler
from nitrodistill.losses import DecodedLoss, L2Loss, LatentLPIPSLoss, LPIPSLoss
from nitrodistill.losses.latent_trunk import fitted_trunk, read_latent_trunk
from nitrodistill.losses.lpips import lpips_distance
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
TOLD, TWO_DEPTHS = 0.1, (0.25, 0.5)
"""The timestep whose intervals the table shows, and the taps of the docs' recipe."""
FIT, REPLICATES = '`weights="toy"`', 200
Estimate = tuple[float, float, float]
"""A value and the ends of its 95 % interval."""


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


@dataclass(frozen=True)
class FeatureRow:
    """How features rank pairs: Spearman's correlation with the distance of the pictures.

    Attributes:
        features: what sees the latents.
        u: what the teacher is told; None for what is told nothing.
        correlation: of the distance that they give.
        less_the_fit: it less that of the distributed fit, on the same pairs.
    """

    features: str
    u: float | None
    correlation: Estimate
    less_the_fit: Estimate


def teachers_distances(
    pipeline: Pipeline, x: Tensor, y: Tensor, noise: Tensor
) -> Iterator[tuple[str, float, Tensor]]:
    """By each block alone and by several in equal shares, on clean latents and on noised ones."""
    teacher, empty = pipeline.denoiser, pipeline.null_condition()
    blocks = list(teacher.adapter.blocks(teacher.network))
    taps = FeatureTaps(teacher, blocks)
    groups: dict[str, Sequence[str]] = {block: [block] for block in blocks}
    groups[f"taps {list(TWO_DEPTHS)}"] = FeatureTaps(teacher, TWO_DEPTHS).names
    groups |= {"all but the first and the last": blocks[1:-1], "all of them": blocks}

    def of_blocks(u: float, rows: Tensor, noised: bool) -> Tensor:
        t = teacher.schedule.timestep(torch.full((len(rows),), u))
        trunk, sides = taps.bind(t, empty.index([0] * len(rows))), [x[rows], y[rows]]
        if noised:
            sides = [teacher.schedule(t).mix(side, noise[rows]) for side in sides]
        maps = zip(*map(trunk, sides), strict=True)
        return torch.stack(
            [lpips_distance([a], [b], [a.new_ones(a.shape[1])], eps=1e-8) for a, b in maps]
        )

    for noised in (False, True):
        for u in FRACTIONS:
            each = torch.cat([of_blocks(u, rows, noised) for rows in chunks(len(x))], dim=1)
            for name, group in groups.items():
                together = each[[blocks.index(block) for block in group]].mean(0)
                yield f"teacher, {name}{', noised' if noised else ''}", u, together


def other_distances(pipeline: Pipeline, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """By what is told no timestep."""
    vae = pipeline.diffusers.vae
    torch.manual_seed(0)
    losses = {
        FIT: LatentLPIPSLoss(weights="toy"),
        "the decoder's `mid_block`": LatentLPIPSLoss(DecoderFeatures(vae, ("mid_block",))),
        "the decoder's `mid_block`, `up_blocks.0`": LatentLPIPSLoss(DecoderFeatures(vae)),
        "a trunk with random weights": LatentLPIPSLoss(fitted_trunk(4, [(32, 32), (64, 64)])),
        "mean squared difference": L2Loss(),
    }
    return {name: by_chunks(loss.per_sample, x, y) for name, loss in losses.items()}


def chunks(count: int) -> tuple[Tensor, ...]:
    return torch.arange(count).split(64)


def by_chunks(distance: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([distance(x[rows], y[rows]) for rows in chunks(len(x))])


def estimates(values: Tensor, fitted: Tensor, truth: Tensor) -> tuple[Estimate, Estimate]:
    """The rank correlation of distances with the truth, and it less that of the fit's, on the same replicates."""
    replicates = [torch.arange(len(truth)), *Resampler(REPLICATES).rows(len(truth))]
    own, theirs = (
        torch.tensor([rank_correlation(some[rows], truth[rows]) for rows in replicates])
        for some in (values, fitted)
    )

    def estimate(found: Tensor) -> Estimate:
        low, high = found[1:].quantile(torch.tensor([TAIL, 1 - TAIL])).tolist()
        return float(found[0]), low, high

    return estimate(own), estimate(own - theirs)


@torch.no_grad()
def features(count: int) -> None:
    """What sees the latents, by how its distance ranks held-out pairs; into results and docs."""
    pipeline = Pipeline.from_diffusers(toy.load_pipeline())
    decoded = DecodedLoss(LPIPSLoss(toy.oracle_maps), pipeline.decode, None)
    drawn = Draws(0, 0, torch.arange(count), purpose="features")
    x, y = make_pairs(toy_latents(pipeline, 512, 1), drawn)
    truth = by_chunks(decoded.per_sample, x, y)
    others = other_distances(pipeline, x, y)
    found = list(teachers_distances(pipeline, x, y, drawn.normal("noise", x.shape[1:])))
    rows = [
        FeatureRow(name, u, *estimates(values, others[FIT], truth))
        for name, u, values in [*found, *((n, None, v) for n, v in others.items())]
    ]
    about = {"environment": environment(), "pairs": count, "replicates": REPLICATES}
    result = as_lines({**about, "rows": [asdict(row) for row in rows]})
    (RESULTS / "latent_lpips_features.json").write_text(result)
    text = features_table(rows) + (
        f"\n\n{count} pairs; 95 % intervals by the bootstrap over pairs ({REPLICATES} replicates), of the "
        f"difference on the same ones. Made by `python -m benchmarks.latent_lpips --features`."
    )
    print(text)
    replace_between_markers(DOCS, "latent-lpips-features", text)


def features_table(rows: Sequence[FeatureRow]) -> str:
    """A line for features: by timestep, with the interval at `TOLD`, and there less the fit."""
    lines = []
    for name in dict.fromkeys(row.features for row in rows):
        mine = {row.u: row for row in rows if row.features == name}
        told = mine.get(TOLD, mine.get(None))
        assert told is not None
        cells = [f"{mine[u].correlation[0]:.3f}" if u in mine else "" for u in FRACTIONS]
        low, high = told.correlation[1:]
        cells += [f"{told.correlation[0]:.3f} ({low:.3f} to {high:.3f})"]
        less = "{:+.3f} ({:+.3f} to {:+.3f})".format(*told.less_the_fit)
        lines.append([name, *cells, "" if name == FIT else less])
    heads = [*(f"u = {u:g}" for u in FRACTIONS), f"u = {TOLD:g} or none", "less the fit"]
    return markdown_table(["features", *heads], lines)


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
