"""dmd in Triton against its definition."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.kernels.dmd import dmd, reference


def inputs(device, shape=(3, 4, 17, 9), dtype=torch.float32) -> list[torch.Tensor]:
    return [torch.randn(shape).to(device, dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients(check, device, dtype, weighted):
    weight = torch.rand(3, device=device) if weighted else None
    data = inputs(device, dtype=dtype)
    check(dmd, reference.dmd, data, (True, False, False), weight=weight)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2049), (2, 3, 5, 4, 6)])
def test_odd_sizes(check, device, shape):
    check(dmd, reference.dmd, inputs(device, shape), (True, False, False))


def test_layouts(check, device):
    data = inputs(device)
    data[1] = data[1].to(memory_format=torch.channels_last)
    data[0] = torch.randn(3, 8, 17, 9, device=device)[:, :4]
    check(dmd, reference.dmd, data, (True, False, False))


def test_teacher_that_agrees_gives_zero(device):
    x0, real, fake = inputs(device)
    real[1] = x0[1]
    x0.requires_grad_()
    loss = dmd(x0, real, fake)
    (gradient,) = torch.autograd.grad(loss.sum(), x0)
    assert loss[1] == 0
    assert not gradient[1].any()
    assert gradient[0].any()


def test_reproducible(device):
    data = inputs(device)
    assert torch.equal(dmd(*data), dmd(*data))
