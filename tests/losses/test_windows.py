"""The window and the constants of windowed losses."""

from __future__ import annotations

import pytest
import torch
from scipy.signal.windows import gaussian

from nitrodistill.losses.windows import channel_constant, gaussian_taps, per_channel


def test_taps_are_scipys_normalised_gaussian():
    for size, sigma in ((11, 1.5), (7, 0.8), (1, 1.0)):
        window = gaussian(size, sigma)
        assert gaussian_taps(size, sigma) == pytest.approx(tuple(window / window.sum()))


def test_one_number_or_one_per_channel():
    assert per_channel("data_range", 2, 3) == (2.0,)
    assert per_channel("data_range", [1, 2, 3], 3) == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="has 2 values but the data 3 channels"):
        per_channel("data_range", [1, 2], 3)


def test_constants_repeat_over_frames():
    device = torch.device("cpu")
    assert channel_constant((2.0,), 4, torch.float64, device) == 2.0
    constant = channel_constant((1.0, 2.0), 2, torch.float64, device)
    assert torch.equal(constant, torch.tensor([1.0, 1, 2, 2], dtype=torch.float64))
