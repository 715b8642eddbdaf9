"""Winograd's convolution against torch's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from nitrodistill.losses import winograd
from nitrodistill.losses.winograd import FrozenConv3x3


def make_layer(channels, width):
    layer = FrozenConv3x3(channels, width).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def make_image(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("tiles", [1, 5, 1000])  # rows in blocks, samples in blocks, all at once
@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 6), (7, 3), (1, 1), (2, 1)])
def test_the_formula(height, width, tiles, monkeypatch):
    monkeypatch.setattr(winograd, "_TILES", tiles)
    layer = make_layer(4, 3).double()
    image = make_image(3, 4, height, width).requires_grad_()
    value = winograd._Convolution.apply(image, layer._kernel(), layer.bias, False)
    expected = F.conv2d(image, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-13)
    factor = make_image(*value.shape)
    (mine,) = torch.autograd.grad(value, image, factor)
    (other,) = torch.autograd.grad(expected, image, factor)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-13)


def test_derivatives():
    layer = make_layer(2, 3).double()
    image = make_image(2, 2, 3, 4).requires_grad_()

    def squared(x):
        return winograd._Convolution.apply(x, layer._kernel(), layer.bias, False).square()

    assert torch.autograd.gradcheck(squared, (image,))
    assert torch.autograd.gradgradcheck(squared, (image,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_no_less_accurate_than_a_direct_convolution(layout):
    layer = make_layer(256, 128)
    image = make_image(1, 256, 17, 12, dtype=torch.float32).contiguous(memory_format=layout)
    image.requires_grad_()
    wide = image.detach().double().requires_grad_()
    values = [layer(image), F.conv2d(image, layer.weight, layer.bias, padding=1)]
    truth = copy.deepcopy(layer).double()(wide)
    factor = make_image(*truth.shape, dtype=torch.float32)
    gradients = [torch.autograd.grad(value, image, factor)[0] for value in values]
    (true_gradient,) = torch.autograd.grad(truth, wide, factor.double())
    for (mine, direct), true in ((values, truth), (gradients, true_gradient)):
        error, others = ((found - true).norm() / true.norm() for found in (mine, direct))
        assert error < max(4e-7, 1.2 * others)
    assert all(torch.equal(layer(image), values[0]) for _ in range(3))


def test_follows_the_weight():
    layer = make_layer(4, 4)
    image = make_image(1, 4, 6, 6, dtype=torch.float32)

    def check(layer):
        expected = F.conv2d(image, layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(image), expected, rtol=1e-5, atol=1e-5)

    check(layer)
    layer.weight.mul_(2)
    check(layer)
    layer.load_state_dict(make_layer(4, 4).state_dict())
    check(layer)
    layer.weight.data = layer.weight + 1
    check(layer)
    twin = copy.deepcopy(layer)
    twin.weight.neg_()
    check(twin)
    check(layer)
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_what_winograd_does_not_suit_is_an_ordinary_convolution():
    layer = make_layer(4, 4)
    image = make_image(1, 4, 6, 6, dtype=torch.float32)
    with torch.autocast("cpu"):
        assert layer(image).dtype == torch.bfloat16
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(image), F.conv2d(image, layer.weight, layer.bias, padding=1))
    layer.requires_grad_()
    layer(image).sum().backward()
    assert layer.weight.grad is not None
    double = layer.double()
    expected = F.conv2d(image.double(), double.weight, double.bias, padding=1)
    assert torch.equal(double(image.double()), expected)
