"""The benchmark of LatentLPIPS: its rank correlations and their table."""

from __future__ import annotations

import pytest
import torch

from benchmarks.latent_lpips import FIT, FRACTIONS, FeatureRow, estimates, features_table
from nitrodistill.training.latent_lpips import rank_correlation


def test_a_difference_from_the_fit_is_taken_on_the_same_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.latent_lpips.REPLICATES", 40)
    generator = torch.Generator().manual_seed(0)
    truth, noise = torch.rand(2, 200, generator=generator)
    fitted = truth + noise
    own, less = estimates(truth.exp(), fitted, truth)
    assert own == pytest.approx((1.0, 1.0, 1.0))
    assert less[0] == pytest.approx(1 - rank_correlation(fitted, truth))
    assert 0 < less[1] < less[0] < less[2]
    assert estimates(fitted, fitted, truth)[1] == (0.0, 0.0, 0.0)


def test_the_table_of_features() -> None:
    rows = [FeatureRow("teacher", u, (u, 0.0, 1.0), (0.2, 0.1, 0.3)) for u in FRACTIONS]
    rows.append(FeatureRow(FIT, None, (0.5, 0.4, 0.6), (0.0, 0.0, 0.0)))
    *_, teacher, fit = features_table(rows).splitlines()
    assert teacher == (
        "| teacher | 0.020 | 0.100 | 0.250 | 0.500 | 0.750 | 0.100 (0.000 to 1.000) | +0.200 (+0.100 to +0.300) |"
    )
    assert fit == f"| {FIT} |  |  |  |  |  | 0.500 (0.400 to 0.600) |  |"
