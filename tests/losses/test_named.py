"""Losses, adversarial losses and laws as recipes name them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nitrodistill import losses as nl
from nitrodistill.losses import named as module
from nitrodistill.losses.functional import l1_loss


class HalfLoss(nl.Loss):
    """A loss from outside."""

    def __init__(self, share: float = 0.5, *, reduction: nl.Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.share = share

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.share * l1_loss(pred, target, mask=mask)


HALF = f"{__name__}:HalfLoss"


def doubled(x: Tensor) -> list[Tensor]:
    """A network from outside."""
    return [2 * x, x.square()]


DOUBLED = f"{__name__}:doubled"
TRAINED = nn.Conv2d(4, 4, 1)

EVERY = {
    "l1": 1,
    "l2": 0.5,
    "smooth_l1": {"weight": 2, "beta": 0.1},
    "huber": {"delta": 2},
    "pseudo_huber": {"dim": "sample", "c": None},
    "charbonnier": 0,
    "ssim": {"data_range": 2, "window_size": 3, "mode": "shift"},
    "latent_ssim": {"weight": 0.2, "std": [1, 1, 1, 2]},
    "ms_ssim": {"data_range": 2, "weights": [0.5, 0.5], "window_size": 3},
    "laplacian_pyramid": {"levels": 2, "weights": [1, 2]},
    "multi_scale": {"loss": {"l1": 1, "l2": {"weight": 0.5}}, "weights": [1, 0.5]},
    HALF: {"weight": 3, "share": 0.25},
}


def test_every_loss_but_that_of_a_network_by_its_name(make_pair):
    x, y = make_pair(2, 4, 16, 16)
    nl.check_losses(EVERY)
    loss = nl.named_loss(EVERY)
    by_hand = {
        "l1": (1, nl.L1Loss()),
        "l2": (0.5, nl.L2Loss()),
        "smooth_l1": (2, nl.SmoothL1Loss(0.1)),
        "huber": (1, nl.HuberLoss(2)),
        "pseudo_huber": (1, nl.PseudoHuberLoss(dim="sample")),
        "charbonnier": (0, nl.CharbonnierLoss()),
        "ssim": (1, nl.SSIMLoss(2, window_size=3, mode="shift")),
        "latent_ssim": (0.2, nl.LatentSSIMLoss(std=(1, 1, 1, 2))),
        "ms_ssim": (1, nl.MSSSIMLoss(2, weights=(0.5, 0.5), window_size=3)),
        "laplacian_pyramid": (1, nl.LaplacianPyramidLoss(2, (1, 2))),
        "multi_scale": (
            1,
            nl.MultiScaleLoss(
                nl.WeightedSum({"l1": (1, nl.L1Loss()), "l2": (0.5, nl.L2Loss())}), (1, 0.5)
            ),
        ),
        "half": (3, HalfLoss(0.25)),
    }
    assert loss.weights == {name: weight for name, (weight, _) in by_hand.items()}
    torch.testing.assert_close(loss(x, y), nl.WeightedSum(by_hand)(x, y), rtol=0, atol=0)
    for name, value in loss.parts(x, y).items():
        torch.testing.assert_close(value, by_hand[name][1].per_sample(x, y), rtol=0, atol=0)


def test_no_loss_of_the_package_is_without_a_name():
    public = {kind for kind in vars(nl).values() if isinstance(kind, type)}
    losses = {kind for kind in public if issubclass(kind, nl.Loss)}
    containers = {nl.Loss, nl.WeightedSum, nl.DecodedLoss}
    assert losses - containers == set(module._LOSSES)
    games = {kind for kind in public if issubclass(kind, nl.AdversarialLoss)}
    assert games - {nl.AdversarialLoss} == set(module._ADVERSARIAL)


def test_a_plain_name_is_that_loss_with_weight_one(make_pair):
    x, y = make_pair(2, 3, 4, 4)
    torch.testing.assert_close(nl.named_loss("smooth_l1")(x, y), nl.SmoothL1Loss()(x, y))
    torch.testing.assert_close(nl.named_loss(HALF)(x, y), HalfLoss()(x, y))


def test_a_loss_on_pictures_decodes(make_pair):
    def decode(z):
        return z[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2)

    z, w = make_pair(3, 4, 8, 8)
    spec = {"l1": 1.0, "ssim": {"weight": 0.5, "data_range": 1, "decode": True}}
    nl.check_losses(spec)
    loss = nl.named_loss(spec, decode=decode, chunk=2)
    expected = nl.L1Loss()(z, w) + 0.5 * nl.SSIMLoss(1.0)(decode(z), decode(w))
    torch.testing.assert_close(loss(z, w), expected)
    with pytest.raises(ValueError, match="ssim has decode: true, but nothing here decodes"):
        nl.named_loss(spec)


def test_checking_builds_no_network_and_reads_no_weights(monkeypatch):
    def never(*_, **__):
        raise AssertionError("a network was built")

    monkeypatch.setattr("nitrodistill.losses.lpips.load_trunk", never)
    nl.check_losses({"lpips": {"weight": 1, "network": "vgg", "decode": True}})
    nl.check_losses({"multi_scale": {"loss": {"lpips": {"network": "alex"}}}})
    nl.check_losses({"latent_lpips": {"weights": "none.pth", "heads": "none.pth", "augment": "bg"}})
    nl.check_losses({"latent_lpips": {"network": "decoder", "augment": "bgco"}})
    with pytest.raises(AssertionError, match="a network was built"):
        nl.named_loss("lpips")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"smoth_l1": 1.0}, "the loss 'smoth_l1' is unknown; did you mean 'smooth_l1'"),
        ({"SmoothL1Loss": 1.0}, "is unknown"),
        ({"smooth_l1": {"bata": 1}}, "setting of smooth_l1 'bata' is unknown; did you mean 'beta'"),
        ({"smooth_l1": {"beta": "a"}}, "smooth_l1.beta is 'a'; it must be a number"),
        ({"smooth_l1": {"beta": -1}}, "smooth_l1: beta is -1.0; it must be finite and >= 0"),
        ({"smooth_l1": {"beta": float("nan")}}, "smooth_l1: beta is nan"),
        ({"smooth_l1": {"reduction": "sum"}}, "'reduction' is unknown"),
        ({"smooth_l1": -1}, "the weight of smooth_l1 is -1; it must be a finite number >= 0"),
        ({"smooth_l1": float("nan")}, "the weight of smooth_l1 is nan"),
        ({"smooth_l1": float("inf")}, "the weight of smooth_l1 is inf"),
        ({"smooth_l1": True}, "the weight of smooth_l1 is True"),
        ({"smooth_l1": None}, "the weight of smooth_l1 is None"),
        ({"smooth_l1": {"weight": "1"}}, "the weight of smooth_l1 is '1'"),
        ({"smooth_l1": {"decode": 1}}, "decode of smooth_l1 is 1; it must be true or false"),
        ({"ssim": 1.0}, "ssim needs data_range"),
        ({"latent_ssim": 1.0}, "latent_ssim: data_range is None and std None"),
        (
            {"latent_lpips": {"weights": "toy", "augment": "bx"}},
            "latent_lpips: augment is 'bx'; give letters",
        ),
        (
            {"latent_lpips": {"weights": "toy", "augment": "bgb"}},
            "augment is 'bgb'; give letters of 'bgco'",
        ),
        (
            {"latent_lpips": {"weights": "toy", "augment": True}},
            "augment is True; it must be a text",
        ),
        (
            {"latent_lpips": {"weights": "toy", "generator": 1}},
            "generator is 1; it must be a Generator",
        ),
        ({"latent_lpips": 1}, "latent_lpips: got neither network nor weights; give either"),
        ({"latent_lpips": {"weights": "w", "network": DOUBLED}}, "got both network and weights"),
        (
            {"latent_lpips": {"network": f"{__name__}:TRAINED"}},
            "has parameters that require gradients",
        ),
        ({"lpips": {"network": DOUBLED, "eps": 0}}, "lpips: eps is 0.0"),
        (
            {"lpips": {"network": DOUBLED, "weights": {}}},
            "weights are given with a callable network",
        ),
        ({"lpips": {"network": DOUBLED, "value_range": [1, 0]}}, "lpips: value_range is"),
        (
            {"lpips": {"network": "vgg19"}},
            "network is 'vgg19'; it must be 'vgg' or 'alex'",
        ),
        ({"multi_scale": {"loss": {"l1": 1, "l3": 1}}}, "the loss 'l3' is unknown"),
        ({"multi_scale": {"loss": {"l1": -1}}}, "the weight of l1 is -1"),
        ({"multi_scale": {"loss": {"huber": {"delta": 0}}}}, "huber: delta is 0.0"),
        ({HALF: 1, "tests.none:Half": 1}, "cannot be imported"),
        ({HALF: {"shale": 1}}, "did you mean 'share'"),
        ({"fractions:Fraction": 1}, "is no Loss that can be built"),
        ({}, "the losses are {}; give a name"),
        (3, "the losses are 3; give a name"),
        (None, "the losses are None; give a name"),
    ],
)
def test_both_doors_refuse_alike(spec, sentence):
    for door in (nl.check_losses, nl.named_loss):
        with pytest.raises(ValueError, match=sentence):
            door(spec)


def test_augmented_pictures_are_refused_alike_at_any_depth():
    inner = {"latent_lpips": {"network": DOUBLED, "augment": "bg"}}
    deep = {"multi_scale": {"loss": inner, "weights": [1], "decode": True}}
    flat = {"latent_lpips": {**inner["latent_lpips"], "decode": True}}
    for spec, name in ((deep, "multi_scale"), (flat, "latent_lpips")):
        sentence = f"{name}: the loss on the pictures draws at random .* leave out its augment"
        with pytest.raises(ValueError, match=sentence):
            nl.check_losses(spec)
        with pytest.raises(ValueError, match=sentence):
            nl.named_loss(spec, decode=lambda z: z)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("non_saturating", nl.NonSaturatingGANLoss),
        ("hinge", nl.HingeGANLoss),
        ("least_squares", nl.LeastSquaresGANLoss),
        ("relativistic", nl.RelativisticGANLoss),
        ("nitrodistill.losses:HingeGANLoss", nl.HingeGANLoss),
    ],
)
def test_adversarial_losses(name, kind):
    assert nl.named_adversarial(name) == kind()
    assert nl.named_adversarial({name: None}) == kind()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("hing", "the adversarial loss 'hing' is unknown; did you mean 'hinge'"),
        ({"hinge": {"margin": 1}}, "the setting of hinge 'margin' is unknown"),
        ({"hinge": 1}, "the settings of hinge are 1"),
        ({"hinge": {}, "relativistic": {}}, "give a name, or one name"),
        ("nitrodistill.losses:L1Loss", "is no AdversarialLoss"),
    ],
)
def test_adversarial_losses_that_there_are_not(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        nl.named_adversarial(spec)


def test_a_decoder_is_no_part_of_the_loss():
    decoder = nn.Conv2d(4, 3, 1).eval().requires_grad_(False)
    loss = nl.named_loss({"l1": {"decode": True}}, decode=decoder)
    assert not list(loss.parameters())


@pytest.mark.parametrize("name", ["lpips", "latent_lpips"])
def test_the_network_of_a_loss_from_outside(name, make_pair):
    x, y = make_pair(2, 4, 8, 8)
    by_hand = {"lpips": nl.LPIPSLoss(doubled), "latent_lpips": nl.LatentLPIPSLoss(doubled)}[name]
    spec = {name: {"network": DOUBLED}}
    nl.check_losses(spec)
    torch.testing.assert_close(nl.named_loss(spec)(x, y), by_hand(x, y), rtol=0, atol=0)


def test_the_teacher_as_the_network_of_a_loss(make_pair):
    x, y = make_pair(2, 4, 8, 8)
    asked = []

    def features(taps, u):
        asked.append((taps, u))
        return doubled

    spec = {"latent_lpips": {"weight": 2, "network": {"taps": [0.5, "mid_block"], "u": 0.1}}}
    nl.check_losses(spec)
    found = nl.named_loss(spec, features=features)
    assert asked == [((0.5, "mid_block"), 0.1)]
    torch.testing.assert_close(found(x, y), 2 * nl.LatentLPIPSLoss(doubled)(x, y))
    with pytest.raises(ValueError, match="nothing here has a teacher"):
        nl.named_loss(spec)


def test_the_decoder_as_the_network_of_a_loss(make_pair):
    x, y = make_pair(2, 4, 8, 8)
    asked = []

    def features(taps, u):
        asked.append(taps)
        return doubled

    spec = {"latent_lpips": {"network": "decoder"}}
    nl.check_losses(spec)
    found = nl.named_loss(spec, features=features)
    assert asked == ["decoder"]
    torch.testing.assert_close(found(x, y), nl.LatentLPIPSLoss(doubled)(x, y))
    with pytest.raises(ValueError, match="nothing here has a teacher"):
        nl.named_loss(spec)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ({"tap": [0.5]}, "did you mean 'taps'"),
        ({"taps": [0.5], "u": 2}, "u in \\[0, 1\\]"),
        ({"taps": []}, "give taps"),
        ("vgg", "give package.module:callable"),
        (f"{__name__}:no_such", "give package.module:callable"),
    ],
)
def test_a_wrong_network_is_refused_before_anything_is_built(network, says):
    with pytest.raises(ValueError, match=says):
        nl.check_losses({"latent_lpips": {"network": network}})


def test_every_block_of_the_teacher(make_pair):
    asked = []

    def features(taps, u):
        asked.append((taps, u))
        return lambda z: [z]

    spec = {"latent_lpips": {"network": {"taps": "every_block", "u": 0.1}}}
    nl.named_loss(spec, features=features)
    assert asked == [("every_block", 0.1)]
