"""The table of numbers: groups of rows, cells with intervals, a line on which they can be compared by eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from nitrodistill.evaluation.catalogue import info
from nitrodistill.evaluation.report.numbers import interval, number
from nitrodistill.evaluation.report.svg import Mark, strip
from nitrodistill.evaluation.report.verdict import Assessment, is_part, places
from nitrodistill.evaluation.result import Metric

TITLES = {
    "text": "Follows its prompt",
    "distribution": "Distribution of pictures",
    "sharpness": "Sharpness",
    "diversity": "Variety",
    "paired": "Against the teacher's picture of the same noise",
}


@dataclass(frozen=True)
class Column:
    """A column: key of a model or "floor", title, what stands below it, and whether it is set off."""

    key: str
    title: str
    main: bool = False
    small: str = ""

    @property
    def whole(self) -> str:
        """Both lines of the title."""
        return f"{self.title}, {self.small}" if self.small else self.title


@dataclass(frozen=True)
class Cell:
    """A number, its interval, the title of its column; `best` where nothing beats it."""

    column: str
    text: str
    interval: str = ""
    main: bool = False
    best: bool = False
    known: bool = True


@dataclass(frozen=True)
class State:
    """A verdict in a word; `kind` is its class: good, off, or empty."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """A metric; `scale` says what equal lengths of its strip are: "log" (factors) or "linear" (differences)."""

    label: str
    about: str
    cells: Sequence[Cell]
    strip: Markup
    scale: str
    state: State | None


@dataclass(frozen=True)
class Group:
    """Rows under a title."""

    title: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    """What the template shows; where metrics are assessed, each has a plot and a verdict."""

    caption: str
    lead: str
    columns: Sequence[Column]
    groups: Sequence[Group]
    assessed: bool

    @property
    def width(self) -> int:
        """Columns in all."""
        return 1 + len(self.columns) + 2 * self.assessed


def make_table(
    values: Mapping[str, Mapping[str, Metric]],
    names: Sequence[str],
    floors: Mapping[str, float | None],
    columns: Sequence[Column],
    caption: str,
    lead: str,
    *,
    assessed: Mapping[str, Assessment] | None = None,
    best: Mapping[str, frozenset[str]] | None = None,
    cost: bool = False,
) -> Table:
    """Builds the table.

    Args:
        values: column key -> metric -> Metric.
        names: the metrics, in order.
        floors: metric -> floor.
        columns: which are shown; one may be "floor".
        caption: for screen readers.
        lead: the sentence above.
        assessed: metric -> Assessment, for a last column with verdicts.
        best: metric -> keys of the columns that nothing beats.
        cost: whether metrics of cost are in it, which else are left to charts.
    """
    titles = {**TITLES, "cost": "Cost"} if cost else TITLES
    groups: dict[str, list[Row]] = {}
    for name in names:
        group = info(name).group
        if group not in titles:
            continue
        mine = {key: found[name] for key, found in values.items() if name in found}
        cells = [
            _cell(c, name, mine, floors.get(name), (best or {}).get(name, frozenset()))
            for c in columns
        ]
        scale = "log" if info(name).best == "low" else "linear"
        line = _strip(scale, mine, floors.get(name)) if assessed is not None else Markup("")
        state = _state((assessed or {}).get(name))
        about = "" if is_part(name) else info(name).about
        groups.setdefault(group, []).append(Row(info(name).label, about, cells, line, scale, state))
    shown = [Group(titles[group], rows) for group, rows in groups.items()]
    return Table(caption, lead, columns, shown, assessed is not None)


def _cell(
    column: Column, name: str, mine: Mapping[str, Metric], floor: float | None, best: frozenset[str]
) -> Cell:
    if column.key == "floor":
        return Cell(column.whole, number(floor), known=floor is not None)
    metric = mine.get(column.key)
    if metric is None:
        return Cell(column.whole, number(None), main=column.main, known=False)
    shown = places(name, metric)
    ends = interval(metric.low, metric.high, metric.value, shown)
    return Cell(column.whole, number(metric.value, shown), ends, column.main, column.key in best)


def _strip(scale: str, mine: Mapping[str, Metric], floor: float | None) -> Markup:
    """Teacher (or floor), naive and student on one line: from 0 to 1 or beyond, or by factors."""
    marks = [Mark(floor, "floor")] if floor is not None and "teacher" not in mine else []
    for model in ("teacher", "naive", "student"):
        if model in mine:
            metric = mine[model]
            marks.append(Mark(metric.value, model, metric.low, metric.high))
    if "student" not in mine:
        return Markup("")
    if scale == "log":
        return strip(marks, logarithmic=True)
    return strip(marks, logarithmic=False, low=0.0, high=1.0)


def _state(assessment: Assessment | None) -> State | None:
    if assessment is None or assessment.state == "open":
        return None
    return State("matches", "good") if assessment.state == "matches" else State("differs", "off")
