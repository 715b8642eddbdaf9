"""LPIPS against the lpips package on a shared random trunk."""

from __future__ import annotations

import math
import subprocess
import sys

import lpips as peer_package
import pytest
import torch
from torch import nn

from nitrodistill import losses as nl
from nitrodistill.kernels.lpips_head.reference import lpips_head
from nitrodistill.losses import functional as nf
from nitrodistill.losses.trunks import Trunk


def make_peer(net):
    """The peer with a random trunk, and that trunk's weights under torchvision's names."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = peer_package.LPIPS(net=net, pnet_rand=True, verbose=False)
    peer.requires_grad_(False)
    state = peer.net.state_dict()
    return peer, {"features." + name.split(".", 1)[1]: value for name, value in state.items()}


@pytest.fixture(scope="module")
def alex():
    return make_peer("alex")


class Tiny(nn.Module):
    """Two random layers for any number of channels."""

    def __init__(self, channels=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("a", torch.randn(6, channels, 3, 3, generator=generator).double())
        self.register_buffer("b", torch.randn(5, 6, 3, 3, generator=generator).double())

    def forward(self, x):
        first = torch.conv2d(x.double(), self.a, padding=1).relu()
        return first, torch.conv2d(first, self.b, stride=2).relu()


def test_nan_stays_nan(alex, make_pair):
    x, y = make_pair(2, 3, 40, 33, dtype=torch.float32)
    x[0, 1, 20, 20] = math.nan
    for loss in (
        nl.LPIPSLoss("alex", weights=alex[1], reduction="none"),
        nl.LPIPSLoss(Tiny(), reduction="none"),
    ):
        for mask in (None, torch.ones(2, 1, 40, 33)):
            for pair in ((x, y), (y, x)):
                assert loss(*pair, mask=mask).isnan().tolist() == [True, False]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("net", ["vgg", "alex", "squeeze"])
def test_equal_to_lpips(net, make_pair):
    peer, weights = make_peer(net)
    x, y = (2 * t.requires_grad_() - 1 for t in make_pair(2, 3, 40, 33))
    loss = nl.LPIPSLoss(net, weights=weights, reduction="none").double()
    peer = peer.double()
    value, expected = loss(x, y), peer(x, y).flatten()
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    mine = torch.autograd.grad(value.sum(), (x, y))
    for grad, other in zip(mine, torch.autograd.grad(expected.sum(), (x, y)), strict=True):
        assert (grad - other).abs().max() < 1e-6 * other.abs().max()
    single = loss.float()(x.float(), y.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_zero_to_one_images(alex, make_pair):
    peer, weights = alex
    x, y = make_pair(1, 3, 33, 33, dtype=torch.float32)
    loss = nl.LPIPSLoss("alex", weights=weights, value_range=(0.0, 1.0))
    expected = peer(x, y, normalize=True).squeeze()
    torch.testing.assert_close(loss(x, y), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        loss(x, y), nl.LPIPSLoss("alex", weights=weights)(2 * x - 1, 2 * y - 1)
    )


def test_precomputed_target_features(alex, make_pair):
    x, y = make_pair(2, 3, 33, 35, dtype=torch.float32)
    loss = nl.LPIPSLoss("alex", weights=alex[1])
    features = loss.target_features(y)
    assert not any(f.requires_grad for f in features.maps)
    torch.testing.assert_close(loss(x, features), loss(x, y))
    with pytest.raises(ValueError, match="the target's features are of"):
        loss(x[:1], features)


def test_nothing_trains_and_nothing_is_random(alex, make_pair):
    loss = nl.LPIPSLoss("alex", weights=alex[1])
    x, y = make_pair(1, 3, 33, 33, dtype=torch.float32)
    before = loss(x, y)
    assert not [p for p in loss.parameters() if p.requires_grad]
    loss.train()
    assert all(torch.equal(loss(x, y), before) for _ in range(3))
    assert (torch.cat([h.flatten() for h in loss.buffers()]) >= 0).float().mean() > 0.99


def test_zero_features_have_zero_gradient():
    x = torch.zeros(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    y = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    loss = nl.LPIPSLoss(Tiny())
    value = loss(x, y)
    (grad,) = torch.autograd.grad(value, x)
    assert value > 0
    assert torch.equal(grad, torch.zeros_like(grad))
    assert loss(x, torch.zeros_like(x)) == 0


def test_derivatives(make_pair):
    x, y = (t.requires_grad_() for t in make_pair(1, 3, 6, 5))
    loss = nl.LPIPSLoss(Tiny())
    assert torch.autograd.gradcheck(loss, (x, y), fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, (x, y), fast_mode=True)


def test_any_trunk_and_its_heads(make_pair):
    x, y = make_pair(2, 4, 9, 8)
    trunk = Tiny(4)
    heads = [torch.rand(6, dtype=torch.float64), torch.rand(5, dtype=torch.float64)]
    expected = torch.zeros(2, dtype=torch.float64)
    for head, a, b in zip(heads, trunk(x), trunk(y), strict=True):
        unit = [torch.nn.functional.normalize(f, dim=1) for f in (a, b)]
        expected += ((unit[0] - unit[1]) ** 2 * head.view(1, -1, 1, 1)).sum(1).mean((1, 2))
    loss = nl.LPIPSLoss(trunk, heads=heads, reduction="none")
    torch.testing.assert_close(loss(x, y), expected)
    torch.testing.assert_close(nf.lpips_distance(trunk(x), trunk(y), heads), expected)
    assert list(loss.children()) == []
    with pytest.raises(ValueError, match="heads is empty; give one for each feature map"):
        nl.LPIPSLoss(trunk, heads=[])


def test_mask_is_resized_by_area(make_pair):
    x, y = make_pair(2, 3, 8, 8)
    trunk = Tiny()
    loss = nl.LPIPSLoss(trunk, reduction="none")
    mask = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    expected = torch.zeros(2, dtype=torch.float64)
    for a, b in zip(trunk(x), trunk(y), strict=True):
        unit = [torch.nn.functional.normalize(f, dim=1) for f in (a, b)]
        distance = ((unit[0] - unit[1]) ** 2).sum(1, keepdim=True)
        weight = torch.nn.functional.interpolate(mask, size=a.shape[2:], mode="area")
        expected += (weight * distance).sum((1, 2, 3)) / weight.sum((1, 2, 3))
    torch.testing.assert_close(loss(x, y, mask=mask), expected)
    torch.testing.assert_close(loss(x, y, mask=torch.ones(1, 1, 1, 1)), loss(x, y))
    x.requires_grad_()
    value = loss(x, y, mask=torch.zeros(2, 1, 8, 8))
    assert torch.equal(value, torch.zeros_like(value))
    assert not torch.autograd.grad(value.sum(), x)[0].any()
    with pytest.raises(ValueError, match="LPIPS mixes channels"):
        loss(x, y, mask=torch.ones(2, 3, 8, 8))


def test_video_is_the_mean_over_frames(make_pair):
    x, y = make_pair(2, 3, 4, 8, 8)
    loss = nl.LPIPSLoss(Tiny(), reduction="none")
    frames = torch.stack([loss(x[:, :, t], y[:, :, t]) for t in range(4)])
    torch.testing.assert_close(loss(x, y), frames.mean(0))
    torch.testing.assert_close(loss(x, loss.target_features(y)), frames.mean(0))


def test_nearly_equal_features_do_not_cancel():
    """The regime that distillation converges into."""
    generator = torch.Generator().manual_seed(0)
    fx = torch.randn(1, 64, 8, 8, generator=generator)
    fy = fx * (1 + 1e-3 * torch.randn(1, 64, 8, 8, generator=generator))
    weight = torch.rand(64, generator=generator)
    value = nf.lpips_distance([fx], [fy], [weight])
    true = lpips_head(fx.double(), fy.double(), weight.double(), eps=1e-20)
    torch.testing.assert_close(value.double(), true, rtol=1e-5, atol=0)


def test_large_half_precision_features_do_not_overflow():
    fx = torch.full((1, 4, 2, 2), 3e4, dtype=torch.float16, requires_grad=True)
    fy = torch.full((1, 4, 2, 2), -3e4, dtype=torch.float16)
    value = nf.lpips_distance([fx], [fy], [torch.ones(4)])
    assert value.item() == pytest.approx(4.0)
    assert torch.autograd.grad(value.sum(), fx)[0].dtype == torch.float16


def test_half_precision_input(alex, make_pair):
    loss = nl.LPIPSLoss("alex", weights=alex[1]).double()
    x, y = (t.bfloat16().requires_grad_() for t in make_pair(1, 3, 33, 33))
    wide = x.detach().double().requires_grad_()
    true = loss(wide, y.detach().double())
    (true_grad,) = torch.autograd.grad(true, wide)
    value = loss.float()(x, y)
    torch.testing.assert_close(value.double(), true, rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(value, x)
    assert grad.dtype == torch.bfloat16
    rounding = (true_grad.bfloat16().double() - true_grad).norm()
    assert (grad.double() - true_grad).norm() <= 1.05 * rounding


def test_compiles_into_one_graph(make_pair):
    x, y = make_pair(1, 3, 8, 8)
    loss = nl.LPIPSLoss(Tiny())
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), loss(x, y))


@pytest.mark.parametrize(("net", "smallest"), [("vgg", 16), ("alex", 31), ("squeeze", 17)])
def test_smallest_image(net, smallest):
    trunk = Trunk(net)
    assert trunk.smallest == smallest
    assert all(f.numel() for f in trunk(torch.rand(1, 3, smallest, smallest)))
    with pytest.raises(RuntimeError):
        trunk(torch.rand(1, 3, smallest - 1, smallest))


def test_bad_input(alex, make_pair):
    loss = nl.LPIPSLoss("alex", weights=alex[1])
    x = torch.rand(1, 3, 33, 33)
    for bad, error, sentence in (
        ((x[..., :20], x[..., :20]), ValueError, "sides of 31 or more"),
        ((x[:, :2], x[:, :2]), ValueError, "needs 3 channels"),
        ((x, x[..., :32]), ValueError, "must be equal"),
        ((x.int(), x), TypeError, "floating-point"),
        ((x[:0], x[:0]), ValueError, "not empty"),
        ((x[0], x[0]), ValueError, "LPIPS wants images"),
    ):
        with pytest.raises(error, match=sentence):
            loss(*bad)
    for make, sentence in (
        (lambda: nl.LPIPSLoss("vgg19"), "network is 'vgg19'"),
        (lambda: nl.LPIPSLoss(Tiny(), weights={}), "load them into it"),
        (lambda: nl.LPIPSLoss(Tiny(), value_range=(1.0, 1.0)), "low < high"),
        (lambda: nl.LPIPSLoss(Tiny(), value_range=(0.0, math.inf)), "must be finite"),
        (lambda: nl.LPIPSLoss(Tiny(), value_range=(math.nan, 1.0)), "must be finite"),
        (lambda: nl.LPIPSLoss(nn.Conv2d(3, 4, 1)), "would train them"),
        (lambda: nf.lpips_distance([x], [x], []), "numbers must be equal"),
        (lambda: nf.lpips_distance([x], [x], [torch.ones(4)]), "its head"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()


def test_no_torchvision_is_imported():
    code = (
        "import sys; sys.modules['torchvision'] = None; sys.modules['lpips'] = None\n"
        "import torch, nitrodistill.losses as nl\n"
        "x = torch.rand(1, 3, 8, 8)\n"
        "print(float(nl.LPIPSLoss(lambda z: [z])(x, x)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0.0"
