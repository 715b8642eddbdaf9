"""`nitrodistill.functional`: pure functions, one value per sample."""

from __future__ import annotations

import inspect

import pytest
import torch

from nitrodistill.losses import functional as nf

PAIRWISE = [
    ("l1_loss", {}),
    ("l2_loss", {}),
    ("smooth_l1_loss", {}),
    ("huber_loss", {}),
    ("pseudo_huber_loss", {}),
    ("charbonnier_loss", {}),
    ("ssim_loss", {"data_range": 1.0}),
    ("ms_ssim_loss", {"data_range": 1.0, "weights": (1.0,)}),
    ("laplacian_pyramid_loss", {"levels": 3}),
]


@pytest.mark.parametrize(("name", "options"), PAIRWISE)
def test_one_value_per_sample_and_inputs_untouched(name, options, make_pair):
    x, y = make_pair(3, 2, 16, 16)
    before = x.clone(), y.clone()
    state = torch.get_rng_state()
    assert getattr(nf, name)(x, y, **options).shape == (3,)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_all_names_exist_and_are_documented():
    for name in nf.__all__:
        assert inspect.getdoc(getattr(nf, name))
