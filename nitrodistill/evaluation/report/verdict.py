"""Does the student match its teacher? Said from the numbers, their intervals and their floors alone.

A measure **matches** where its 95% interval reaches what the teacher itself comes to:

    low is good     low <= the teacher's high, or the floor where the teacher has no number of its own
    high is good    high >= the teacher's low, or the floor
    near 1 is good  the interval holds 1, or the floor
    1 up is good    high >= 1, or the floor

and **differs** elsewhere. Without an interval, or with nothing to compare with, it is **open**. Distances between
the pictures of equal noise are not assessed: another picture may be as good. Nor are the costs.

Each measure is assessed by its own interval: of twenty measures of an equal student one is expected to differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nitrodistill.evaluation.catalogue import info
from nitrodistill.evaluation.report.numbers import decimals, decimals_apart, number
from nitrodistill.evaluation.result import Evaluation, Metric

State = Literal["matches", "differs", "open"]

GROUPS: dict[str, str] = {
    "text": "following prompts",
    "distribution": "distribution",
    "sharpness": "sharpness",
    "diversity": "variety",
}
"""The groups of the catalogue that are assessed, as a sentence names them."""


@dataclass(frozen=True)
class Assessment:
    """One measure of the student against its teacher.

    Attributes:
        metric: its name.
        state: "matches", "differs" or "open".
        value: the student's number.
        reference: the teacher's number, the floor, or 1; None if there is none.
        reference_text: what the reference is, in words.
        gap: how far value and reference are apart, in half widths of the value's interval.
        text: the value as it is shown.

    Example:
        >>> from nitrodistill.evaluation import Metric, report
        >>> report.assess("alignment", Metric(0.9), Metric(0.95), None).state
        'open'
    """

    metric: str
    state: State
    value: float
    reference: float | None
    reference_text: str
    gap: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the head of a report says.

    Attributes:
        headline: one short sentence.
        detail: one sentence with numbers.
        assessments: metric -> Assessment, in the catalogue's order.

    Example:
        >>> from nitrodistill.evaluation import Evaluation, Metric, report
        >>> found = Evaluation({name: {"alignment": Metric(0.9)} for name in ("teacher", "student")})
        >>> list(report.verdict(found).assessments)
        ['alignment']
    """

    headline: str
    detail: str
    assessments: Mapping[str, Assessment]

    @property
    def matched(self) -> int:
        """How many measures match."""
        return sum(j.state == "matches" for j in self.assessments.values())

    @property
    def decided(self) -> int:
        """How many match or differ."""
        return sum(j.state != "open" for j in self.assessments.values())


def assess(name: str, student: Metric, teacher: Metric | None, floor: float | None) -> Assessment:
    """Assesses one measure.

    Args:
        name: the metric's.
        student: the student's.
        teacher: the teacher's, or None.
        floor: the metric's, or None.

    Example:
        >>> from nitrodistill.evaluation import Metric, report
        >>> report.assess("alignment", Metric(0.9), Metric(0.95), None).metric
        'alignment'
    """
    best, shown = info(name).best, number(student.value, places(name, student))
    if best in ("one", "above_one"):
        reference, text, ends = 1.0, "1 is the teacher", [1.0, *([] if floor is None else [floor])]
    elif teacher is not None:
        reference, text = teacher.value, f"teacher {number(teacher.value)}"
        ends = [e for e in (teacher.low, teacher.value, teacher.high) if e is not None]
    elif floor is not None:
        reference, text, ends = floor, f"floor {number(floor)}", [floor]
    else:
        return Assessment(name, "open", student.value, None, "", text=shown)
    if student.low is None or student.high is None or best == "none":
        return Assessment(name, "open", student.value, reference, text, text=shown)
    reaches_down = student.low <= max(ends) or best in ("high", "above_one")
    reaches_up = student.high >= min(ends) or best == "low"
    state: State = "matches" if reaches_down and reaches_up else "differs"
    gap = _gap(student.value, reference, student.low, student.high)
    return Assessment(name, state, student.value, reference, text, gap, shown)


def places(name: str, metric: Metric) -> int:
    """Decimals of a metric's number and interval; a ratio's show why it is not 1."""
    if info(name).best in ("one", "above_one"):
        return decimals_apart(metric.value, metric.low, metric.high)
    return decimals(metric.value)


def _gap(value: float, reference: float, low: float, high: float) -> float:
    half, off = (high - low) / 2, abs(value - reference)
    return off / half if half > 0 else math.inf if off > 0 else 0.0


def verdict(found: Evaluation) -> Verdict:
    """The verdict of an evaluation.

    Raises:
        KeyError: if it has no student.

    Example:
        >>> from nitrodistill.evaluation import Evaluation, Metric, report
        >>> found = Evaluation({name: {"alignment": Metric(0.9)} for name in ("teacher", "student")})
        >>> list(report.verdict(found).assessments)
        ['alignment']
    """
    teacher = found.models.get("teacher", {})
    assessed = {
        name: assess(name, found.student[name], teacher.get(name), found.floor(name))
        for name in found.metrics()
        if name in found.student and info(name).group in GROUPS and not is_part(name)
    }
    decided = [j for j in assessed.values() if j.state != "open"]
    if not decided:
        return Verdict(*_undecided([*assessed.values()]), assessed)
    return Verdict(_headline(decided), _detail(decided, found), assessed)


def is_part(name: str) -> bool:
    """Whether a metric is the share of one attribute, which the whole counts already."""
    return name.startswith("alignment@")


def speedup(found: Evaluation, metric: str) -> float | None:
    """How many times less the student needs than its teacher; None if it was not measured."""
    mine, teachers = found.value("student", metric), found.value("teacher", metric)
    return teachers / mine if mine and teachers else None


def _headline(decided: Sequence[Assessment]) -> str:
    states: dict[str, set[State]] = {}
    for assessment in decided:
        states.setdefault(info(assessment.metric).group, set()).add(assessment.state)
    good = [GROUPS[g] for g, found in states.items() if found == {"matches"}]
    bad = [GROUPS[g] for g in states if GROUPS[g] not in good]
    if not bad:
        return "The student matches its teacher."
    if not good:
        return "The student does not match its teacher yet."
    return (
        f"The student matches its teacher in {listed(good, 'and')}, but not in {listed(bad, 'or')}."
    )


def _detail(decided: Sequence[Assessment], found: Evaluation) -> str:
    samples = max((m.num_samples or 0 for m in found.student.values()), default=0)
    size = f" of {number(float(samples), 0)} pictures" if samples else ""
    matched = sum(j.state == "matches" for j in decided)
    if matched == len(decided):
        every = (
            "both measures"
            if matched == 2
            else f"all {matched} measures"
            if matched > 1
            else "the one measure"
        )
        return f"On {every} it cannot be distinguished from its teacher within the sampling error{size}."
    worst: dict[str, Assessment] = {}
    for j in decided:
        group = info(j.metric).group
        if j.state == "differs" and (group not in worst or j.gap > worst[group].gap):
            worst[group] = j
    shown = [f"{info(j.metric).label} {j.text} ({j.reference_text})" for j in worst.values()]
    agree = "agrees" if matched == 1 else "agree"
    return (
        f"{matched} of {len(decided)} measures {agree} within the sampling error{size}; farthest off: "
        f"{', '.join(shown)}."
    )


def _undecided(assessments: Sequence[Assessment]) -> tuple[str, str]:
    known = [j for j in assessments if j.reference is not None]
    shown = [f"{info(j.metric).label} {j.text} ({j.reference_text})" for j in known]
    numbers = f" It measured {', '.join(shown[:4])}." if shown else ""
    return (
        "This evaluation cannot tell.",
        f"Its numbers have no intervals, so that no difference can be distinguished from chance.{numbers}",
    )


def listed(words: Sequence[str], last: str) -> str:
    """Words with commas, and `last` before the last one."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
