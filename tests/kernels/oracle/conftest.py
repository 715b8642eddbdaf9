"""Fused kernels against the float64 reference on the same rounded inputs.

`tests/kernels/test_interpreter.py` runs these files on a CPU in Triton's interpreter;
`benchmarks/kernels.py` and `pytest -m gpu tests/kernels` run them on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from nitrodistill import kernels
from nitrodistill.kernels import backend

LOSS = 1e-6
GRADIENT = 2e-6
ROUNDING = 1.05

Check = Callable[..., None]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The CPU in the interpreter, else the GPU."""
    return torch.device("cpu") if backend.INTERPRETED else torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fused() -> Iterator[None]:
    """Every case runs the Triton kernels."""
    torch.manual_seed(0)
    with kernels.use("triton"):
        yield


@pytest.fixture
def check() -> Check:
    """`check(function, reference, data, wanted, **keywords)`: values and gradients agree."""
    return compare


def compare(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    data: Sequence[Tensor],
    wanted: Sequence[bool],
    **keywords: Any,
) -> None:
    inputs = [t.detach().requires_grad_(w) for t, w in zip(data, wanted, strict=True)]
    loss = function(*inputs, **keywords)
    if any(wanted):
        assert loss.grad_fn is not None
    exact_inputs = [
        t.detach().double().requires_grad_(w) for t, w in zip(data, wanted, strict=True)
    ]
    exact = reference(*exact_inputs, **keywords)
    assert loss.dtype == torch.float32
    assert loss.shape == exact.shape
    scale = exact.abs().amax().clamp_min(1e-30)
    assert ((loss - exact).abs() <= LOSS * exact.abs() + 1e-7 * scale).all(), (loss, exact)
    if not any(wanted):
        return
    upstream = torch.rand_like(exact) + 0.5
    found = torch.autograd.grad(loss, [t for t in inputs if t.requires_grad], upstream.float())
    true = torch.autograd.grad(
        exact, [t for t in exact_inputs if t.requires_grad], upstream.float().double()
    )
    for tensor, got, want in zip([t for t in inputs if t.requires_grad], found, true, strict=True):
        assert got.dtype == tensor.dtype
        assert got.isfinite().all()
        assert_gradient(got, want)


def assert_gradient(got: Tensor, want: Tensor) -> None:
    """Within 2e-6 of the largest; in half precision within 1.05 of rounding the true gradient."""
    largest = want.abs().max()
    error = (got.double() - want).abs()
    allowed = GRADIENT * largest
    if backend.INTERPRETED and got.dtype == torch.bfloat16:
        # The interpreter truncates where GPUs round to nearest: off by up to one unit.
        allowed = allowed + want.abs() * 2**-7
    elif got.dtype != torch.float32:
        allowed = allowed + ROUNDING * (want.to(got.dtype).double() - want).abs().max()
    assert (error <= allowed).all(), f"gradient off by {error.max() / largest:.1e} of its largest"
