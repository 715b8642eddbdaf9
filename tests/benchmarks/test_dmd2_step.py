"""The profile that is kept: the operators that take longest, with their share of the time."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch


def test_the_profile_names_the_operator_that_takes_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    dmd2_step = importlib.import_module("dmd2_step")
    a, b = torch.randn(2, 512, 512)

    def call() -> None:
        for _ in range(4):
            (a @ b).relu()

    found = dmd2_step.profiled(call, "cpu", most=2)
    first, second = found
    assert (first["operator"], first["calls"]) == ("aten::mm", 4)
    assert 1 >= first["share"] > second["share"] >= 0
