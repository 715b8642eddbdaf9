"""Several students of one teacher on one page: pictures at equal noise, numbers, quality against cost.

Evaluations compare when they were made alike: the same teacher, prompts, noise and number of samples. What they
cost was measured at different times, so that the plot shows each student's cost as a share of its own teacher's,
which was measured in turns with it.

A student is on the **front** if no other is at least as good in both, and better in one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nitrodistill.evaluation.catalogue import info
from nitrodistill.evaluation.report.numbers import interval, number, times
from nitrodistill.evaluation.report.page import MODELS, READING, floors_in_words, render
from nitrodistill.evaluation.report.pictures import compared_gallery
from nitrodistill.evaluation.report.svg import Point, scatter
from nitrodistill.evaluation.report.table import Column, make_table
from nitrodistill.evaluation.report.verdict import Verdict, listed, verdict
from nitrodistill.evaluation.result import Evaluation, Metric, Pictures
from nitrodistill.files import write_text

ALIKE = (
    "teacher_fingerprint",
    "num_samples",
    "seed",
    "num_inference_steps",
    "guidance",
    "negative_prompt",
    "other_vae",
    "num_prompts",
    "samples_per_prompt",
    "floor",
)
"""Settings that must be equal for numbers to compare."""

QUALITIES = ("fd_teacher", "kid_teacher", "cmmd_teacher", "fd_latents", "fd_real", "alignment")
COSTS = ("pipeline_ms", "latency_ms", "denoise_ms", "gflops")


@dataclass(frozen=True)
class Comparison:
    """Students side by side.

    Attributes:
        students: name -> evaluation.
        quality: the metric of the plot's vertical axis.
        cost: that of the horizontal one.
        verdicts: name -> the student's verdict.

    Example:
        >>> from nitrodistill.evaluation import Evaluation, Metric, report
        >>> numbers = {"alignment": Metric(0.9), "gflops": Metric(1.0)}
        >>> found = Evaluation({"teacher": numbers, "student": numbers})
        >>> list(report.compare({"a": found, "b": found}, "alignment", "gflops").students)
        ['a', 'b']
    """

    students: Mapping[str, Evaluation]
    quality: str
    cost: str
    verdicts: Mapping[str, Verdict]

    def together(self) -> Evaluation:
        """The students and the teacher as the models of one evaluation: its `text` and `markdown` are tables.

        What the teacher cost was measured once with each student and compares with that one alone: in a note.
        """
        first = next(iter(self.students.values())).models.get("teacher", {})
        models = {name: found.student for name, found in self.students.items()}
        models["teacher"] = {name: m for name, m in first.items() if info(name).group != "cost"}
        label = info(self.cost).label
        notes = [
            f"{name}: {label} {times(1 / self.share(name))} below its own teacher's"
            for name in self.students
        ]
        notes += [
            f"{name}: {note}" for name, found in self.students.items() for note in found.notes
        ]
        return Evaluation(models, notes=tuple(notes))

    def metric(self, name: str) -> Metric:
        """A student's quality."""
        return self.students[name].student[self.quality]

    def share(self, name: str) -> float:
        """A student's cost over its teacher's."""
        found = self.students[name]
        return found.student[self.cost].value / found.models["teacher"][self.cost].value

    def front(self) -> frozenset[str]:
        """The students that no other one beats."""
        places = {name: (self.share(name), _away_of(self, name)) for name in self.students}
        return frozenset(
            name
            for name, (cost, quality) in places.items()
            if not any(
                c <= cost and q <= quality and (c, q) != (cost, quality) for c, q in places.values()
            )
        )

    def best(self, metric: str) -> frozenset[str]:
        """The students that are best in a metric, or cannot be distinguished from the best by their intervals."""
        known = {n: f.student[metric] for n, f in self.students.items() if metric in f.student}
        direction = info(metric).best
        if len(known) < 2 or direction == "none":
            return frozenset()
        away = {n: _away(m.value, direction) for n, m in known.items()}
        winner = min(away, key=lambda n: away[n])
        return frozenset(n for n, m in known.items() if n == winner or _overlap(m, known[winner]))


def compare(
    students: Mapping[str, Evaluation], quality: str | None = None, cost: str | None = None
) -> Comparison:
    """Puts evaluations side by side.

    Args:
        students: name -> evaluation, at least two.
        quality: a metric of all; by default the first of `QUALITIES` that all have.
        cost: a metric of all students and their teachers; by default the first of `COSTS`.

    Raises:
        ValueError: if there are fewer than two, they were not made alike, or a metric is missing.

    Example:
        >>> from nitrodistill.evaluation import Evaluation, Metric, report
        >>> numbers = {"alignment": Metric(0.9), "gflops": Metric(1.0)}
        >>> found = Evaluation({"teacher": numbers, "student": numbers})
        >>> report.compare({"a": found, "b": found}, "alignment", "gflops").quality
        'alignment'
    """
    if len(students) < 2:
        raise ValueError(f"there are {len(students)} evaluations; a comparison needs at least two.")
    _check_alike(students)
    quality = _common("quality", quality, QUALITIES, students, ("student",))
    cost = _common("cost", cost, COSTS, students, ("student", "teacher"))
    for name, found in students.items():
        for metric, model in ((quality, "student"), (cost, "student"), (cost, "teacher")):
            if not found.models[model][metric].value > 0:
                raise ValueError(
                    f"{metric} of the {model} of {name!r} is {found.models[model][metric].value}; the plot has "
                    "logarithmic axes, choose a metric that is above 0."
                )
    return Comparison(students, quality, cost, {n: verdict(f) for n, f in students.items()})


def write_comparison(
    compared: Comparison,
    path: str | Path,
    pictures: Mapping[str, Pictures] | None = None,
    title: str = "Students of one teacher",
) -> Path:
    """Writes a comparison as one HTML file, like `write_report`; never half of it.

    Args:
        compared: from `compare`.
        path: the file.
        pictures: student's name -> its evaluation's examples; samples that all have are shown.
        title: of the page.

    Example:
        >>> from nitrodistill.evaluation import Evaluation, Metric, report
        >>> numbers = {"alignment": Metric(0.9), "gflops": Metric(1.0)}
        >>> found = Evaluation({"teacher": numbers, "student": numbers})
        >>> compared = report.compare({"a": found, "b": found}, "alignment", "gflops")
        >>> report.write_comparison(compared, "compared.html").name
        'compared.html'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, comparison_html(compared, pictures, title))
    return target


def comparison_html(
    compared: Comparison,
    pictures: Mapping[str, Pictures] | None = None,
    title: str = "Students of one teacher",
) -> str:
    """The page of `write_comparison` as text; the arguments are the same.

    Example:
        >>> from nitrodistill.evaluation import Evaluation, Metric, report
        >>> numbers = {"alignment": Metric(0.9), "gflops": Metric(1.0)}
        >>> found = Evaluation({"teacher": numbers, "student": numbers})
        >>> report.comparison_html(report.compare({"a": found, "b": found}, "alignment", "gflops"))[:15]
        '<!doctype html>'
    """
    together = compared.together()
    known = {n: p for n, p in (pictures or {}).items() if n in compared.students}
    shown = None
    if len(known) == len(compared.students):
        shown = compared_gallery(known, {n: s.samples for n, s in compared.students.items()})
    samples = next(iter(compared.students.values())).settings.get("num_samples")
    subtitle = f"{len(compared.students)} students" + (f" · {samples:,} samples" if samples else "")
    return render(
        "compare.html",
        title=title,
        subtitle=subtitle,
        headline=_headline(compared),
        detail=_detail(compared),
        figures=_figures(compared),
        plot=_plot(compared),
        plot_lead=_plot_lead(compared),
        gallery=shown,
        table=_table(compared, together),
        reading=READING,
        floors=floors_in_words(together),
        notes=together.notes,
        markdown=together.markdown(),
        facts=_facts(compared),
    )


def _away(value: float, direction: str) -> float:
    away = {"low": value, "none": value, "high": -value, "above_one": -value}
    return away.get(direction, abs(value - 1))


def _overlap(one: Metric, other: Metric) -> bool:
    ends = (one.low, one.high, other.low, other.high)
    if None in ends:
        return one.value == other.value
    low, high, other_low, other_high = (float(e) for e in ends if e is not None)
    return low <= other_high and other_low <= high


def _check_alike(students: Mapping[str, Evaluation]) -> None:
    (first, reference), *others = students.items()
    for name, found in others:
        for key in ALIKE:
            mine, there = found.settings.get(key), reference.settings.get(key)
            if mine != there:
                raise ValueError(
                    f"{name!r} was evaluated with {key} {mine!r} and {first!r} with {there!r}, so that their "
                    "numbers do not compare; evaluate both alike."
                )
        if [(s.index, s.prompt) for s in found.samples] != [
            (s.index, s.prompt) for s in reference.samples
        ]:
            raise ValueError(
                f"{name!r} and {first!r} were evaluated on other prompts, so that their numbers do not "
                "compare; evaluate both on the same."
            )


def _common(
    what: str,
    asked: str | None,
    usual: Sequence[str],
    students: Mapping[str, Evaluation],
    models: Sequence[str],
) -> str:
    """The metric asked for, or the first usual one, that all models of all students have."""
    columns = [found.models.get(model, {}) for found in students.values() for model in models]
    names = [
        name
        for name in columns[0]
        if all(name in column for column in columns)
        and (info(name).group == "cost") == (what == "cost")
    ]
    if asked is not None and asked not in names:
        near = "".join(f"; the nearest is {n!r}" for n in get_close_matches(asked, names, 1, 0))
        raise ValueError(
            f"{what} is {asked!r}, which is no {what} that all evaluations have{near}."
        )
    if asked is not None:
        return asked
    found = next((name for name in usual if name in names), None)
    if found is None:
        raise ValueError(
            f"the evaluations share no {what} ({', '.join(usual)}); evaluate again with the same options"
            + (", and cost_repeats of 1 or more." if what == "cost" else ".")
        )
    return found


def _headline(compared: Comparison) -> str:
    best = [name for name in compared.students if name in compared.best(compared.quality)]
    label = info(compared.quality).label
    if len(best) == len(compared.students):
        return f"In {label} the students cannot be distinguished."
    if len(best) > 1:
        return f"{listed(best, 'and')} are best in {label}, and cannot be distinguished."
    return f"{best[0]} is best in {label}."


def _detail(compared: Comparison) -> str:
    """What the best in quality is like, and what is cheapest."""
    best = min(compared.students, key=lambda n: _away_of(compared, n))
    metric, outcome = compared.metric(best), compared.verdicts[best]
    ends = interval(metric.low, metric.high, metric.value)
    matches = (
        f" and matches it on {outcome.matched} of {outcome.decided} measures"
        if outcome.decided
        else ""
    )
    cheapest = min(compared.students, key=compared.share)
    cheap = (
        f" {cheapest} is cheapest, {times(1 / compared.share(cheapest))} cheaper than its teacher."
        if cheapest != best
        else ""
    )
    return (
        f"{best} is at {number(metric.value)}{f' ({ends})' if ends else ''}, is "
        f"{times(1 / compared.share(best))} cheaper than its teacher{matches}.{cheap}"
    )


def _figures(compared: Comparison) -> list[dict[str, str]]:
    figures = []
    for name in sorted(compared.students, key=lambda n: _away_of(compared, n)):
        metric, outcome = compared.metric(name), compared.verdicts[name]
        parts = [name, f"{times(1 / compared.share(name))} cheaper"]
        parts += [f"matches on {outcome.matched} of {outcome.decided}"] if outcome.decided else []
        figures.append({"value": number(metric.value), "small": "", "about": " · ".join(parts)})
    return figures


def _away_of(compared: Comparison, name: str) -> float:
    return _away(compared.metric(name).value, info(compared.quality).best)


def _plot(compared: Comparison) -> Any:
    front = compared.front()
    points = []
    for name in compared.students:
        m = compared.metric(name)
        points.append(
            Point(
                100 * compared.share(name), m.value, name, "student", m.low, m.high, name in front
            )
        )
    first = next(iter(compared.students.values()))
    teacher = first.models["teacher"].get(compared.quality)
    floor = None
    if teacher is not None:
        points.append(Point(100.0, teacher.value, "teacher", "teacher"))
    elif info(compared.quality).best == "low":
        floor = first.floor(compared.quality)
    cost = info(compared.cost).label.partition(",")[0]
    return scatter(points, f"{cost}, % of the teacher's", info(compared.quality).label, floor)


def _plot_lead(compared: Comparison) -> str:
    up = {"high": "left and up", "above_one": "left and up", "one": "left, and near 1"}
    better = up.get(info(compared.quality).best, "left and down")
    front = [name for name in compared.students if name in compared.front()]
    are = "is" if len(front) == 1 else "are"
    return (
        f"Better is {better}. Nothing here beats {listed(front, 'and')}, which {are} on the front. Costs are "
        "shares of the teacher's, measured in turns with each student; bars are 95% intervals."
    )


def _table(compared: Comparison, together: Evaluation) -> Any:
    names = together.metrics()
    columns = [Column(name, name) for name in compared.students]
    columns += [Column("teacher", MODELS["teacher"]), Column("floor", "floor")]
    floors = {
        name: next((f.floor(name) for f in compared.students.values() if name in f.student), None)
        for name in names
    }
    everybody = frozenset(compared.students)
    best = {name: compared.best(name) for name in names if info(name).group != "paired"}
    best = {name: winners for name, winners in best.items() if winners != everybody}
    lead = (
        "Underlined is what no other student beats; several where their intervals overlap, none where "
        "nobody can be distinguished."
    )
    return make_table(
        together.models,
        names,
        floors,
        columns,
        "Metrics of every student",
        lead,
        best=best,
        cost=True,
    )


def _facts(compared: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    settings = next(iter(compared.students.values())).settings
    shared = [(k.replace("_", " "), str(settings[k])) for k in ALIKE if k in settings]
    facts = [("Evaluation, the same for all", shared)] if shared else []
    for name, found in compared.students.items():
        known = {
            "fingerprint": found.settings.get("student_fingerprint"),
            "steps": len(found.settings.get("student_timesteps", ())) or None,
            "device": found.settings.get("device"),
        }
        items = [(k, str(v)) for k, v in known.items() if v is not None]
        facts += [(name, items)] if items else []
    return facts
