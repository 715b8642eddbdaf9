"""What only a GPU can show: sizes beyond 32-bit offsets, and the same bits at every run."""

from __future__ import annotations

import pytest
import torch

from nitrodistill import kernels
from nitrodistill.kernels.dmd import dmd
from nitrodistill.kernels.lpips_head import lpips_head
from nitrodistill.kernels.x0_loss import x0_loss
from tools.kernels.steps import OPERATIONS, step

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fused():
    with kernels.use("triton"):
        yield
    torch.cuda.empty_cache()


def test_tensors_beyond_two_to_the_31():
    """Three samples of 2^30 elements; the last one alone must come out the same."""
    output = torch.randn(3, 2**30, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    target = torch.zeros(1, 1, device=DEVICE, dtype=torch.bfloat16).expand(3, 2**30)
    target = target.contiguous()
    scales = torch.full((3,), 0.6, device=DEVICE), torch.full((3,), 0.8, device=DEVICE)
    loss = x0_loss(output, target, target, *scales, prediction_type="epsilon")
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    last = output[2:].detach().requires_grad_()
    alone = x0_loss(
        last, target[2:], target[2:], scales[0][2:], scales[1][2:], prediction_type="epsilon"
    )
    (expected,) = torch.autograd.grad(alone.sum(), last)
    torch.testing.assert_close(loss[2:], alone, rtol=1e-5, atol=0)
    assert torch.equal(gradient[2:], expected)
    del gradient, expected
    torch.testing.assert_close(
        dmd(output, target, target + 1)[2:], dmd(last, target[2:], target[2:] + 1)
    )


def test_features_beyond_two_gibibytes():
    fx = torch.rand(5, 64, 2048, 2048, device=DEVICE, dtype=torch.bfloat16)
    fy = torch.rand(5, 64, 2048, 2048, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.rand(64, device=DEVICE)
    torch.testing.assert_close(lpips_head(fx, fy, weight)[4:], lpips_head(fx[4:], fy[4:], weight))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_ten_runs_give_the_same_bits(operation):
    shape = (4, 64, 64, 64) if operation == "lpips_head" else (4, 4, 128, 128)
    run = step(operation, shape, DEVICE, torch.float32)
    first = _tensors(run())
    for _ in range(9):
        assert all(torch.equal(a, b) for a, b in zip(first, _tensors(run()), strict=True))


def _tensors(result) -> list[torch.Tensor]:
    return result if isinstance(result, list) else [result]
