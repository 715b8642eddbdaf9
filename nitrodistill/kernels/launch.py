"""Launch tables: block sizes and warps per architecture, fixed ahead of time.

No autotuning: it would compile and time at the start of a training run, differently on every rank, and
change the order of reductions from run to run. `tables/<architecture>.json` holds the numbers, and
under "proven" the operations that a committed measurement (`results`) shows to win there: these
run by default. In the repository, `python -m tools.kernels.tune` writes such a table.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

_F = TypeVar("_F", bound=Callable[..., Any])

Options = Mapping[str, int]
"""Block sizes ("block", "rows", ...) and "warps" of one operation's kernels."""

TABLES = Path(__file__).parent / "tables"


def constant(function: _F) -> _F:
    """`torch.compiler.assume_constant_result` without its import of torch._dynamo, which takes seconds."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant
@functools.cache
def architecture(index: int) -> str:
    """The architecture of GPU `index`: "sm_90", "gfx90a", ..."""
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def options(operation: str, device: torch.device) -> Options:
    """The launch options of `operation` on a device; a CPU has its own, for the interpreter."""
    name = "interpreter" if device.type == "cpu" else architecture(device.index or 0)
    return table(name)[operation]


@functools.cache
def table(architecture: str) -> dict[str, Options]:
    """The launch options of every kernel on `architecture`, or on its nearest listed relative."""
    return _read(_nearest(architecture))["launch"]


@functools.cache
def proven(architecture: str) -> frozenset[str]:
    """The operations that a committed measurement on exactly this architecture shows to win."""
    if not (TABLES / f"{architecture}.json").exists():
        return frozenset()
    return frozenset(_read(architecture)["proven"])


def results(architecture: str) -> str | None:
    """The committed results file behind `proven`, relative to the repository; None where pending."""
    if not (TABLES / f"{architecture}.json").exists():
        return None
    return _read(architecture)["results"]


def _read(architecture: str) -> dict:
    return json.loads((TABLES / f"{architecture}.json").read_text())


def _nearest(architecture: str) -> str:
    if (TABLES / f"{architecture}.json").exists():
        return architecture
    if architecture.startswith("gfx"):
        return "gfx942" if architecture.startswith(("gfx94", "gfx95")) else "gfx90a"
    number = int(architecture.removeprefix("sm_")) if architecture.startswith("sm_") else 90
    return "sm_90" if number >= 90 else "sm_80"
