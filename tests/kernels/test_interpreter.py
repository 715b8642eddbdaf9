"""Runs the oracle suite in Triton's interpreter, in processes of its own: one that interprets cannot
compile ahead of time, and Triton decides at its import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ORACLE = Path(__file__).parent / "oracle"
FILES = sorted(path.name for path in ORACLE.glob("[!c]*.py"))


def test_every_operation_has_an_oracle():
    kernels = Path(__file__).parents[2] / "nitrodistill" / "kernels"
    operations = {path.parent.name for path in kernels.glob("*/triton.py")}
    assert operations <= {name.removesuffix(".py") for name in FILES}


@pytest.mark.parametrize("name", FILES)
def test_oracle(name: str):
    environment = {key: v for key, v in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--show-capture=no"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", str(ORACLE / name)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
