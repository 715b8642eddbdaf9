"""What each metric is called, which group it belongs to, and which way is better.

A metric's name is `base` or `base@extractor`, such as `fd_teacher` and `fd_teacher@clip`: without a suffix it was
computed on the first feature extractor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Group = Literal["text", "distribution", "sharpness", "diversity", "paired", "cost"]
"""Tables show the groups in this order."""

Best = Literal["high", "low", "one", "above_one", "none"]
"""Which values are good: high, low, of ratios to the teacher those near 1 or from 1 up; none ranks nothing."""


@dataclass(frozen=True)
class MetricInfo:
    """A metric in words.

    Attributes:
        label: what tables call it.
        group: what kind of question it answers.
        best: which values are good.
        about: one sentence for people.
        floor: what its floor is; of a cost, why it has none.

    Example:
        >>> nd.evaluation.info("alignment").label
        'alignment'
    """

    label: str
    group: Group
    best: Best
    about: str
    floor: str = ""


_REAL = "real pictures against other real pictures of the same prompts"
_TEACHER = "the teacher against itself with other noise"
_SETS = "the same for two sets of the reference"
_TIMED = "none: its interval is the fastest and the slowest run, and the teacher took turns with it"
_COUNTED = "none: it is counted, and the same each time"

# fmt: off
CATALOGUE: dict[str, MetricInfo] = {
    "alignment": MetricInfo("alignment", "text", "high",
        "share of pictures that show all that their prompt says",
        "the ceiling: real pictures of the same prompts; without them the teacher"),
    "clip_score": MetricInfo("CLIP score", "text", "high",
        "100 times the cosine of CLIP's embeddings of picture and prompt, not below 0",
        "the teacher's pictures with other samples' prompts"),
    "fd_real": MetricInfo("FD to real", "distribution", "low", "Fréchet distance to real pictures", _REAL),
    "fd_teacher": MetricInfo("FD to teacher", "distribution", "low",
        "Fréchet distance to the teacher's pictures", _TEACHER),
    "fd_latents": MetricInfo("FD on latents", "distribution", "low",
        "Fréchet distance to the teacher's latents", _TEACHER),
    "fd_texture": MetricInfo("texture-FD", "distribution", "low",
        "Fréchet distance to the teacher's pictures on responses of random zero-mean filters", _TEACHER),
    "fd_colour": MetricInfo("colour-FD", "distribution", "low",
        "Fréchet distance to the teacher's pictures on the channels' means and standard deviations", _TEACHER),
    "kid_real": MetricInfo("KID to real", "distribution", "low",
        "squared maximum mean discrepancy to real pictures, cubic kernel, unbiased, times 1000", _REAL),
    "kid_teacher": MetricInfo("KID to teacher", "distribution", "low",
        "squared maximum mean discrepancy to the teacher's pictures, cubic kernel, unbiased, times 1000",
        _TEACHER),
    "cmmd_real": MetricInfo("CMMD to real", "distribution", "low",
        "squared maximum mean discrepancy to real pictures, Gaussian kernel on unit vectors, times 1000", _REAL),
    "cmmd_teacher": MetricInfo("CMMD to teacher", "distribution", "low",
        "squared maximum mean discrepancy to the teacher's pictures, Gaussian kernel on unit vectors, times 1000",
        _TEACHER),
    "precision": MetricInfo("precision", "distribution", "high",
        "share of pictures inside of the reference's manifold", _SETS),
    "recall": MetricInfo("recall", "distribution", "high",
        "share of the reference inside of the model's manifold", _SETS),
    "density": MetricInfo("density", "distribution", "high",
        "how many of the reference's balls a picture lies in, over the number of neighbours", _SETS),
    "coverage": MetricInfo("coverage", "distribution", "high",
        "share of the reference with a picture in its ball", _SETS),
    "edge_ratio": MetricInfo("edge ratio", "sharpness", "one",
        "98th percentile of the gradient magnitude over the teacher's; below 1 is blur", _TEACHER),
    "gradient_energy_ratio": MetricInfo("gradient energy ratio", "sharpness", "one",
        "mean squared gradient over the teacher's; below 1 is blur", _TEACHER),
    "high_frequency_ratio": MetricInfo("high-frequency ratio", "sharpness", "one",
        "energy above 0.25 cycles per pixel over the teacher's; below 1 is blur, above 1 noise", _TEACHER),
    "diversity": MetricInfo("diversity", "diversity", "one",
        "spread of latents within a prompt over the teacher's; 0 is one picture for every noise", _TEACHER),
    "nearest_ratio": MetricInfo("nearest-pair ratio", "diversity", "above_one",
        "median distance to the nearest training pair over the teacher's; below 1 is memorisation, "
        "above 1 less of it than the teacher's own samples show", _TEACHER),
    "copied": MetricInfo("copied", "diversity", "low",
        "share of samples nearer to a training pair than all but one in a hundred of the teacher's",
        "0.01 by its definition; of a fresh floor, the teacher with other noise"),
    "latent_distance": MetricInfo("latent distance", "paired", "low",
        "RMS difference to the teacher's latents at equal noise", _TEACHER),
    "pixel_distance": MetricInfo("pixel distance", "paired", "low",
        "RMS difference to the teacher's picture at equal noise, pictures in [-1, 1]", _TEACHER),
    "ssim": MetricInfo("SSIM", "paired", "high",
        "structural similarity to the teacher's picture at equal noise", _TEACHER),
    "lpips": MetricInfo("LPIPS", "paired", "low",
        "perceptual distance to the teacher's picture at equal noise", _TEACHER),
    "denoise_ms": MetricInfo("denoising, ms/image", "cost", "low",
        "wall-clock time for the latent alone, in batches", _TIMED),
    "pipeline_ms": MetricInfo("pipeline, ms/image", "cost", "low",
        "wall-clock time from prompt to picture, in batches", _TIMED),
    "latency_ms": MetricInfo("latency, ms", "cost", "low",
        "wall-clock time from one prompt to its picture, alone", _TIMED),
    "gflops": MetricInfo("GFLOPs/image", "cost", "low",
        "floating-point operations from prompt to picture", _COUNTED),
    "peak_mb": MetricInfo("peak memory, MB", "cost", "low",
        "most memory from prompts to pictures, in a batch, above what was held before", _COUNTED),
    "weights_mb": MetricInfo("weights, MB", "cost", "low", "memory of the denoiser's parameters", _COUNTED),
}
# fmt: on


def info(name: str) -> MetricInfo:
    """What a metric is; the label of `base@extractor` names the extractor. Unknown names speak for themselves.

    Example:
        >>> nd.evaluation.info("alignment").best
        'high'
    """
    base, _, extractor = name.partition("@")
    known = CATALOGUE.get(base, MetricInfo(base, "distribution", "none", ""))
    return replace(known, label=f"{known.label} ({extractor})") if extractor else known


def ordered(names: Iterable[str]) -> list[str]:
    """Names in the catalogue's order, those of further extractors behind their base, the unknown last."""
    rank = {name: i for i, name in enumerate(CATALOGUE)}
    unique = dict.fromkeys(names)
    return sorted(unique, key=lambda name: (rank.get(name.partition("@")[0], len(rank)), name))
