"""What a run ran with: versions, git state, device, folder. Noted at its start, and where a resumption differs."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from accelerate import Accelerator

from nitrodistill.files import read_text, write_json
from nitrodistill.settings import shown


def note_environment(file: Path, accelerator: Accelerator) -> None:
    """Adds the environment to the list in `file`, unless it is the last of it.

    Raises:
        ValueError: if the file is not what was written.
    """
    environment = _environment(accelerator)
    noted = noted_environments(file)
    if noted[-1:] != [environment]:
        write_json(file, [*noted, environment])


def noted_environments(file: Path) -> list[dict[str, object]]:
    """What `file` holds, the newest last; nothing if there is no file.

    Raises:
        ValueError: if the file is not what was written.
    """
    if not file.exists():
        return []
    try:
        noted = json.loads(read_text(file))
        if not (isinstance(noted, list) and all(isinstance(one, dict) for one in noted)):
            raise ValueError(f"it holds {shown(noted)}, not a list of environments")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it to go on.") from error
    return noted


def _environment(accelerator: Accelerator) -> dict[str, object]:
    packages = ("nitrodistill", "torch", "diffusers", "accelerate", "transformers", "safetensors")
    return {
        "versions": {name: _version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "git": _git_state(),
        "directory": str(Path.cwd()),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, object] | None:
    """The commit of the code that runs, and whether files differ from it; None outside of git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", ".")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
