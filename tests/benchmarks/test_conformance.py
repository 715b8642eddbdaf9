"""This library's own side of the comparison with peers: every identity holds, and a wrong loss breaks one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
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

    assert broken(conformance, Batchwise()) == [
        "matching: a sample's scale leaves its gradient",
        "matching: no sample changes another one's",
        "matching: small differences in bfloat16",
    ]


def test_a_gradient_without_its_normaliser_breaks_the_scores(conformance):
    class Plain(conformance.Ours):
        def matching(self, x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
            return ((x0 - (x0 - (fake - real)).detach()) ** 2).mean() / 2

    assert "matching: exact scores of a Gaussian mixture" in broken(conformance, Plain())


def test_what_a_peer_does_not_offer_is_a_dash(conformance):
    class Guides(conformance.Code):
        def guided(self, conditional: Tensor, null: Tensor, scale: float) -> Tensor:
            return null + scale * (conditional - null)

    found = conformance.errors(Guides())
    offered = [i.name for i, e in zip(conformance.IDENTITIES, found, strict=True) if e != "-"]
    assert offered == ["guidance: 1 is conditional, s is linear"]


def test_a_cell_is_bold_beyond_the_bound_and_says_what_is_not_promised(conformance):
    identity = conformance.Identity("one", lambda code: 0.0, 0.1)
    cells = [conformance.cell(identity, error, "") for error in (0.05, 0.2, "-")]
    assert cells == ["5.0e-02", "**0.2** (not promised)", "-"]
    assert conformance.cell(identity, 0.2, "its sentence") == "**0.2**"


def test_the_teacher_is_read_from_the_gradient_of_the_loss(conformance):
    teacher = conformance.randn(4, 5)
    x0 = torch.ones(4, 6, dtype=torch.float64, requires_grad=True)
    padded = flow_codes().padded(teacher)
    loss = conformance.Ours().matching(x0, padded, x0.detach())
    assert torch.allclose(flow_codes().unnormalised(loss, x0), teacher, rtol=0, atol=1e-12)


def flow_codes() -> Any:
    return importlib.import_module("_flow_codes")


def broken(conformance: Any, code: Any) -> list[str]:
    found = zip(conformance.IDENTITIES, conformance.errors(code), strict=True)
    return [identity.name for identity, e in found if not conformance.holds(identity, e)]
