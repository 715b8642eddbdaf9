"""Intervals: the textbook's width, and the same replicates for everybody."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.evaluation.resampling import Resampler, normal_interval, percentile_interval


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    values = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)) * 3
    replicates = Resampler(1000).means(values)[:, 0]
    error = values.std().item() / 1000**0.5
    low, high = percentile_interval(replicates)
    mean = values.mean().item()
    assert low == pytest.approx(mean - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.2 * error)
    low, high = normal_interval(mean, replicates)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_ninety_five_in_a_hundred_hold_the_truth() -> None:
    hits = 0
    for seed in range(100):
        values = torch.rand(60, 1, generator=torch.Generator().manual_seed(seed))
        low, high = percentile_interval(Resampler(100, seed).means(values)[:, 0])
        hits += low < 0.5 < high
    assert 88 <= hits <= 100


def test_equal_seeds_draw_equal_samples() -> None:
    first, second = (torch.stack(list(Resampler(5, 3).counts(20))) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first.sum(1), torch.full((5,), 20.0, dtype=torch.float64))
    assert not torch.equal(first[0], first[1])
    assert len(list(Resampler(5).counts(20, 2))) == 2


def test_a_normal_interval_is_cut_and_shrunk() -> None:
    replicates = torch.tensor([0.0, 2.0])
    deviation = 1.96 * 2**0.5
    assert normal_interval(1, replicates) == pytest.approx((1 - deviation, 1 + deviation))
    assert normal_interval(1, replicates, least=0)[0] == 0
    assert normal_interval(1, replicates, 0.5)[1] == pytest.approx(1 + deviation / 2)
