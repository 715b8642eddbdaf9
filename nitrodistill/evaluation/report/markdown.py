"""The verdict and the table as Markdown, for a model card."""

from __future__ import annotations

from nitrodistill.evaluation.catalogue import info
from nitrodistill.evaluation.report.numbers import interval, number
from nitrodistill.evaluation.report.verdict import is_part, verdict
from nitrodistill.evaluation.result import Evaluation

COLUMNS = {"student": "student (95% interval)", "teacher": "teacher", "naive": "teacher, 1 step"}


def model_card_table(found: Evaluation) -> str:
    """The verdict's two sentences, and a table with a row for each metric that the student has.

    Shares of single attributes are left out; the student's numbers have their intervals. Below stands what could
    not be measured.

    Raises:
        KeyError: if the evaluation has no student.

    Example:
        >>> from nitrodistill.evaluation import Evaluation, Metric, report
        >>> found = Evaluation({name: {"alignment": Metric(0.9)} for name in ("teacher", "student")})
        >>> "0.9" in report.model_card_table(found)
        True
    """
    outcome = verdict(found)
    models = [model for model in COLUMNS if model in found.models]
    head = ["", *(COLUMNS[model] for model in models), "floor"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name in found.metrics():
        if name in found.student and not is_part(name):
            label = info(name).label.replace("|", "\\|")
            rows.append(
                [label, *(_cell(found, model, name) for model in models), _known(found.floor(name))]
            )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = "\n\n" + "\n".join(f"- {note}" for note in found.notes) if found.notes else ""
    return f"**{outcome.headline}** {outcome.detail}\n\n{table}{notes}"


def _cell(found: Evaluation, model: str, name: str) -> str:
    metric = found.models[model].get(name)
    if metric is None:
        return "-"
    ends = interval(metric.low, metric.high, metric.value) if model == "student" else ""
    return f"{_known(metric.value)}{f' ({ends})' if ends else ''}"


def _known(value: float | None) -> str:
    return "-" if value is None else number(value)
