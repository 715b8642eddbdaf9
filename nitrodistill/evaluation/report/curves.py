"""Training curves of a run's log, as small charts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import yaml

from nitrodistill.evaluation.report.svg import line_chart

ASIDE = ("grad_norm", "learning_rate", "samples_per_second", "seconds", "logit_real", "logit_fake")
"""Endings of names that say how training went, not what was learnt."""

PARTS = ("x0/std.", "x0/mean.", "/logit_gap.", "/gradient_share.")
"""In names with a number for each channel, scale or term, of which there may be many."""

OVER_CHANNELS: dict[str, tuple[str, Callable[[Sequence[float]], float]]] = {
    "x0/std (lowest channel)": ("x0/std.", min),
    "x0/std (highest channel)": ("x0/std.", max),
    "x0/mean (farthest channel)": ("x0/mean.", lambda values: max(values, key=abs)),
}
"""What is shown at once of the student's latents: name -> start of the channels' names, what is taken of them."""

FIRST = tuple(f"evaluation/{name}" for name in ("alignment", "fd_real", "fd_teacher", "diversity"))
"""Of what the trainer's evaluations found, what is shown at once."""

Chart = dict[str, Any]


def training_curves(
    logs: Sequence[Mapping[str, Any]], recipe: str | None = None
) -> tuple[list[Chart], list[Chart]]:
    """A chart for each name in the logs over the step, stages one after the other: what is shown, then the rest.

    Shown are the numbers of evaluations that tell most, and the terms of the losses.

    Args:
        logs: lines of a run's `log.jsonl`; what is no number is left out.
        recipe: the run's recipe, as text: where a warm-up ends is marked.
    """
    series, events = _series(logs), _warm_up_ends(logs, recipe)
    charts = {
        name: {"title": name, "svg": line_chart(points, name, events=events)}
        for name, points in series.items()
        if len(points) > 1 and not _repeats_total(name, series)
    }
    first = [name for name in FIRST if name in charts]
    evaluated = [n for n in charts if n.startswith("evaluation/") and n not in first]
    rest = (n for n in charts if n.endswith(ASIDE) or any(part in n for part in PARTS))
    aside = [*evaluated, *rest]
    terms = [name for name in charts if name not in (*first, *aside)]
    return [charts[n] for n in (*first, *terms)], [charts[n] for n in aside]


def _warm_up_ends(logs: Sequence[Mapping[str, Any]], recipe: str | None) -> dict[float, str]:
    """Step, over all stages -> that the warm-up of a stage ends there: of its method's `warmup_steps`."""
    try:
        data = yaml.safe_load(recipe or "")
    except yaml.YAMLError:
        return {}
    stages = data.get("stages", ()) if isinstance(data, dict) else ()
    lengths = {line.get("stage", 0): line["step"] for line in logs}
    starts = dict(zip(lengths, accumulate(lengths.values(), initial=0), strict=False))
    ends = {starts[i] + _warm_up(s) for i, s in enumerate(stages) if i in starts and _warm_up(s)}
    return {float(end): "warm-up ends" for end in sorted(ends)}


def _warm_up(settings: object) -> int:
    """The `warmup_steps` in a stage, however deep they stand; 0 if there are none."""
    if not isinstance(settings, dict):
        return 0
    own = settings.get("warmup_steps")
    return own if isinstance(own, int) else max(map(_warm_up, settings.values()), default=0)


def _repeats_total(name: str, series: Mapping[str, list[tuple[float, float]]]) -> bool:
    """Whether a term is all there is of its role's total."""
    total = f"{name.partition('/')[0]}/total"
    return name != total and series[name] == series.get(total)


def _series(logs: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    before, last, stage = 0, 0, None
    for line in logs:
        if line.get("stage") != stage:
            before, last, stage = before + last, 0, line.get("stage")
        last = line["step"]
        for name, value in {**line, **_over_channels(line)}.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and name not in ("step", "stage"):
                series.setdefault(name, []).append((float(before + last), float(value)))
    return series


def _over_channels(line: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, (start, take) in OVER_CHANNELS.items():
        values = [value for key, value in line.items() if key.startswith(start)]
        if values:
            found[name] = take(values)
    return found
