from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from nitrodistill.kernels.arithmetic import masked_mean, math_dtype
from nitrodistill.kernels.x0_loss import elementwise_loss, loss_parameter, x0_loss, x0_loss_mean

TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
LOSSES = ("l1", "l2", "smooth_l1", "huber", "pseudo_huber", "charbonnier")


def problem(seed: int = 0, shape: tuple[int, ...] = (3, 2, 4, 5)):
    generator = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha = torch.rand(shape[0], generator=generator, dtype=torch.float64) * 0.8 + 0.1
    return x0, eps, alpha, (1 - alpha**2).sqrt()


def mixed(x0, eps, alpha, sigma):
    a, s = (scale.view(-1, 1, 1, 1) for scale in (alpha, sigma))
    predictions = {
        "epsilon": eps, "sample": x0, "v_prediction": a * eps - s * x0, "flow_prediction": eps - x0
    }  # fmt: skip
    return a * x0 + s * eps, predictions


@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_true_prediction_costs_nothing_and_an_error_costs_its_square(prediction_type):
    x0, eps, alpha, sigma = problem()
    x_t, predictions = mixed(x0, eps, alpha, sigma)
    output = predictions[prediction_type]
    perfect = x0_loss(output, x_t, x0, alpha, sigma, prediction_type=prediction_type)
    torch.testing.assert_close(perfect, torch.zeros_like(alpha), rtol=0, atol=1e-25)
    shifted = x0_loss(output + 0.1, x_t, x0, alpha, sigma, prediction_type=prediction_type)
    factor = {
        "epsilon": sigma / alpha,
        "v_prediction": sigma,
        "flow_prediction": sigma / (alpha + sigma),
    }
    expected = (0.1 * factor.get(prediction_type, torch.ones_like(alpha))) ** 2
    torch.testing.assert_close(shifted, expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_x0_agrees_with_diffusers(prediction_type):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type=prediction_type, clip_sample=False)
    _, output, _, _ = problem()
    x_t, t = torch.randn(3, 2, 4, 5, dtype=torch.float64), torch.tensor([10, 500, 900])
    for i in range(3):
        theirs = scheduler.step(output[i : i + 1].float(), int(t[i]), x_t[i : i + 1].float())
        alpha = scheduler.alphas_cumprod[t[i : i + 1]].double().sqrt()
        ours = x0_loss(
            output[i : i + 1], x_t[i : i + 1], theirs.pred_original_sample.double(), alpha,
            (1 - alpha**2).sqrt(), prediction_type=prediction_type,
        )  # fmt: skip
        assert ours < 1e-8


def test_elementwise_losses_are_their_formulas():
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    y = torch.full_like(x, 0.25)
    r = x - y
    for k in (0.3, 1.0, 2.0):
        smooth = torch.where(r.abs() < k, r**2 / (2 * k), r.abs() - k / 2)
        torch.testing.assert_close(elementwise_loss(x, y, "smooth_l1", k), smooth)
        torch.testing.assert_close(elementwise_loss(x, y, "huber", k), k * smooth)
        root = (r**2 + k**2).sqrt()
        torch.testing.assert_close(elementwise_loss(x, y, "pseudo_huber", k), root - k)
        torch.testing.assert_close(elementwise_loss(x, y, "charbonnier", k), root)
    torch.testing.assert_close(elementwise_loss(x, y, "smooth_l1", 0.0), r.abs())
    torch.testing.assert_close(elementwise_loss(x, y, "l1"), r.abs())
    torch.testing.assert_close(elementwise_loss(x, y, "l2"), r * r)


def test_pseudo_huber_keeps_the_digits_of_tiny_errors():
    r = torch.tensor([1e-7])
    assert elementwise_loss(r, torch.zeros_like(r), "pseudo_huber", 1e-3).item() == pytest.approx(
        5e-12, rel=1e-5
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives(loss):
    x0, eps, alpha, sigma = problem(shape=(2, 1, 2, 3))
    x_t, predictions = mixed(x0, eps, alpha, sigma)
    mask, weight = torch.rand(2, 1, 2, 3, dtype=torch.float64), torch.rand(2, dtype=torch.float64)

    def function(output, x_t, target, weight):
        return x0_loss(
            output, x_t, target, alpha, sigma, prediction_type="v_prediction", loss=loss,
            parameter=0.4, mask=mask, weight=weight,
        )  # fmt: skip

    inputs = [t.clone().requires_grad_() for t in (predictions["epsilon"], x_t, x0, weight)]
    assert gradcheck(function, inputs)
    if loss not in ("l1", "smooth_l1", "huber"):  # those have kinks, or second derivatives of zero
        assert gradgradcheck(function, inputs)


def test_mean_is_the_mean():
    x0, eps, alpha, sigma = problem()
    each = x0_loss(eps, x0, eps, alpha, sigma, prediction_type="epsilon")
    mean = x0_loss_mean(eps, x0, eps, alpha, sigma, prediction_type="epsilon")
    torch.testing.assert_close(mean, each.mean())


def test_masked_mean():
    values = torch.arange(12.0).view(2, 2, 3).requires_grad_()
    mask = torch.tensor([[[1.0, 0.0, 0.5]], [[0.0, 0.0, 0.0]]])
    mean = masked_mean(values, mask)
    assert mean.tolist() == pytest.approx([(0 + 3 + 0.5 * 2 + 0.5 * 5) / 3, 0.0])
    (gradient,) = torch.autograd.grad(mean.sum(), values)
    assert not gradient[1].any()
    assert gradient.isfinite().all()
    assert masked_mean(torch.tensor([3.0, 4.0]), None).tolist() == [3.0, 4.0]
    assert masked_mean(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])).tolist() == [0.0, 4.0]


def test_precision_rule():
    half, double = torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.float64)
    assert math_dtype(half, half) == torch.float32
    assert math_dtype(half, double) == torch.float64


def test_scalar_scales_do_not_lower_the_precision():
    x0, eps, _, _ = (t.bfloat16() for t in problem())
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.8)
    loss = x0_loss(eps, x0, eps, alpha, sigma, prediction_type="epsilon")
    exact = x0_loss(*(t.double() for t in (eps, x0, eps, alpha, sigma)), prediction_type="epsilon")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("loss", "parameter"),
    [("huber", 0.0), ("huber", -1.0), ("pseudo_huber", 0.0), ("charbonnier", float("nan")),
     ("smooth_l1", -0.1), ("smooth_l1", float("inf"))],
)  # fmt: skip
def test_parameters_out_of_range(loss, parameter):
    with pytest.raises(ValueError, match=f"parameter of {loss} is"):
        loss_parameter(loss, parameter)
    assert loss_parameter("l2", parameter) is not None
