"""Losses of losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nitrodistill import losses as nl
from nitrodistill.types import Terms


def test_multi_scale_is_the_sum_over_pooled_images(make_pair):
    x, y = make_pair(2, 3, 16, 24)
    expected = sum(
        w * (F.avg_pool2d(x, s) - F.avg_pool2d(y, s)).abs().mean()
        for w, s in ((1.0, 1), (0.5, 2), (0.25, 4))
    )
    loss = nl.MultiScaleLoss(nl.L1Loss(), (1.0, 0.5, 0.25))
    torch.testing.assert_close(loss(x, y), expected)


def test_multi_scale_covers_odd_sizes_and_pools_masks(make_pair):
    x, y = make_pair(1, 1, 5, 7)
    loss = nl.MultiScaleLoss(nl.L1Loss(), (0.0, 1.0))
    pooled = [F.avg_pool2d(t, 2, ceil_mode=True, count_include_pad=False) for t in (x, y)]
    assert pooled[0].shape == (1, 1, 3, 4)
    torch.testing.assert_close(loss(x, y), (pooled[0] - pooled[1]).abs().mean())
    mask = torch.zeros(1, 1, 5, 7)
    mask[..., 4, 6] = 1
    corner = (x - y)[0, 0, 4, 6].abs()
    torch.testing.assert_close(loss(x, y, mask=mask), corner)


def test_weighted_sum_returns_terms(make_pair):
    x, y = make_pair(2, 3, 16, 16)
    x.requires_grad_()
    parts = {"l1": nl.L1Loss(), "ssim": nl.SSIMLoss(1.0), "laplacian": nl.LaplacianPyramidLoss(3)}
    weights = {"l1": 1.0, "ssim": 0.5, "laplacian": 2.0}
    loss = nl.WeightedSum({name: (weights[name], part) for name, part in parts.items()})
    for options in ({}, {"weight": torch.tensor([0.0, 2.0]), "mask": torch.ones(2, 1, 16, 1)}):
        terms = loss(x, y, **options)
        assert isinstance(terms, Terms)
        values = {name: part(x, y, **options) for name, part in parts.items()}
        torch.testing.assert_close(terms.total, sum(weights[n] * v for n, v in values.items()))
        for name, value in values.items():
            assert not terms.parts[name].requires_grad
            torch.testing.assert_close(terms.parts[name], value.detach())
    terms.total.backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nl.WeightedSum({}), "got no losses"),
        (lambda: nl.WeightedSum({"a": (-1.0, nl.L1Loss())}), "the weight of 'a' is -1.0"),
        (lambda: nl.WeightedSum({"a": (1.0, nl.L1Loss(reduction="none"))}), "reduction 'none'"),
        (lambda: nl.MultiScaleLoss(nl.L1Loss(), ()), "weights is empty"),
        (
            lambda: nl.MultiScaleLoss(nl.L1Loss(), (1.0,) * 4)(*torch.rand(2, 1, 1, 7, 9)),
            "sides of 8 or more",
        ),
    ],
)
def test_bad_options(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_an_entry_without_its_weight():
    with pytest.raises(TypeError, match="the loss 'a' is given as L1Loss; give it as"):
        nl.WeightedSum({"a": nl.L1Loss()})
