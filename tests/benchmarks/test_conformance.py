"""This library's own side of the comparison with a peer: every identity holds, and a wrong loss breaks one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def conformance(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("conformance")


def test_all_identities_hold_here(conformance):
    for identity in conformance.IDENTITIES:
        error = identity.error(conformance.Ours())
        assert conformance.holds(identity, error), (identity.name, error)


def test_a_normaliser_over_the_batch_breaks_what_it_should(conformance):
    class Batchwise(conformance.Ours):
        def matching(self, x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
            g = (fake - real) / (x0 - real).abs().mean()
            return (x0 - (x0 - g).detach()).square().mean() / 2

    broken = [
        i.name for i in conformance.IDENTITIES if not conformance.holds(i, i.error(Batchwise()))
    ]
    assert len(broken) == 4
    assert all(name.startswith("matching: ") for name in broken)
