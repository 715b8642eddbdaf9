"""The x0 loss against diffusers' own conversion and torch's losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nitrodistill import losses as nl
from nitrodistill.types import Scales

SHAPE = (3, 4, 6, 5)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3)]
    angle = torch.tensor([0.2, 0.8, 1.3], dtype=torch.float64)
    return (*tensors, Scales(angle.cos(), angle.sin()))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_diffusers(kind):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1000)
    generator = torch.Generator().manual_seed(0)
    output, x_t, x0 = (
        torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    t = 600
    alpha_bar = scheduler.alphas_cumprod[t].double()
    scales = Scales(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    implied = scheduler.step(output, t, x_t).pred_original_sample
    value = nl.denoising_loss(output, x_t, x0, scales, kind)
    torch.testing.assert_close(value, F.mse_loss(implied, x0), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("loss", "parameter", "peer"),
    [
        ("l1", None, nl.L1Loss(reduction="none")),
        ("l2", None, nl.L2Loss(reduction="none")),
        ("smooth_l1", 0.3, nl.SmoothL1Loss(0.3, reduction="none")),
        ("smooth_l1", None, nl.SmoothL1Loss(1.0, reduction="none")),
        ("huber", 0.3, nl.HuberLoss(0.3, reduction="none")),
        ("pseudo_huber", None, nl.PseudoHuberLoss(reduction="none")),
        ("charbonnier", None, nl.CharbonnierLoss(reduction="none")),
    ],
)
def test_flow_prediction_and_every_loss(case, loss, parameter, peer):
    output, x_t, target, scales = case
    alpha, sigma = (s.view(-1, 1, 1, 1) for s in scales)
    x0 = (x_t - sigma * output) / (alpha + sigma)  # p = eps - x0, x_t = alpha x0 + sigma eps
    mask = torch.rand(3, 1, 6, 5, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
    options = {"loss": loss, "parameter": parameter, "mask": mask, "weight": weight}
    arguments = (output, x_t, target, scales, "flow_prediction")
    expected = peer(x0, target, mask=mask, weight=weight)
    value = nl.denoising_loss(*arguments, **options, reduction="none")
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(nl.denoising_loss(*arguments, **options), expected.mean())
    torch.testing.assert_close(
        nl.denoising_loss(*arguments, **options, reduction="sum"), expected.sum()
    )


def test_half_precision(case):
    output, x_t, target, scales = case
    half = [t.bfloat16().requires_grad_() for t in (output, x_t, target)]
    wide = [t.detach().double().requires_grad_() for t in half]
    value = nl.denoising_loss(*half, scales, "v_prediction", loss="smooth_l1")
    true = nl.denoising_loss(*wide, scales, "v_prediction", loss="smooth_l1")
    torch.testing.assert_close(value.double(), true, rtol=1e-6, atol=0)
    (grad,), (true_grad,) = torch.autograd.grad(value, half[0]), torch.autograd.grad(true, wide[0])
    assert grad.dtype == torch.bfloat16
    rounding = (true_grad.bfloat16().double() - true_grad).norm()
    assert (grad.double() - true_grad).norm() <= 1.05 * rounding


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"output": torch.rand(3, 4, 6, 1)}, ValueError, "must be equal"),
        ({"x_t": torch.rand(3, 4, 6, 1)}, ValueError, "must be equal"),
        ({"target": torch.zeros(SHAPE, dtype=torch.long)}, TypeError, "floating-point"),
        ({"scales": Scales(torch.rand(3, 1), torch.rand(3))}, ValueError, "scales.alpha has shape"),
        ({"prediction_type": "noise"}, ValueError, "prediction_type is 'noise'"),
        ({"loss": "l3"}, ValueError, "loss is 'l3'"),
        ({"reduction": "max"}, ValueError, "reduction is 'max'"),
        ({"loss": "huber", "parameter": 0.0}, ValueError, "parameter is 0.0"),
        ({"mask": torch.rand(3)}, ValueError, "mask has shape"),
        ({"weight": torch.rand(2)}, ValueError, "weight has shape"),
    ],
)
def test_bad_input(case, change, error, sentence):
    names = ("output", "x_t", "target", "scales")
    arguments = dict(zip(names, case, strict=True)) | {"prediction_type": "epsilon"} | change
    with pytest.raises(error, match=sentence):
        nl.denoising_loss(**arguments)
