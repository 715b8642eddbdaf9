from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from nitrodistill.kernels import launch
from tools.kernels import tune
from tools.kernels.steps import OPERATIONS


def test_search_finds_the_bottom_of_a_valley():
    def cost(options: Mapping[str, int]) -> float:
        if options["block"] > 8192:
            return float("inf")  # does not compile
        return abs(options["block"] - 4096) + 10 * abs(options["warps"] - 8) + 1.0

    best, time = tune.search({"block": 1024, "warps": 2}, cost)
    assert best == {"block": 4096, "warps": 8}
    assert time == 1.0


def test_search_ignores_noise_and_respects_limits():
    assert tune.search({"warps": 8}, lambda options: 1.0 - options["warps"] * 1e-4)[0] == {
        "warps": 8
    }
    assert tune.search({"warps": 4}, lambda options: 1 / options["warps"])[0] == {"warps": 8}


def test_every_operation_has_shapes():
    assert set(tune.SHAPES) == set(OPERATIONS)


def test_without_a_gpu_tuning_says_so(capsys):
    assert tune.main([]) == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_a_table_round_trips(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(launch, "architecture", lambda index: "sm_80")
    monkeypatch.setattr(tune, "milliseconds", lambda operation, options: float(options["warps"]))
    path = tmp_path / "sm_80.json"
    assert tune.main(["--operations", "dmd", "--output", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["launch"]["dmd"]["warps"] == 1
    assert written["launch"]["ssim"] == launch.table("sm_80")["ssim"]
    assert written["proven"] == []
