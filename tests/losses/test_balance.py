from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nitrodistill.losses.balance import balance

X0 = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
SLOPE = torch.tensor([[0.6, 0.0], [0.0, -0.8]])


def alone(values: Tensor) -> Tensor:
    return values


def terms_of(latents: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    """|x|^2 / 2, whose gradient x has norm 5, and scale <slope, x>, whose gradient has norm scale."""
    return {
        "reconstruction": latents.square().sum() / 2,
        "adversarial": scale * (SLOPE * latents).sum(),
    }


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("gap", "share"), [(-1.0, 0.0), (0.0, 0.0), (0.25, 0.25), (7.0, 1.0)])
def test_lambda_is_the_ratio_of_norms_times_the_gap(scale, gap, share):
    """The term's own scale cancels; most = 2, so the adversarial gradient has norm 2 share 5."""
    x0, latents = (X0.clone().requires_grad_() for _ in range(2))
    found = balance(x0, latents, terms_of(latents, scale), torch.full((3,), gap), 2.0, alone)
    torch.testing.assert_close(found["reconstruction"].detach(), torch.tensor(12.5))
    torch.testing.assert_close(found["adversarial"].detach(), torch.tensor(10 * share * -1.4))
    for name, gradient in (("reconstruction", X0), ("adversarial", 10 * share * SLOPE)):
        torch.testing.assert_close(torch.autograd.grad(found[name], x0)[0], gradient)


def test_norms_and_gaps_are_those_of_all_processes():
    """Two processes with gradients of norms 3 and 4, and gaps of .2 and .6: lambda = 1 * (.4 - .2) * 5 / 1."""
    told: list[Tensor] = []

    def of_one(row: int, gap: float, gather) -> Tensor:
        x0, latents = (X0[row].clone().requires_grad_() for _ in range(2))
        terms = {
            "reconstruction": latents.square().sum() / 2,
            "adversarial": (SLOPE[row] * latents).sum(),
        }
        found = balance(x0, latents, terms, torch.tensor([gap]), 1.0, gather)
        return torch.autograd.grad(found["adversarial"], x0)[0]

    def listen(values: Tensor) -> Tensor:
        told.append(values)
        return values

    gaps = (0.2, 0.6)
    for row, gap in enumerate(gaps):
        of_one(row, gap, listen)
    for row, gap in enumerate(gaps):
        found = of_one(row, gap, lambda _: torch.cat(told))
        torch.testing.assert_close(found, SLOPE[row])


@pytest.mark.parametrize(
    ("gaps", "share"),
    [((0.1, 0.5, 0.3), 0.3 - 0.2 / 3**0.5), ((-1.0, 1.1), 0), ((0.9,), 0)],
)
def test_a_gap_counts_as_far_as_it_is_above_its_standard_error(gaps, share):
    x0, latents = (X0.clone().requires_grad_() for _ in range(2))
    found = balance(x0, latents, terms_of(latents), torch.tensor(gaps), 1.0, alone)
    (gradient,) = torch.autograd.grad(found["adversarial"], x0)
    torch.testing.assert_close(gradient, 5 * share * SLOPE)


def test_no_gradient_is_no_division_by_zero():
    """A discriminator that is flat, or a micro-batch without fresh samples."""
    x0, latents = (X0.clone().requires_grad_() for _ in range(2))
    for gap in (torch.ones(3), torch.ones(0)):
        found = balance(x0, latents, terms_of(latents, 0.0), gap, 2.0, alone)
        (gradient,) = torch.autograd.grad(found["adversarial"], x0, retain_graph=True)
        assert torch.equal(gradient, torch.zeros(2, 2))
