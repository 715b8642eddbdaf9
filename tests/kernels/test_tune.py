from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import torch

from nitrodistill.kernels import launch, tune
from nitrodistill.kernels.warmup import OPERATIONS, gaussian_window, step, warmup


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


def test_every_operation_has_shapes_options_and_a_step():
    assert set(OPERATIONS) == set(tune.SHAPES) == set(launch.table("gfx90a"))
    for operation in OPERATIONS:
        step(
            operation, (1, 4, 8, 8) if operation != "ssim" else (1, 1, 12, 12), "cpu", torch.float32
        )()
    with pytest.raises(ValueError, match="'ema' is unknown"):
        step("ema", (1, 1), "cpu", torch.float32)


def test_warmup_runs_every_operation_on_a_cpu_too():
    warmup([(1, 2, 12, 12)], device="cpu", dtype=torch.bfloat16)


def test_gaussian_window():
    taps = gaussian_window()
    assert len(taps) == 11
    assert sum(taps) == pytest.approx(1.0)
    assert taps == taps[::-1]
    assert taps[6] / taps[5] == pytest.approx(torch.tensor(-1 / 4.5).exp().item())


def test_without_a_gpu_tuning_says_so(capsys):
    assert tune.main([]) == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_a_table_round_trips(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(launch, "architecture", lambda index: "sm_80")
    monkeypatch.setattr(tune, "measure", lambda operation, options: float(options["warps"]))
    path = tmp_path / "sm_80.json"
    assert tune.main(["--operations", "dmd", "--output", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["launch"]["dmd"]["warps"] == 1
    assert written["launch"]["ssim"] == launch.table("sm_80")["ssim"]
    assert written["proven"] == []
