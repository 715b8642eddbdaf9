"""One test a feature, for all families."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.models import DiffusersDenoiser
from nitrodistill.types import Denoiser
from tests.models.families import FAMILIES, Family, inputs


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def denoiser(family: Family) -> DiffusersDenoiser:
    return family.make()[0]


@torch.no_grad()
def test_it_equals_a_hand_written_diffusers_call(family, denoiser):
    assert isinstance(denoiser, Denoiser)
    for size in family.sizes:
        x_t, t, condition = inputs(denoiser, size=size)
        theirs = family.call(denoiser.network, x_t, t, condition)
        found = denoiser(x_t, t, condition)
        assert found.shape == x_t.shape
        torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)
