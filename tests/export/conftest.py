"""Students to export, and a self-test whose process is this one (a fresh one costs ten seconds)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nitrodistill.export import self_test as testing
from nitrodistill.models import DiffusersDenoiser, Pipeline


def run_here(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
    """Runs the script of the fresh process in this one."""
    executable, flag, script, *arguments = command
    assert (executable, flag) == (sys.executable, "-c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", *arguments])
        exec(script, {"__name__": "__main__"})
    return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test starts no process."""
    monkeypatch.setattr(testing.subprocess, "run", run_here)


@pytest.fixture(scope="session")
def trained() -> Callable[[Pipeline], DiffusersDenoiser]:
    """`trained(pipeline)`: a student that differs from its teacher."""

    def make(pipeline: Pipeline) -> DiffusersDenoiser:
        student = pipeline.denoiser.copy()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in student.module.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        student.module.train()
        return student

    return make
