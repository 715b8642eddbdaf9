"""Fast means of losses with a root against the formula that the kernels share."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.kernels.x0_loss.reference import elementwise_loss
from nitrodistill.losses import rooted
from nitrodistill.losses.rooted import rooted_mean


@pytest.mark.parametrize("loss", ["pseudo_huber", "charbonnier"])
@pytest.mark.parametrize("piece", [7, 50, 1 << 17])
def test_formula_in_pieces(loss, piece, make_pair, monkeypatch):
    monkeypatch.setattr(rooted, "_PIECE", piece)
    x, y = (tensor.requires_grad_() for tensor in make_pair(3, 2, 4, 5))
    value = rooted_mean(x, y, loss, 0.1)
    expected = elementwise_loss(x - y, loss, 0.1).flatten(1).mean(1)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    factor = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    mine = torch.autograd.grad(value @ factor, (x, y))
    for grad, other in zip(mine, torch.autograd.grad(expected @ factor, (x, y)), strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        torch.testing.assert_close(rooted_mean(x, y, loss, 0.1), value, rtol=1e-13, atol=0)


def test_gradients_under_vmap(make_pair):
    x, y = make_pair(3, 2, 4, 5)

    def total(a, b):
        return rooted_mean(a, b, "pseudo_huber", 0.1).sum()

    batched = torch.func.vmap(torch.func.grad(total))(x, y)
    each = torch.stack([torch.func.grad(total)(a, b) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(batched, each)
    shared = torch.func.vmap(total, in_dims=(0, None))(x, y[0])
    torch.testing.assert_close(shared, torch.stack([total(a, y[0]) for a in x]))
