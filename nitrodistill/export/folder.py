"""Folders that are written whole or not at all: beside their destination, then renamed into place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nitrodistill.export.self_test import SelfTest
from nitrodistill.files import atomic_folder, damage, record_of
from nitrodistill.sampling import StepPlan
from nitrodistill.types import PredictionType

# in every export: plan, versions, self-test, hashes of the other files
RECORD = "nitrodistill.json"
CARD = "README.md"  # its owner may edit it, so it has no hash


def check_target(output: str | Path) -> Path:
    """Refuses a place that cannot be exported to; returns it as an absolute path.

    Raises:
        FileExistsError: if it exists and holds something that is no export, or something else beside one.
        PermissionError: if it cannot be written.
    """
    target = Path(output).resolve()
    if target.is_dir():
        if any(target.iterdir()) and not (target / RECORD).is_file():
            raise FileExistsError(
                f"{str(target)!r} exists and holds something that is not an earlier export; choose another "
                "folder, or empty it."
            )
        strangers = _strangers(target)
        if strangers:
            raise FileExistsError(
                f"{str(target)!r} holds an earlier export and also {strangers[0]}, which would be lost; move it "
                "away, or choose another folder."
            )
    elif target.exists():
        raise FileExistsError(f"{str(target)!r} is a file; give a folder to export to.")
    place = next(path for path in target.parents if path.exists())
    if not os.access(place, os.W_OK):
        raise PermissionError(
            f"{str(place)!r} is not writable, so nothing can be exported to {str(target)!r}; choose "
            "another folder."
        )
    return target


@contextmanager
def folder_for(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place if the block ends well, and else is gone.

    Parents that were made in vain go too; an earlier export goes only when the new one stands.
    """
    made = [path for path in target.parents if not path.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_folder(target) as partial:
            yield partial
    finally:
        for path in made:
            with suppress(OSError):  # it holds the export
                path.rmdir()


def verify_export(folder: str | Path) -> None:
    """Compares every file of an export, but its card, with the record in it.

    Raises:
        FileNotFoundError: if `folder` holds no export.
        ValueError: if a file is missing, damaged or not of the export.

    Example:
        >>> nd.export.verify_export("nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: ...
    """
    path = Path(folder)
    if not (path / RECORD).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} holds no export (it has no {RECORD}); export to it first."
        )
    files = _recorded(path)
    if files is None:
        raise ValueError(f"{path / RECORD} names no files; export again.")
    found = damage(path, files)
    if found is not None:
        raise ValueError(f"the export in {str(folder)!r} is damaged: {found}; export again.")
    strangers = _strangers(path)
    if strangers:
        raise ValueError(
            f"{str(folder)!r} holds {strangers[0]}, which export did not write; move it away."
        )


def _recorded(folder: Path) -> dict[str, object] | None:
    """What the record of an export says of its files; None if it cannot be read."""
    try:
        files = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files if isinstance(files, dict) and files else None


def _strangers(folder: Path) -> list[str]:
    """The files in an export that it did not write, apart from hidden ones."""
    known = _recorded(folder)
    there = visible(folder)
    return [] if known is None else [name for name in there if name not in known]


def visible(folder: Path) -> list[str]:
    """The files of a folder but its record and card, by name relative to it, without hidden ones."""
    names = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if not p.is_dir()]
    shown = [name.as_posix() for name in names if not any(part[0] == "." for part in name.parts)]
    return [name for name in shown if name not in (RECORD, CARD)]


def write_record(
    folder: Path,
    prediction_type: PredictionType,
    plan: StepPlan,
    base_model: str,
    test: SelfTest,
    fingerprint: str,
) -> None:
    """Writes down what a folder holds: plan, call, fingerprint, self-test, versions, and its files' hashes."""
    record = {
        "format": 1,
        "base_model": base_model,
        "prediction_type": prediction_type,
        "plan": plan_record(plan),
        "call": dict(test.call),
        "fingerprint": fingerprint,
        "self_test": {**test.errors, "tolerance": test.tolerance},
        "files": {name: record_of(folder / name) for name in visible(folder)},
        "versions": {name: version(name) for name in ("nitrodistill", "torch", "diffusers")},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def plan_record(plan: StepPlan) -> dict[str, Any]:
    """A plan in JSON's types."""
    steps = [
        {
            "t": step.t.item(),
            "input": [scale.item() for scale in step.input],
            "output": [scale.item() for scale in step.output],
        }
        for step in plan.steps
    ]
    return {"transition": plan.transition, "steps": steps}
