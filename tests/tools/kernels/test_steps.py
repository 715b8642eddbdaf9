from __future__ import annotations

import pytest
import torch

from nitrodistill.kernels import launch
from tools.kernels.steps import OPERATIONS, step


def test_every_operation_has_options_and_a_step():
    assert set(OPERATIONS) == set(launch.table("gfx90a"))
    for operation in OPERATIONS:
        step(
            operation, (1, 4, 8, 8) if operation != "ssim" else (1, 1, 12, 12), "cpu", torch.float32
        )()
    with pytest.raises(ValueError, match="'ema' is unknown"):
        step("ema", (1, 1), "cpu", torch.float32)
