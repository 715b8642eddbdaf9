"""What an evaluation leaves in a folder: metrics.json, report.html, grid.png and the pictures that they show."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nitrodistill.evaluation import Evaluation, Pictures, draw_grid
from nitrodistill.evaluation.report import model_card_table, model_results, write_report
from nitrodistill.files import read_lines, read_text

METRICS = "metrics.json"
REPORT = "report.html"
GRID = "grid.png"
PICTURES = "pictures.safetensors"
GENERATOR = b'<meta name="generator" content="nitrodistill">'
RESULTS = (METRICS, REPORT, GRID, PICTURES)


def write_results(
    found: Evaluation,
    folder: Path,
    background: Mapping[str, Any],
    title: str,
    titles: Mapping[str, str] | None = None,
) -> Path:
    """Writes what was found; returns the report's path.

    Args:
        found: the evaluation.
        folder: where.
        background: of the student's run; see the function of that name.
        title: the report's.
        titles: model -> title of its column in the grid.
    """
    for name in (PICTURES, GRID):  # of an earlier student: better none than those
        (folder / name).unlink(missing_ok=True)
    found.save(folder / METRICS)
    if found.examples is not None:
        found.examples.save(folder / PICTURES)
        draw_grid(found.examples, folder / GRID, titles)
    return write_report(found, folder / REPORT, title=title, **background)


def load_results(folder: Path) -> tuple[Evaluation, Pictures | None]:
    """What `write_results` left in a folder.

    Raises:
        FileNotFoundError: if there is no evaluation.
        ValueError: if it is damaged or of another format.
    """
    if not (folder / METRICS).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} holds no evaluation: it has no {METRICS}. Run `nitrodistill evaluate` first."
        )
    pictures = folder / PICTURES
    return Evaluation.load(folder / METRICS), Pictures.load(
        pictures
    ) if pictures.is_file() else None


def card_facts(found: Evaluation, folder: Path) -> dict[str, Any]:
    """What a model card takes from an evaluation and its folder: the arguments of `export.Measured`."""
    grid, count = folder / GRID, found.settings.get("num_samples")
    return {
        "table": model_card_table(found),
        "results": model_results(found),
        "data": f"{count} noises and prompts of the evaluation",
        "picture": grid if grid.is_file() else None,
    }


def check_output(folder: Path) -> None:
    """Refuses a place where the results cannot be put, or that holds files of their names from elsewhere.

    Raises:
        FileExistsError: if it is a file, or holds files of those names that are somebody else's.
        PermissionError: if it cannot be written.
    """
    place = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    if not place.is_dir():
        raise FileExistsError(f"{str(place)!r} is a file; choose a folder with --output.")
    try:
        Path(tempfile.mkdtemp(dir=place)).rmdir()  # permissions alone do not tell
    except OSError as error:
        raise PermissionError(
            f"{str(place)!r} is not writable ({error.strerror}), so no result can be put in {str(folder)!r}; "
            "choose another folder with --output."
        ) from error
    there = [folder / name for name in RESULTS if (folder / name).exists()]
    if not there or _is_evaluation(folder / METRICS):
        return
    raise FileExistsError(
        f"{str(there[0])!r} is not an evaluation's; move it away, or choose another folder with --output."
    )


def check_page(path: Path) -> None:
    """Refuses a place for a page that is a folder, or a file that is no page of ours.

    Raises:
        FileExistsError: if it is.
    """
    if not path.exists():
        return
    ours = path.is_file() and GENERATOR in path.read_bytes()[:2000]
    if not ours:
        raise FileExistsError(
            f"{str(path)!r} exists and is not a page of nitrodistill; choose another file with --output."
        )


def _is_evaluation(metrics: Path) -> bool:
    try:
        Evaluation.load(metrics)
    except (ValueError, FileNotFoundError):
        return False
    return True


def background(run: Path) -> dict[str, Any]:
    """What a run's folder says of how the student was made, for the report: its recipe, log and versions.

    What is not there is left out, and so is what is damaged, with a warning. Read it before the work.
    """
    recipe, log, environment = (run / n for n in ("recipe.yaml", "log.jsonl", "environment.json"))
    found: dict[str, Any] = {}
    if recipe.is_file():
        found["recipe"] = recipe.read_text(encoding="utf-8", errors="replace")
    if log.is_file():
        found["logs"] = read_lines(log, "stage", "step")
    if environment.is_file():
        try:
            found["environment"] = dict(json.loads(read_text(environment))[-1])
        except (ValueError, TypeError, LookupError) as error:
            warnings.warn(
                f"{environment} is damaged ({error}), so the report has no versions.",
                RuntimeWarning,
                stacklevel=2,
            )
    return found
