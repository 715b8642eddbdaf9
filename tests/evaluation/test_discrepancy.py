"""Kernel distances: closed form on Gaussians, torch-fidelity's sums, and what pairs must not do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kernel_poly, kernel_rbf, mmd2

from nitrodistill.evaluation.discrepancy import Kernel, KernelDistance

FEATURES = 8


def normal(n: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, FEATURES, generator=generator, dtype=torch.float64) + shift


def expected_kid(shift: float) -> float:
    """E k(x, x') + E k(y, y') - 2 E k(x, y) for x ~ N(0, I), y ~ N(m, I), from the moments of x.y."""
    a, f = FEATURES * shift**2, FEATURES
    equal = 1 + 3 / f  # the whole times 1000
    shifted = (
        1 + 3 * a / f + 3 * (a**2 + 2 * a + f) / f**2 + (a**3 + 3 * a * (2 * a + f) + 6 * a) / f**3
    )
    return 1000 * (equal + shifted - 2 * (1 + 3 * (a + f) / f**2))


def test_kid_of_two_gaussians() -> None:
    distance = KernelDistance(normal(3000, 0), normal(3000, 1, 0.5))
    interval = distance.interval()
    assert interval is not None
    low, high = interval
    assert low < expected_kid(0.5) < high
    assert high - low < 0.2 * expected_kid(0.5)


def test_it_is_unbiased_even_between_pairs() -> None:
    """y_i = x_i + noise: the common estimator would be 2 / n (E k(x, x) - ...) off."""
    values = []
    for seed in range(150):
        x = normal(16, seed)
        values.append(KernelDistance(x, 0.8 * x + 0.6 * normal(16, 1000 + seed)).value())
    error = torch.tensor(values)
    assert abs(error.mean()) < 2.5 * error.std() / math.sqrt(len(values))


def test_equal_sets_have_none() -> None:
    x = normal(130, 0)
    distance = KernelDistance(x, x)
    assert distance.value() == 0
    assert distance.interval() == (0, 0)


def test_sets_of_one_distribution_have_0_in_the_interval() -> None:
    inside = 0
    for seed in range(20):
        distance = KernelDistance(normal(80, seed), normal(80, 100 + seed))
        low, high = distance.interval() or (0, 0)
        inside += low < 0 < high
    assert inside >= 18


@pytest.mark.parametrize("kernel", ["cubic", "gaussian"])
def test_it_is_torch_fidelitys_statistic(kernel: Kernel) -> None:
    x, y = normal(123, 0), normal(123, 1, 0.3)
    if kernel == "cubic":
        k = [kernel_poly(a.numpy(), b.numpy()) for a, b in ((x, x), (x, y), (y, y))]
    else:
        u, v = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
        pairs = ((u, u), (u, v), (v, v))
        k = [kernel_rbf(a.numpy(), b.numpy(), kid_kernel_rbf_sigma=10.0) for a, b in pairs]
    expected = 1000 * mmd2(*k, mmd_est="u-statistic")
    assert KernelDistance(x, y, kernel).value() == pytest.approx(expected, rel=1e-9)


def test_the_interval_is_the_jackknifes() -> None:
    """From values without each pair, over more than one block."""
    x, y = normal(530, 0), normal(530, 1, 0.3)
    distance, rows = KernelDistance(x, y), torch.arange(530)
    without = [KernelDistance(x[rows != i], y[rows != i]).value() for i in range(6)]
    sums, n = distance._sums, 530
    expected = ((sums.sum() - 2 * sums) / ((n - 1) * (n - 2)))[:6]
    assert without == pytest.approx(expected.tolist(), rel=1e-9)
    assert KernelDistance(x[:2], y[:2]).interval() is None


def test_too_few_and_unlike_features_are_refused() -> None:
    with pytest.raises(ValueError, match="of the same feature extractor"):
        KernelDistance(normal(5, 0), normal(5, 0)[:, :3])
    with pytest.raises(ValueError, match="n >= 2"):
        KernelDistance(normal(1, 0), normal(1, 0))
    with pytest.raises(ValueError, match="'cubic', 'gaussian'"):
        KernelDistance(normal(5, 0), normal(5, 0), "linear")  # pyright: ignore[reportArgumentType]
