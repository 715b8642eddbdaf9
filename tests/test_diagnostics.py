"""Against numbers worked out by hand, and the limits that the alarms stand on."""

from __future__ import annotations

import pytest
import torch

from nitrodistill.diagnostics import latent_statistics, logit_statistics
from nitrodistill.losses import (
    HingeGANLoss,
    LeastSquaresGANLoss,
    NonSaturatingGANLoss,
    RelativisticGANLoss,
)


def test_logits_by_hand():
    real = (torch.tensor([[1.0, 3.0], [-1.0, 1.0]]), torch.tensor([[[2.0]], [[0.0]]]))
    fake = (torch.tensor([[-1.0, 1.0], [-3.0, -1.0]]), torch.tensor([[[0.0]], [[1.0]]]))
    found = logit_statistics(real, fake)
    expected = {
        "logit_real": [2.0, 0.0],
        "logit_fake": [0.0, -0.5],
        "accuracy_real": [1.0, 0.5],  # scales count alike; a tie is half right
        "accuracy_fake": [0.5, 0.5],
        "logit_gap.0": [2.0, 2.0],
        "logit_gap.1": [2.0, -1.0],
    }
    assert {name: value.tolist() for name, value in found.items()} == expected


def test_the_boundary_is_the_objectives():
    real, fake = torch.tensor([[0.6], [0.4]]), torch.tensor([[0.7], [0.3]])
    half = logit_statistics(real, fake, 0.5)
    assert half["accuracy_real"].tolist() == [1, 0]
    assert half["accuracy_fake"].tolist() == [0, 1]
    paired = logit_statistics(real, fake, None)
    assert paired["accuracy_real"].tolist() == paired["accuracy_fake"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "loss", [HingeGANLoss(), NonSaturatingGANLoss(), LeastSquaresGANLoss(), RelativisticGANLoss()]
)
def test_chance_is_the_lowest_loss_of_one_logit_for_everything(loss):
    logits = torch.linspace(-2, 2, 4001)[:, None]
    values = loss.discriminator(logits, logits)
    assert values.min().item() == pytest.approx(loss.chance, abs=1e-6)
    if loss.boundary is not None:  # and there the two sides pull equally
        at = torch.tensor([[loss.boundary]])
        assert loss.discriminator(at, at).item() == pytest.approx(loss.chance, abs=1e-6)


def test_latents_by_hand():
    z = torch.tensor([[[[0.0, 4.0]]], [[[2.0, 2.0]]]])  # mean 2, std sqrt 2, range 0..4
    x = torch.tensor([[[[2.0, 6.0]]], [[[4.0, 4.0]]]])  # the same, 2 higher
    found = latent_statistics(x, z, x + 1, x - 2)
    assert found["std.0"].item() == pytest.approx(1)
    assert found["mean.0"].item() == pytest.approx(2**0.5)
    assert found["saturated"].item() == 0.25
    assert found["variety"].item() == pytest.approx(1)
    # the references differ by (2, -2), in rms 2
    assert found["diversity"].item() == pytest.approx(1 / 2)
    assert found["prompt_effect"].item() == pytest.approx(2 / 2)


@pytest.mark.parametrize(("beyond", "share"), [(0.24, 0.0), (0.26, 0.25)])
def test_what_lies_close_to_the_end_of_the_range_is_not_saturated(beyond, share):
    """As pixels of a background do; the standard deviation is 1, and one value of four goes beyond -1."""
    z = torch.tensor([-1.0, 1.0, -1.0, 1.0]).view(2, 1, 1, 2)
    x = z.clone()
    x[0, 0, 0, 0] = -1 - beyond
    assert latent_statistics(x, z)["saturated"].item() == share


def test_a_collapse_to_a_tenth_in_one_channel(generator):
    z = torch.randn(64, 3, 8, 8, generator=generator)
    x = torch.randn(64, 3, 8, 8, generator=generator) * torch.tensor([1, 0.1, 1])[:, None, None]
    found = latent_statistics(x, z)
    assert [round(found[f"std.{c}"].item(), 1) for c in range(3)] == [1, 0.1, 1]
    assert found["variety"].item() == pytest.approx((2.01 / 3) ** 0.5, abs=0.02)
    same = latent_statistics(x[:1].expand(64, -1, -1, -1), z)  # one picture, of whatever spread
    assert same["variety"].item() == 0
    assert "variety" not in latent_statistics(x[:1], z[:1])


def test_what_is_not_finite_stays_so():
    z = torch.randn(4, 2, 3, 3)
    x = z.clone()
    x[1, 1, 0, 0] = torch.nan
    found = latent_statistics(x, z, x)
    assert found["std.0"].item() == pytest.approx(1)
    for name in ("std.1", "mean.1", "saturated", "variety", "diversity"):
        assert found[name].isnan(), name
    assert logit_statistics(torch.tensor([[torch.nan]]), torch.tensor([[0.0]]))[
        "accuracy_real"
    ].isnan()


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"real samples have the shapes \[\(2, 1\)\] and"):
        logit_statistics(torch.zeros(2, 1), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"reference has the shape \(2, 4, 8\)"):
        latent_statistics(torch.zeros(2, 3, 8), torch.zeros(2, 4, 8))
