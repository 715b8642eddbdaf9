"""The fast CPU form of SSIM against its plain definition and a naive one."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from nitrodistill.kernels import banded
from nitrodistill.kernels.ssim import cpu, window
from nitrodistill.kernels.ssim.reference import ssim_loss

TAPS = (0.1, 0.2, 0.4, 0.2, 0.1)


def fast(x, y, *, taps, c1, c2, offset=0.0, mode="full", padding="valid", weight_map=None):
    """The form made for a CPU."""
    return cpu.ssim_loss(x, y, cpu.Options(taps, c1, c2, offset, mode, padding, weight_map))


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.rand(3, 2, 20, 17, generator=generator, dtype=torch.float64) for _ in range(2)
    )


def naive(x, y, c1, c2, offset, mode, padding):
    """Wang et al.'s formula with five filtered maps, per position."""
    window = torch.tensor(TAPS, dtype=x.dtype)
    window = (window[:, None] * window).expand(x.shape[1], 1, 5, 5)

    def mean(image):
        if padding == "reflect":
            image = F.pad(image, (2, 2, 2, 2), mode="reflect")
        return F.conv2d(image, window, groups=x.shape[1])

    mx, my = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    mx, my = mx + offset, my + offset
    c1, c2 = (torch.as_tensor(c, dtype=x.dtype).view(-1, 1, 1) for c in (c1, c2))
    light = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    structure = (2 * xy + c2) / (xx + yy + c2)
    return 1 - (structure if mode == "structure" else light * structure)


@pytest.mark.parametrize(
    ("mode", "padding", "weighted", "needs", "chunk"),
    list(
        itertools.product(
            ("full", "structure"), ("valid", "reflect"), (0, 1, 2), ("xy", "x", "y"), (64, 1 << 18)
        )
    ),
)
def test_value_and_gradients(pair, mode, padding, weighted, needs, chunk, monkeypatch):
    monkeypatch.setattr(banded, "_CHUNK", chunk)  # 64: one plane at a time
    x, y = (t.requires_grad_(name in needs) for t, name in zip(pair, "xy", strict=True))
    c1 = torch.tensor([1e-4, 2e-3], dtype=torch.float64)
    c2, offset = 9e-4, 0.5
    loss_map = naive(x, y, c1, c2, offset, mode, padding)
    weight_map = None
    expected = loss_map.flatten(1).mean(1)
    if weighted:
        shape = (3, weighted, *loss_map.shape[2:])
        weight_map = torch.rand(shape, dtype=torch.float64)
        expected = (loss_map * weight_map).flatten(1).sum(1)
    options = {"mode": mode, "padding": padding, "weight_map": weight_map}
    plain = ssim_loss(x, y, taps=TAPS, c1=c1, c2=c2, offset=offset, **options)
    value = fast(x, y, taps=TAPS, c1=c1, c2=c2, offset=offset, **options)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(plain, expected, rtol=1e-10, atol=1e-12)
    factor = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    inputs = [t for t in (x, y) if t.requires_grad]
    peers = torch.autograd.grad(expected @ factor, inputs)
    for grad, peer in zip(torch.autograd.grad(value @ factor, inputs), peers, strict=True):
        torch.testing.assert_close(grad, peer, rtol=1e-8, atol=1e-11)
    with torch.no_grad():
        assert torch.equal(fast(x, y, taps=TAPS, c1=c1, c2=c2, offset=offset, **options), value)


def test_adjoints_are_adjoint():
    taps = (0.1, 0.3, 0.4, 0.15, 0.05)  # not symmetric
    for padding, size in (("valid", (5, 8)), ("reflect", (9, 12))):
        form = window.window_of(9, 12, taps, padding, torch.float32, torch.device("cpu"))
        assert form.size == size
        outer, inner = (torch.rand(2, s[0], 3, s[1]) for s in ((9, 12), size))
        here, there = (form.mean(outer) * inner).sum(), (form.adjoint(inner) * outer).sum()
        torch.testing.assert_close(here, there)


def test_small_differences_do_not_cancel():
    """1 - cs is formed without subtracting from one: float32 keeps its digits near equality."""
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    y = x + 1e-4 * torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    options = {"taps": TAPS, "c1": 1e-4, "c2": 9e-4}
    true = ssim_loss(x.double(), y.double(), **options)
    assert true < 1e-6
    for form in (ssim_loss, fast):
        torch.testing.assert_close(form(x, y, **options).double(), true, rtol=1e-3, atol=0)


def test_two_backward_passes_and_scaled_gradients(pair):
    x, y = pair
    x.requires_grad_()
    loss = fast(x, y, taps=TAPS, c1=1e-4, c2=9e-4).sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(3 * loss, x)
    torch.testing.assert_close(second, 3 * first)
