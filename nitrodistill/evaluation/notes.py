"""What an evaluation could not measure, and why: no number is missing without a word."""

from __future__ import annotations

from collections.abc import Mapping

from nitrodistill.evaluation.catalogue import info, ordered
from nitrodistill.evaluation.config import SamplePlan
from nitrodistill.evaluation.manifold import MIN_SAMPLES
from nitrodistill.evaluation.paired import SSIM_WINDOW
from nitrodistill.evaluation.result import Metric

MANIFOLD = ("precision", "recall", "density", "coverage")
RATIOS = ("edge_ratio", "gradient_energy_ratio", "high_frequency_ratio")


def left_out(
    models: Mapping[str, Mapping[str, Metric]],
    samples: SamplePlan,
    *,
    side: int,
    same_latents: bool,
    memorisation: bool,
    num_real: int | None = None,
) -> tuple[str, ...]:
    """A sentence for each thing that is missing.

    Args:
        models: what was found.
        samples: which prompt and which half each belongs to.
        side: of the pictures, in pixels: the shorter one.
        same_latents: whether the student's latents have the shape of the teacher's.
        memorisation: whether training latents were given.
        num_real: how many real pictures there are; None without any.
    """
    student, found = models["student"], []
    if "precision" not in student:
        fewest = min(len(samples.ids), num_real or len(samples.ids))
        found.append(
            f"Precision, recall, density and coverage are left out: there are {fewest} pictures; "
            f"they need at least {MIN_SAMPLES}."
        )
    found += [
        f"{_labels([name])} is left out: the teacher's pictures have none of it to compare with."
        for name in RATIOS
        if name not in student
    ]
    if not same_latents:
        found.append(
            "Latent distance, FD on latents, diversity and memorisation are left out: the student's latents "
            "have another shape than the teacher's. So has its noise: paired distances are those of unrelated "
            "pictures."
        )
    else:
        if "diversity" not in student:
            why = (
                "the teacher's pictures of a prompt are all alike"
                if samples.has_halves
                else "no prompt has two pictures; give more samples_per_prompt"
            )
            found.append(f"Diversity is left out: {why}.")
        if memorisation and "nearest_ratio" not in student:
            found.append(
                "Memorisation is left out: the teacher's own latents are training latents."
            )
    if "ssim" not in student:
        found.append(
            f"SSIM is left out: the pictures are {side} pixels, less than its window of {SSIM_WINDOW}."
        )
    texts = [name for name in ("alignment", "clip_score") if name in student]
    if "real" in models and any(name not in models["real"] for name in texts):
        found.append(
            f"The real pictures have no {_labels(texts, small=True)}: they belong to no prompt."
        )
    return (*found, *_floors(models, samples))


def _floors(models: Mapping[str, Mapping[str, Metric]], samples: SamplePlan) -> list[str]:
    bare: dict[str, list[str]] = {}
    for name in ordered(models["student"]):
        if info(name).group != "cost" and models["student"][name].floor is None:
            bare.setdefault(_why_bare(name, samples, "real" in models), []).append(name)
    return [f"No floor for {_labels(names, small=True)}: {why}." for why, names in bare.items()]


def _why_bare(name: str, samples: SamplePlan, has_real: bool) -> str:
    base = name.partition("@")[0]
    if base == "clip_score":
        return "it takes another prompt, and there is one alone"
    if base.endswith("_real") or (base in MANIFOLD and has_real):
        return "half of the real pictures are too few"
    if not samples.has_halves:
        return "no prompt has two pictures; give more samples_per_prompt, or floor fresh"
    return "half of the teacher's pictures are too few; give more num_samples, or floor fresh"


def _labels(names: list[str], small: bool = False) -> str:
    """The metrics' labels with commas, the first letter a capital."""
    text = ", ".join(info(name).label for name in names)
    return text if small else text[0].upper() + text[1:]
