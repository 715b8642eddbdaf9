"""x0_loss in Triton against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nitrodistill.kernels.x0_loss import reference, x0_loss, x0_loss_mean

TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
LOSSES = ("l1", "l2", "smooth_l1", "huber", "pseudo_huber", "charbonnier")


def inputs(device, shape=(3, 5, 21, 19), dtype=torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    data = [torch.randn(shape).to(device, dtype) for _ in range(3)]
    alpha = torch.rand(shape[0], dtype=torch.float64, device=device) * 0.8 + 0.1
    return data, [alpha, (1 - alpha**2).sqrt()]


def on_data(function, scales):
    return lambda *data, **keywords: function(*data, *scales, **keywords)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("prediction_type", TYPES)
def test_prediction_types(check, device, prediction_type, dtype):
    data, scales = inputs(device, dtype=dtype)
    check(
        on_data(x0_loss, scales),
        on_data(reference.x0_loss, scales),
        data,
        (True, prediction_type != "sample", True),
        prediction_type=prediction_type,
        loss="smooth_l1",
        parameter=0.7,
        weight=torch.rand(3, device=device),
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(check, device, loss):
    data, scales = inputs(device)
    check(
        on_data(x0_loss, scales),
        on_data(reference.x0_loss, scales),
        data,
        (True, False, False),
        prediction_type="v_prediction",
        loss=loss,
        parameter=0.3,
    )


def test_smooth_l1_with_beta_zero_is_l1(device):
    data, scales = inputs(device)
    keywords = {"prediction_type": "flow_prediction"}
    a = x0_loss(*data, *scales, loss="smooth_l1", parameter=0.0, **keywords)
    assert torch.equal(a, x0_loss(*data, *scales, loss="l1", **keywords))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 1, 21, 19), (3, 5, 21, 19), (1, 5, 1, 1), (1, 1, 1, 1), (21, 1), (5, 21, 1)]
)
def test_masks(check, device, shape, layout):
    data, scales = inputs(device)
    data = [tensor.to(memory_format=layout) for tensor in data]
    mask = (torch.rand(shape, device=device) > 0.4).float()
    mask.view(-1)[0] = 1
    check(
        on_data(x0_loss, scales),
        on_data(reference.x0_loss, scales),
        data,
        (True, False, True),
        prediction_type="epsilon",
        mask=mask,
    )


def test_boolean_mask_and_a_sample_masked_out(check, device):
    data, scales = inputs(device)
    mask = torch.rand(3, 1, 21, 19, device=device) > 0.4
    mask[1] = False
    check(
        on_data(x0_loss, scales),
        on_data(reference.x0_loss, scales),
        data,
        (True, False, False),
        prediction_type="epsilon",
        mask=mask,
    )
    assert x0_loss(*data, *scales, prediction_type="epsilon", mask=mask)[1] == 0


def test_layouts_that_need_no_copy_keep_their_strides(device):
    data, scales = inputs(device, (3, 8, 6, 10))
    whole = data[0].requires_grad_()
    output = whole[:, :4]  # the learned-variance channels of a network, dropped
    x_t, target = (tensor[:, :4].to(memory_format=torch.channels_last) for tensor in data[1:])
    loss = x0_loss(output, x_t, target, *scales, prediction_type="epsilon")
    loss.sum().backward()
    again = output.detach().clone().requires_grad_()
    reference.x0_loss(again, x_t, target, *scales, prediction_type="epsilon").sum().backward()
    assert whole.grad is not None
    assert again.grad is not None
    assert not whole.grad[:, 4:].any()
    torch.testing.assert_close(whole.grad[:, :4], again.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1000), (2, 3, 5, 4, 6), (4, 1025)])
def test_odd_sizes(check, device, shape):
    data, scales = inputs(device, shape)
    check(
        on_data(x0_loss, scales),
        on_data(reference.x0_loss, scales),
        data,
        (True, True, True),
        prediction_type="v_prediction",
    )


def test_mixed_types_and_scalar_scales(check, device):
    data, _ = inputs(device)
    data[0] = data[0].bfloat16()
    scales = [torch.tensor(0.6, device=device), torch.tensor(0.8, device=device)]
    check(
        on_data(x0_loss, scales),
        on_data(reference.x0_loss, scales),
        data,
        (True, False, False),
        prediction_type="epsilon",
    )


def test_learned_weight_gets_its_gradient(device):
    data, scales = inputs(device)
    weight = torch.rand(3, device=device, requires_grad=True)
    loss = x0_loss(*data, *scales, prediction_type="epsilon", weight=weight)
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    plain = x0_loss(*data, *scales, prediction_type="epsilon")
    torch.testing.assert_close(gradient, plain)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_mean_with_its_gradient_in_one_pass(device, scale):
    data, scales = inputs(device, dtype=torch.float16)
    weight = torch.rand(3, device=device)
    keywords = {"prediction_type": "v_prediction", "loss": "huber", "weight": weight}
    output = data[0].requires_grad_()
    loss = x0_loss_mean(output, *data[1:], *scales, **keywords)
    assert type(loss.grad_fn).__name__ == "X0LossMeanBackward"
    (first,) = torch.autograd.grad(loss * scale, output, retain_graph=True)
    (second,) = torch.autograd.grad(loss * scale, output)
    assert torch.equal(first, second)
    exact = [t.detach().double() for t in data]
    exact[0].requires_grad_()
    mean = reference.x0_loss(*exact, *scales, **keywords).mean()
    (true,) = torch.autograd.grad(mean * scale, exact[0])
    torch.testing.assert_close(loss.double(), mean, rtol=1e-6, atol=0)
    error, rounding = (first - true).abs().max(), (true.half() - true).abs().max()
    assert error <= 1.05 * rounding


def test_second_derivative_goes_through_the_reference(device):
    data, scales = inputs(device, (2, 3, 4))
    output = data[0].requires_grad_()
    keywords = {"prediction_type": "epsilon", "loss": "pseudo_huber", "parameter": 0.5}
    for function in (x0_loss, x0_loss_mean):
        loss = function(output, *data[1:], *scales, **keywords)
        (first,) = torch.autograd.grad(loss.sum(), output, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), output)
        plain = reference.x0_loss(output, *data[1:], *scales, **keywords)
        plain = plain if function is x0_loss else plain.mean()
        (first,) = torch.autograd.grad(plain.sum(), output, create_graph=True)
        (expected,) = torch.autograd.grad(first.square().sum(), output)
        torch.testing.assert_close(second, expected)


def test_reproducible_and_indifferent_to_autocast(device):
    data, scales = inputs(device)
    output = data[0].requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        loss = x0_loss(output, *data[1:], *scales, prediction_type="v_prediction")
        return loss, torch.autograd.grad(loss.sum(), output)[0]

    first = run()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    with torch.autocast(device.type, torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
