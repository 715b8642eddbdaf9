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
from nitrodistill.files import atomic_folder
from nitrodistill.sampling import StepPlan
from nitrodistill.types import PredictionType

__all__ = ["RECORD", "check_target", "folder_for", "plan_record", "write_record"]

RECORD = "nitrodistill.json"  # in every export: plan, versions, self-test


def check_target(output: str | Path) -> Path:
    """Refuses a place that cannot be exported to; returns it as an absolute path.

    Raises:
        FileExistsError: if it exists and holds something that is no export.
        PermissionError: if it cannot be written.
    """
    target = Path(output).resolve()
    if target.is_dir():
        if any(target.iterdir()) and not (target / RECORD).is_file():
            raise FileExistsError(
                f"{str(target)!r} exists and holds something that is not an earlier export; choose another "
                "folder, or empty it."
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


def write_record(
    folder: Path,
    prediction_type: PredictionType,
    plan: StepPlan,
    base_model: str,
    test: SelfTest,
    fingerprint: str,
) -> None:
    """Writes down what a folder holds: plan, call, fingerprint, self-test, versions."""
    record = {
        "format": 1,
        "base_model": base_model,
        "prediction_type": prediction_type,
        "plan": plan_record(plan),
        "call": dict(test.call),
        "fingerprint": fingerprint,
        "self_test": {**test.errors, "tolerance": test.tolerance},
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
