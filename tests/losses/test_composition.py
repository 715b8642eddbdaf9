"""Losses of losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nitrodistill import losses as nl


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


def test_weighted_sum_is_the_sum_of_its_parts(make_pair):
    x, y = make_pair(2, 3, 16, 16)
    x.requires_grad_()
    parts = {"l1": nl.L1Loss(), "ssim": nl.SSIMLoss(1.0), "laplacian": nl.LaplacianPyramidLoss(3)}
    weights = {"l1": 1.0, "ssim": 0.5, "laplacian": 2.0}
    loss = nl.WeightedSum({name: (weights[name], part) for name, part in parts.items()})
    for options in ({}, {"weight": torch.tensor([0.0, 2.0]), "mask": torch.ones(2, 1, 16, 1)}):
        expected = sum(weights[name] * part(x, y, **options) for name, part in parts.items())
        torch.testing.assert_close(loss(x, y, **options), expected)
    values = loss.parts(x, y)
    for name, part in parts.items():
        torch.testing.assert_close(values[name], part.per_sample(x, y), rtol=0, atol=0)
    torch.testing.assert_close(loss.weigh(values), loss.per_sample(x, y), rtol=0, atol=0)
    (whole,) = torch.autograd.grad(loss(x, y), x)
    (weighed,) = torch.autograd.grad(loss.weigh(values).mean(), x)
    torch.testing.assert_close(weighed, whole)


def test_a_sum_goes_wherever_a_loss_goes(make_pair):
    x, y = make_pair(2, 3, 16, 16)
    inner = nl.WeightedSum({"l1": (2.0, nl.L1Loss()), "l2": (0.5, nl.L2Loss())})
    outer = nl.WeightedSum({"inner": (3.0, inner)}, reduction="none")
    torch.testing.assert_close(outer(x, y), 3 * inner.per_sample(x, y))
    scales = nl.MultiScaleLoss(inner, (1.0, 1.0))
    separate = [nl.MultiScaleLoss(part, (1.0, 1.0))(x, y) for part in (nl.L1Loss(), nl.L2Loss())]
    torch.testing.assert_close(scales(x, y), 2 * separate[0] + 0.5 * separate[1])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nl.WeightedSum({}), "got no losses"),
        (lambda: nl.WeightedSum({"a": (-1.0, nl.L1Loss())}), "the weight of 'a' is -1.0"),
        (lambda: nl.WeightedSum({"a": (1.0, nl.L1Loss(reduction="none"))}), "reduction 'none'"),
        (lambda: nl.WeightedSum({"a": (1.0, nl.L1Loss(reduction="sum"))}), "would not be used"),
        (lambda: nl.MultiScaleLoss(nl.L1Loss(reduction="sum")), "would not be used"),
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
