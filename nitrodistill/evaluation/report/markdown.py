"""The verdict and the table as Markdown, for a model card."""

from __future__ import annotations

from nitrodistill.evaluation.catalogue import info
from nitrodistill.evaluation.report.numbers import interval, number
from nitrodistill.evaluation.report.verdict import is_part, places, verdict
from nitrodistill.evaluation.result import Evaluation

COLUMNS = {"student": "student (95% interval)", "teacher": "teacher", "naive": "teacher, 1 step"}


def model_card_table(found: Evaluation) -> str:
    """The verdict's two sentences, and a table with a row for each metric that the student has.

    Shares of single attributes are left out; the student's numbers have their intervals. Below stands where times
    were taken, and what could not be measured.

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
    timed = f"\n\nTimes: {cost_lead(found)}" if "denoise_ms" in found.student else ""
    return f"**{outcome.headline}** {outcome.detail}\n\n{table}{timed}{notes}"


def model_results(found: Evaluation) -> list[dict[str, object]]:
    """The student's numbers as a model card's metadata has them: `type`, `name`, `value` of each metric.

    Shares of single attributes and what compares pictures of equal noise are left out.

    Raises:
        KeyError: if the evaluation has no student.

    Example:
        >>> from nitrodistill.evaluation import Evaluation, Metric, report
        >>> report.model_results(Evaluation({"student": {"alignment": Metric(0.9)}}))[0]["value"]
        0.9
    """
    names = (n for n in found.metrics() if n in found.student and not is_part(n))
    return [
        {"type": name, "name": info(name).label, "value": float(f"{found.student[name].value:.6g}")}
        for name in names
        if info(name).group != "paired"
    ]


def cost_lead(found: Evaluation) -> str:
    """Where and how times were taken, in a sentence."""
    settings = found.settings
    machine = settings.get("machine") or settings.get("device")
    where = f" on {machine}" if machine else ""
    threads = settings.get("num_threads", 1)
    many = f" with {threads} threads" if threads > 1 and settings.get("device") == "cpu" else ""
    batch = settings.get("cost_batch_size")
    size = f", {batch} pictures at a time where it says nothing else" if batch else ""
    return (
        f"Measured{where}{many}{size}: warmed up, the models in turns, the device idle before the clock is "
        "read, the median of the runs."
    )


def _cell(found: Evaluation, model: str, name: str) -> str:
    metric = found.models[model].get(name)
    if metric is None:
        return "-"
    shown = places(name, metric)
    ends = interval(metric.low, metric.high, metric.value, shown) if model == "student" else ""
    return f"{number(metric.value, shown)}{f' ({ends})' if ends else ''}"


def _known(value: float | None) -> str:
    return "-" if value is None else number(value)
