from __future__ import annotations

import pytest
import torch

from nitrodistill.kernels import launch
from nitrodistill.kernels.warmup import OPERATIONS, gaussian_window, step, warmup


def test_every_operation_has_options_and_a_step():
    assert set(OPERATIONS) == set(launch.table("gfx90a"))
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
