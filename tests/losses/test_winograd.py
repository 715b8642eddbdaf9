"""Winograd's convolution against the direct one, whose products it saves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.losses.winograd import Conv3x3


def direct(conv: Conv3x3, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, padding=1)


def make(dtype: torch.dtype) -> Conv3x3:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Conv3x3(128, 160).to(dtype).requires_grad_(False)


def draw(height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 128, height, width, generator=generator, dtype=dtype)


@pytest.mark.parametrize(("height", "width"), [(8, 16), (11, 13), (128, 1)])
def test_the_value_and_two_derivatives_are_those_of_the_sum(height, width):
    conv, x = make(torch.float64), draw(height, width).requires_grad_()
    mine, theirs = conv(x), direct(conv, x)
    assert "Winograd" in str(mine.grad_fn.next_functions[0][0])
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)
    found, expected = [], []
    for value, into in ((mine, found), (theirs, expected)):
        (first,) = torch.autograd.grad(value.sin().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        into += [first, second]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_rounding_is_that_of_the_direct_sum():
    conv, x = make(torch.float32), draw(32, 32, torch.float32)
    exact = direct(make(torch.float64), x.double())
    mine, theirs = ((y - exact).abs().max() for y in (conv(x), direct(conv, x)))
    assert mine < 3 * theirs < 1e-5


def test_other_weights_are_seen():
    conv, x = make(torch.float64), draw(8, 16)
    bias = conv.bias[:, None, None]
    before = conv(x)
    conv.weight.mul_(2)
    torch.testing.assert_close(conv(x) - bias, 2 * (before - bias))
    conv.load_state_dict(make(torch.float64).state_dict())
    assert torch.equal(conv(x), before)
    torch.testing.assert_close(conv.float()(x.float()), before.float(), rtol=0, atol=1e-5)


def test_weights_that_learn_and_few_positions_have_the_direct_sum():
    conv, x = make(torch.float32), draw(16, 16, torch.float32)
    assert torch.equal(conv(x[:1, :, :8, :8]), direct(conv, x[:1, :, :8, :8]))
    conv.requires_grad_()
    assert torch.equal(conv(x), direct(conv, x))
    conv(x).sum().backward()
    assert conv.weight.grad is not None


def test_what_was_seen_without_gradients_has_them_later():
    conv, x = make(torch.float32), draw(16, 16, torch.float32)
    with torch.inference_mode():
        before = conv(x)
        made_here = make(torch.float32)
        assert torch.equal(made_here(x), direct(conv, x))
    given = x.clone().requires_grad_()
    after = conv(given)
    assert torch.equal(after, before)
    (found,) = torch.autograd.grad(after.sum(), given)
    (expected,) = torch.autograd.grad(direct(conv, given).sum(), given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_weights_in_the_memory_of_former_ones_are_seen():
    conv, x = make(torch.float32), draw(16, 16, torch.float32)
    for _ in range(8):
        conv(x)
        for _ in range(2):  # the second ones get the memory that the first ones had set free
            conv.weight.data = torch.randn(conv.weight.shape)
        torch.testing.assert_close(conv(x), direct(conv, x), rtol=0, atol=1e-3)


def test_transforms_of_functions_see_the_direct_sum():
    conv, x = make(torch.float64), draw(8, 16)
    found = torch.func.grad(lambda z: conv(z).sin().sum())(x)
    expected = torch.func.grad(lambda z: direct(conv, z).sin().sum())(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
