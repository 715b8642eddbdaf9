"""Where the shipped weights are, and the proof that they are what was trained: a sha256 for each file."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
DIT_WEIGHTS = Path(__file__).parent / "dit_weights"
STUDENT_WEIGHTS = Path(__file__).parent / "student_weights"
MANIFEST = "manifest.json"


def digest(path: Path) -> str:
    """Returns the sha256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def verify(root: Path) -> None:
    """Checks every file that the manifest of `root` names; a folder that passed is not read again.

    Raises:
        FileNotFoundError: if the folder has no manifest or lacks a file.
        ValueError: if a file has another digest.
    """
    manifest = root / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(
            f"{root} holds no toy weights ({MANIFEST} is missing); reinstall nitrodistill, or make some in its "
            "repository: `python -m tools.toy.train`"
        )
    for name, expected in json.loads(manifest.read_text())["sha256"].items():
        path = root / name
        if not path.is_file():
            raise FileNotFoundError(f"toy weights {path} are missing; reinstall nitrodistill")
        if digest(path) != expected:
            raise ValueError(
                f"toy weights {path} are damaged: their sha256 is not {MANIFEST}'s; reinstall nitrodistill"
            )
