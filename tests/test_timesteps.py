from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from nitrodistill.schedules import KarrasSchedule, RectifiedFlow
from nitrodistill.timesteps import (
    Histogram,
    Karras,
    LogitNormal,
    Shifted,
    TimestepLaw,
    Uniform,
    named_law,
)

R = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def kolmogorov(u: torch.Tensor, cdf) -> float:
    """Largest distance between the empirical distribution of `u` and `cdf`."""
    return float(stats.kstest(u.numpy(), cdf).statistic)


def test_uniform_on_one_range():
    u = Uniform(((0.2, 0.7),))(R)
    assert kolmogorov(u, stats.uniform(0.2, 0.5).cdf) < 1e-3


def test_uniform_on_several_ranges_draws_by_length():
    u = Uniform(((0.0, 0.1), (0.5, 0.8)))(R)
    assert not bool(((u > 0.1) & (u < 0.5)).any())
    assert float((u <= 0.1).double().mean()) == pytest.approx(0.25, abs=1e-3)
    assert float(u.max()) == pytest.approx(0.8, abs=1e-3)


def test_a_point_is_a_law():
    assert torch.equal(Uniform(((0.4, 0.4),))(R), torch.full_like(R, 0.4))


def test_logit_normal_has_its_quantiles():
    u = LogitNormal(mean=-0.3, std=1.2)(R)
    assert kolmogorov(torch.logit(u), stats.norm(-0.3, 1.2).cdf) < 1e-3


def test_shift_is_the_published_map_and_one_is_none():
    u = Shifted(3.0)(R)
    torch.testing.assert_close(u, 3 * R / (1 + 2 * R))
    assert torch.equal(Shifted(1.0, LogitNormal())(R), LogitNormal()(R))


def test_a_shifted_law_has_the_shifted_distribution():
    """u = s v / (1 + (s - 1) v) is below x where v is below x / (s - (s - 1) x)."""
    u = Shifted(3.0, LogitNormal(0.5, 0.8))(R)
    cdf = stats.norm(0.5, 0.8).cdf
    assert kolmogorov(u, lambda x: cdf(np.log(x / (3 - 2 * x) / (1 - x / (3 - 2 * x))))) < 1e-3


def test_karras_has_the_distribution_of_edms_grid():
    """P(sigma <= s) = (s^(1/7) - low) / (high - low); sigma is sigma / alpha of the flow at u."""
    law = Karras(0.01, 50.0, 7.0)
    scales = RectifiedFlow(t_max=1)(law(R))
    sigma = scales.sigma / scales.alpha
    low, high = 0.01 ** (1 / 7), 50.0 ** (1 / 7)
    assert kolmogorov(sigma, lambda s: (s ** (1 / 7) - low) / (high - low)) < 1e-3
    grid = KarrasSchedule(0.01, 50.0, 7.0)
    torch.testing.assert_close(sigma, grid(grid.timestep(Uniform()(R))).sigma)


def test_a_histogram_draws_its_bins_by_their_weights():
    u = Histogram((7, 0, 1, 2))(R)
    shares = [float(((u >= i / 4) & (u < (i + 1) / 4)).double().mean()) for i in range(4)]
    assert shares == pytest.approx([0.7, 0, 0.1, 0.2], abs=1e-4)
    within = u[u < 0.25]
    assert kolmogorov(within, stats.uniform(0, 0.25).cdf) < 1e-3
    edges = torch.tensor([0.0, 0.7001, 0.8, 1 - 2**-24, 1.0])
    assert (Histogram((7, 0, 1, 2))(edges) * 4).long().tolist() == [0, 2, 3, 3, 3]
    assert float(Histogram((1, 0))(torch.tensor(1.0))) < 0.5


@pytest.mark.parametrize(
    "law", [Uniform(), LogitNormal(), Shifted(2.0), Karras(), Histogram((1.0, 3.0, 0.0))]
)
def test_laws_rise_within_the_unit_interval(law):
    u = law(R)
    assert isinstance(law, TimestepLaw)
    assert bool((u.diff() >= 0).all())
    assert float(u.min()) >= 0
    assert float(u.max()) <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(((0.5, 0.2),)),
        lambda: Uniform(((0.0, 0.6), (0.5, 1.0))),
        lambda: Uniform(((0.0, 1.5),)),
        lambda: Uniform(()),
        lambda: LogitNormal(std=0),
        lambda: Shifted(0.0),
        lambda: Karras(2.0, 1.0),
        lambda: Karras(rho=0),
        lambda: Histogram((0.0, 0.0)),
        lambda: Histogram(()),
        lambda: Histogram((1.0, -1.0)),
    ],
)
def test_bad_values(make):
    with pytest.raises(ValueError, match=r"must be|give pairs"):
        make()


@pytest.mark.parametrize(
    ("spec", "law"),
    [
        ("uniform", Uniform()),
        ({"uniform": {"ranges": [[0, 0.75]]}}, Uniform(((0, 0.75),))),
        ({"logit_normal": {"mean": 1, "std": 1}}, LogitNormal(1, 1)),
        ({"shifted": {"shift": 3}}, Shifted(3)),
        ({"shifted": {"shift": 3, "law": "logit_normal"}}, Shifted(3, LogitNormal())),
        (
            {"shifted": {"shift": 3, "law": {"uniform": {"ranges": [[0.1, 1]]}}}},
            Shifted(3, Uniform(((0.1, 1),))),
        ),
        ({"karras": {"ratio_max": 40}}, Karras(ratio_max=40)),
        ({"histogram": {"weights": [7, 1, 1, 1]}}, Histogram((7, 1, 1, 1))),
        ("nitrodistill.timesteps:LogitNormal", LogitNormal()),
    ],
)
def test_laws_by_name(spec, law):
    assert named_law(spec) == law
    torch.testing.assert_close(named_law(spec)(R), law(R))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("unifrom", "the timestep law 'unifrom' is unknown; did you mean 'uniform'"),
        ({"logit_normal": {"mu": 1}}, "the setting of logit_normal 'mu' is unknown"),
        ({"logit_normal": {"std": 0}}, "logit_normal: std is 0.0; it must be finite and > 0"),
        (
            {"uniform": {"ranges": [0, 1]}},
            "uniform.ranges.0 is 0; it must be a list of 2, each a number",
        ),
        ({"shifted": {}}, "shifted needs shift"),
        ({"shifted": {"shift": 2, "law": {"unifom": {}}}}, "did you mean 'uniform'"),
        ({"uniform": {}, "shifted": {}}, "give a name, or one name with its settings"),
    ],
)
def test_laws_that_are_refused(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        named_law(spec)
