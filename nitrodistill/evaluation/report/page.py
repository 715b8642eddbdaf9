"""`report.html`: one evaluation as a page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nitrodistill.evaluation.catalogue import info
from nitrodistill.evaluation.report.curves import training_curves
from nitrodistill.evaluation.report.markdown import cost_lead, model_card_table
from nitrodistill.evaluation.report.numbers import number, times
from nitrodistill.evaluation.report.pictures import gallery
from nitrodistill.evaluation.report.table import Column, make_table
from nitrodistill.evaluation.report.verdict import Verdict, is_part, speedup, verdict
from nitrodistill.evaluation.result import Evaluation
from nitrodistill.files import write_text
from nitrodistill.settings import printable

TEMPLATES = Path(__file__).parent / "templates"

MODELS = {"teacher": "teacher", "naive": "teacher, 1 step", "student": "student", "real": "real"}

READING = (
    "Below a number stands its 95% interval: where it would lie in 95 of 100 evaluations with other samples. "
    "The floor is what two sets of one distribution come to at this number of samples, as a distance of finite "
    "sets is never 0; no student can be expected below it. Of a share it is the ceiling: no student can be "
    "expected above it.",
    "Below each line stands its scale: log, where equal factors are equally long, or linear, where equal "
    "differences are.",
    "A measure matches where the student's interval reaches the teacher's own number, or the floor where the "
    "teacher has none; for ratios, where it holds 1. Else it differs. Of twenty measures of an equal student "
    "one is expected to differ by chance.",
    "Distances to the teacher's picture of the same noise are not assessed: they reward the average of all "
    "pictures, and another picture may be as good.",
)

HEALTHY = (
    "A discriminator that sees no difference has a loss of 2 (hinge), 1.39 (non-saturating), 0.25 (least squares) "
    "or 0.69 (relativistic). A healthy one stays a few percent or more below that, and moves: it rises as the "
    "student gets better and falls as the discriminator learns. If it stays at that number, the adversarial term "
    "adds noise alone; near 0 the discriminator is certain, and the student learns little from it."
)
"""Of the losses in `losses.adversarial`, their `chance`."""


def write_report(
    found: Evaluation,
    path: str | Path,
    *,
    title: str = "Student",
    logs: Sequence[Mapping[str, Any]] = (),
    recipe: str | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Path:
    """Writes an evaluation as one HTML file; never half of it.

    The page loads nothing: style, script and pictures are inside, and its security policy forbids the rest.

    Args:
        found: the evaluation; its pictures are shown if it has any.
        path: the file.
        title: what was evaluated.
        logs: the lines of the run's `log.jsonl`, for the curves.
        recipe: the run's recipe, as text.
        environment: versions and the like, names -> values; inner mappings become sections of their own.

    Raises:
        KeyError: if the evaluation has no student.

    Example:
        >>> from nitrodistill.evaluation import Evaluation, Metric, report
        >>> found = Evaluation({name: {"alignment": Metric(0.9)} for name in ("teacher", "student")})
        >>> report.write_report(found, "report.html").name
        'report.html'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    page = report_html(found, title=title, logs=logs, recipe=recipe, environment=environment)
    write_text(target, page)
    return target


def report_html(
    found: Evaluation,
    *,
    title: str = "Student",
    logs: Sequence[Mapping[str, Any]] = (),
    recipe: str | None = None,
    environment: Mapping[str, Any] | None = None,
) -> str:
    """The page of `write_report` as text; the arguments are the same.

    Example:
        >>> from nitrodistill.evaluation import Evaluation, Metric, report
        >>> found = Evaluation({name: {"alignment": Metric(0.9)} for name in ("teacher", "student")})
        >>> report.report_html(found)[:15]
        '<!doctype html>'
    """
    outcome = verdict(found)
    pictures = gallery(found, {**MODELS, "naive": "1-step teacher"})
    costs = _costs(found)
    curves, more_curves = training_curves(logs, recipe)
    sections = {
        "pictures": ("Pictures", pictures),
        "numbers": ("Numbers", True),
        "cost": ("Cost", costs),
        "training": ("Training", curves),
        "recipe": ("Recipe and versions", True),
    }
    return render(
        "report.html",
        title=title,
        subtitle=_subtitle(found),
        verdict=outcome,
        figures=_figures(found, outcome),
        contents=[(key, name) for key, (name, there) in sections.items() if there],
        gallery=pictures,
        table=_table(found, outcome),
        legend=_legend(found),
        reading=READING,
        floors=floors_in_words(found),
        notes=found.notes,
        markdown=model_card_table(found),
        costs=costs,
        cost_lead=cost_lead(found),
        curves=curves,
        more_curves=more_curves,
        curves_lead=_curves_lead(logs, [chart["title"] for chart in curves]),
        facts=_facts(found.settings, environment or {}),
        recipe=recipe,
    )


def render(name: str, **values: Any) -> str:
    """A template with the page's style and script; whatever is not markup of ours is escaped."""
    from importlib.metadata import version

    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    inside = {
        "style": Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        "script": Markup((TEMPLATES / "script.js").read_text(encoding="utf-8")),
        "version": version("nitrodistill"),
    }
    return printable(environment.get_template(name).render(**inside, **values))


def steps_of(found: Evaluation) -> dict[str, str]:
    """Model -> its number of steps in words, where the settings say it."""
    counts = {
        "teacher": found.settings.get("num_inference_steps"),
        "student": len(found.settings.get("student_timesteps", ())),
    }
    return {model: f"{n} step" + ("s" if n != 1 else "") for model, n in counts.items() if n}


def _subtitle(found: Evaluation) -> str:
    steps, count = steps_of(found), found.settings.get("num_samples")
    parts = [f"{number(float(count), 0)} samples"] if count else []
    if "student" in steps and "teacher" in steps:
        parts.insert(0, f"{steps['student']} instead of {steps['teacher'].split()[0]}")
    return " · ".join(parts)


def _figures(found: Evaluation, outcome: Verdict) -> list[dict[str, str]]:
    """Up to four numbers for the head: what is gained, then what is lost."""
    shown = []
    faster = speedup(found, "denoise_ms")
    if faster:
        whole = speedup(found, "pipeline_ms")
        more = f"; {times(whole)} from prompt to picture" if whole else ""
        shown.append({"value": times(faster), "about": f"faster in denoising{more}"})
    if outcome.decided:
        about = "measures match the teacher within the sampling error"
        shown.append(
            {"value": str(outcome.matched), "small": f"of {outcome.decided}", "about": about}
        )
    for group in ("text", "distribution", "diversity"):
        assessed = next((j for n, j in outcome.assessments.items() if info(n).group == group), None)
        if assessed is not None and assessed.reference is not None:
            label = info(assessed.metric).label
            value = {
                "value": assessed.text,
                "small": "",
                "about": f"{label}; {assessed.reference_text}",
            }
            shown.append(value)
    return [{"small": "", **item} for item in shown[:4]]


def _table(found: Evaluation, outcome: Verdict) -> Any:
    names = found.metrics()
    floors = {name: found.floor(name) for name in names}
    order = [model for model in ("student", "teacher", "naive", "real") if model in found.models]
    order += [model for model in found.models if model not in order]
    small = {**steps_of(found), "naive": "1 step"}
    titles = {**MODELS, "naive": "teacher", "real": "real pictures"}
    columns = [
        Column(model, titles.get(model, model), model == "student", small.get(model, ""))
        for model in order
    ]
    columns.append(Column("floor", "floor"))
    count = found.settings.get("num_samples")
    lead = "Below each number its 95% interval; next to them what equal sets would come to."
    if count:
        lead = (
            f"All on the same noise and prompts, {number(float(count), 0)} samples a model. Below each "
            "number its 95% interval; the floor is what two sets of one distribution come to."
        )
    return make_table(
        found.models,
        names,
        floors,
        columns,
        "Metrics of every model",
        lead,
        assessed=outcome.assessments,
    )


def floors_in_words(found: Evaluation) -> list[tuple[str, str]]:
    """What the floors are, and which metrics each is of; why there is none included."""
    metrics: dict[str, list[str]] = {}
    for name in found.metrics():
        if info(name).floor and not is_part(name):
            metrics.setdefault(info(name).floor, []).append(info(name).label)
    return [(", ".join(labels), floor) for floor, labels in metrics.items()]


def _legend(found: Evaluation) -> list[tuple[Any, str]]:
    words = {"student": "student", "naive": MODELS["naive"], "teacher": "teacher", "floor": "floor"}
    return [
        (_key(kind), text)
        for kind, text in words.items()
        if kind == "floor" or kind in found.models
    ]


def _key(kind: str) -> Any:
    inner = (
        f'<line class="{kind} tick" x1="8" x2="8" y1="1" y2="15"/>'
        if kind in ("teacher", "floor")
        else f'<circle class="{kind} dot" cx="8" cy="8" r="4.5"/>'
    )
    return Markup(f'<svg viewBox="0 0 16 16">{inner}</svg>')


def _costs(found: Evaluation) -> list[dict[str, Any]]:
    charts = []
    for name in found.metrics():
        if info(name).group != "cost":
            continue
        title, _, unit = info(name).label.partition(", ")
        models = [
            model
            for model in ("teacher", "naive", "student")
            if name in found.models.get(model, {})
        ]
        most = max(found.models[model][name].value for model in models) or 1.0
        bars = [
            {
                "label": MODELS[model],
                "kind": model,
                "share": f"{found.models[model][name].value / most:.4f}",
                "text": f"{number(found.models[model][name].value)} {unit}".strip(),
            }
            for model in models
        ]
        charts.append({"title": title, "bars": bars})
    return charts


def _curves_lead(logs: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> str:
    lead = f"{number(float(_last_step(logs)), 0)} steps, as they were logged."
    return f"{lead} {HEALTHY}" if any(t.startswith("discriminator/") for t in titles) else lead


def _last_step(logs: Sequence[Mapping[str, Any]]) -> int:
    return int(max((line.get("step", 0) for line in logs), default=0))


def _facts(
    settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> list[tuple[str, list[tuple[str, str]]]]:
    sections = {"Evaluation": settings, "Environment": environment}
    flat: dict[str, list[tuple[str, str]]] = {}
    for title, values in sections.items():
        for name, value in values.items():
            if isinstance(value, Mapping):
                inner = [(str(k), _plain(v)) for k, v in value.items() if v is not None]
                flat[name.capitalize()] = inner
            elif value is not None:
                flat.setdefault(title, []).append((name.replace("_", " "), _plain(value)))
    return [(name, items) for name, items in flat.items() if items]


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
