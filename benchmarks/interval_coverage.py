"""How often the intervals of an evaluation hold what they promise to hold in 95 of 100 evaluations.

    python benchmarks/interval_coverage.py [--trials 400] [--sizes 24 60 128 256 1024] [--processes 1]

Draws what the meters keep (numbers of each picture, features, latents) from known distributions, hands it to the
`Scorer` of an evaluation, and counts the trials whose interval holds the mean of the same number over all trials:
what an evaluation of that many pictures comes to on average. Three cases:

    equal      the student has its teacher's distribution, and follows its noise in part
    different  its features are shifted and narrower, its numbers larger
    skewed     numbers log-normal, features exponential, which no picture's are worse than here, and different

Writes benchmarks/results/interval_coverage.json and the table in docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import defaultdict
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from nitrodistill.evaluation import EvaluateConfig, Extractor, info
from nitrodistill.evaluation.config import SamplePlan
from nitrodistill.evaluation.intervals import Resampler
from nitrodistill.evaluation.meters import Meter
from nitrodistill.evaluation.scores import Scorer

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "interval_coverage.json"
DOCS = ROOT / "docs" / "evaluation.md"
CASES = ("equal", "different", "skewed")
SIZES = (24, 60, 128, 256, 1024)
EXTRACTORS = (
    Extractor("plain", torch.flatten),
    Extractor("unit", torch.flatten, kernel="gaussian"),
)
FEATURES = {"plain": 8, "unit": 16, "texture": 32, "colour": 6, "latents": 16}
RATIOS = ("edge", "gradient_energy", "high_frequency", "nearest")
MEANS = ("clip_score", "latent_distance", "pixel_distance", "ssim", "lpips")
SHARES = {"alignment": 0.8, "alignment@hard": 0.5, "alignment@easy": 0.97}


def draw_trial(case: str, size: int, seed: int) -> tuple[Meter, Meter, Meter]:
    """What was measured of student, teacher and real pictures in one evaluation."""
    generator = torch.Generator().manual_seed(seed)
    samples = SamplePlan.of(
        [str(i) for i in range(size)], EvaluateConfig(num_samples=size, seed=seed)
    )
    shift, scale = (0.0, 1.0) if case == "equal" else (0.4, 0.8)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def shaped(x: Tensor) -> Tensor:
        """Standard normal numbers as features."""
        return -torch.special.ndtr(-x).log() - 1 if case == "skewed" else x

    found = []
    common = {name: normal(size, width) for name, width in FEATURES.items()}
    shared = {name: normal(size) for name in RATIOS}
    for model in ("student", "teacher", "real"):
        meter = Meter(len(samples.prompts), EXTRACTORS)
        moved, spread = (shift, scale) if model == "student" else (0.0, 1.0)
        for name, width in FEATURES.items():
            own = normal(size, width)
            values = own if model == "real" else 0.7 * common[name] + 0.51**0.5 * own
            values = spread * shaped(values) + moved
            if name == "latents":
                meter.latent_shape = torch.Size([width, 1, 1])
                meter.latents.update(values, samples.places)
                meter.spreads[0].update(samples.ids, values)
            elif name in meter.features:
                meter.features[name].update(values, samples.places)
            else:
                getattr(meter, name).update(values, samples.places)
        sigma = 1.0 if case == "skewed" else 0.3
        columns = {
            name: (sigma * (0.7 * shared[name] + 0.51**0.5 * normal(size)) + moved).exp()
            for name in RATIOS
        }
        if model == "student":
            columns |= {name: (sigma * normal(size)).exp() for name in MEANS}
            uniform = torch.rand(len(SHARES), size, generator=generator, dtype=torch.float64)
            columns |= {
                n: (u < p).double() for (n, p), u in zip(SHARES.items(), uniform, strict=True)
            }
        meter.columns.update(columns, samples.places)
        found.append(meter)
    return found[0], found[1], found[2]


def trial(case: str, size: int, seed: int) -> dict[str, tuple[float, float, float]]:
    """Name -> value and interval of one evaluation."""
    student, teacher, real = draw_trial(case, size, seed)
    scorer = Scorer(EXTRACTORS, Resampler(seed=seed))
    metrics = scorer.metrics(student, teacher, real, {})
    return {
        name: (m.value, m.low, m.high)
        for name, m in metrics.items()
        if m.low is not None and m.high is not None
    }


def coverage(case: str, size: int, trials: int, first: int = 0) -> dict[str, float]:
    """The share of intervals that hold the mean of their number, of each metric."""
    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for seed in range(first, first + trials):
        for name, numbers in trial(case, size, seed).items():
            found[name].append(numbers)
    shares = {}
    for name, rows in found.items():
        value, low, high = torch.tensor(rows, dtype=torch.float64).T
        truth = value.mean()
        shares[name] = float(((low <= truth) & (truth <= high)).double().mean())
    return shares


def table(found: Mapping[str, Mapping[str, float]], trials: Mapping[int, int]) -> str:
    """Markdown: a row a metric, a column a size; the worst case of each."""
    sizes = list(trials)
    lines = [f"| number | {' | '.join(map(str, sizes))} |", "|---|" + "---:|" * len(sizes)]
    names = list(dict.fromkeys(name for shares in found.values() for name in shares))
    for name in names:
        cells = []
        for size in sizes:
            worst = min((found[f"{case} {size}"][name], case) for case in CASES)
            cells.append(f"{100 * worst[0]:.0f} ({worst[1]})")
        lines.append(f"| {info(name).label} | {' | '.join(cells)} |")
    counts = " | ".join(str(count) for count in trials.values())
    return "\n".join([*lines, f"| trials of each case | {counts} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    trials = dict.fromkeys(given.sizes, given.trials)
    jobs = [(case, n, trials[n]) for n, case in product(sorted(given.sizes, reverse=True), CASES)]
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        shares = pool.starmap(coverage, jobs, chunksize=1)
    found = {f"{case} {size}": s for (case, size, _), s in zip(jobs, shares, strict=True)}
    text = table(found, trials)
    print(text)
    about = {"trials": trials, "torch": torch.__version__, "coverage": found}
    RESULT.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    begin, end = "<!-- coverage -->", "<!-- end of coverage -->"
    page = DOCS.read_text(encoding="utf-8")
    before, rest = page.split(begin)
    whole = f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"
    DOCS.write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    main()
