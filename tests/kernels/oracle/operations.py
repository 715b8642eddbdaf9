"""What `torch.library`, the compiler and the distributed wrappers ask of the fused operations."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from nitrodistill import kernels
from nitrodistill.kernels.dmd import dmd
from nitrodistill.kernels.laplacian import laplacian_loss
from nitrodistill.kernels.lpips_head import lpips_head
from nitrodistill.kernels.ssim import ssim_loss
from nitrodistill.kernels.x0_loss import x0_loss, x0_loss_mean

SHAPE = (2, 4, 12, 14)
TAPS = (0.25, 0.5, 0.25)


def scales(device) -> tuple[Tensor, Tensor]:
    return torch.tensor([0.6, 0.3], device=device), torch.tensor([0.8, 0.9], device=device)


def losses(device) -> dict:
    """name -> function of two images."""
    weight = torch.rand(4, device=device)
    mask = torch.rand(2, 1, 12, 14, device=device)
    alpha, sigma = scales(device)
    other = torch.randn(SHAPE, device=device)
    return {
        "x0_loss": lambda x, y: x0_loss(
            x, other, y, alpha, sigma, prediction_type="epsilon", mask=mask, weight=weight[:2]
        ),
        "lpips_head": lambda x, y: lpips_head(x, y, weight, mask=mask),
        "dmd": lambda x, y: dmd(x, y, other, weight=weight[2:]),
        "ssim": lambda x, y: ssim_loss(x[:1, :1], y[:1, :1], taps=TAPS, c1=1e-4, c2=9e-4),
        "laplacian": lambda x, y: laplacian_loss(x[:1, :1], y[:1, :1], weights=(1.0, 1.0)),
    }


NAMES = ("x0_loss", "lpips_head", "dmd", "ssim", "laplacian")


@pytest.mark.parametrize("name", NAMES)
def test_one_graph_under_compile(device, name):
    function = losses(device)[name]
    y = torch.randn(SHAPE, device=device)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        loss = function(x, y).mean()
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    x = torch.randn(SHAPE, device=device, requires_grad=True)
    eager = step(x)
    loss = torch.compile(lambda x: function(x, y), fullgraph=True, backend="aot_eager")(x)
    compiled = loss.mean().detach(), torch.autograd.grad(loss.mean(), x)[0]
    for a, b in zip(eager, compiled, strict=True):
        assert torch.equal(a, b)


def calls(device) -> dict:
    """Operation -> arguments, one per operation that autograd calls."""
    x, y, z = (torch.randn(SHAPE, device=device) for _ in range(3))
    alpha, sigma = scales(device)
    upstream, empty = torch.rand(2, device=device), torch.empty(0, device=device)
    mask = torch.rand(2, 12 * 14, device=device)
    last = [t.to(memory_format=torch.channels_last) for t in (x, y, z)]
    rest = (alpha, sigma, None, 1, None, "epsilon", "l2", 1.0)
    masked = (alpha, sigma, mask, 4, alpha, "v_prediction", "huber", 0.5)
    ops = torch.ops.nitrodistill
    head = (x, y, torch.rand(4, device=device), mask, 1e-10)
    one = (x[:1, :1].contiguous(), y[:1, :1].contiguous())
    ssim = (*one, list(TAPS), None, None, 1e-4, 9e-4, 0.0, False, False)
    pyramid = (*one, [1.0, 2.0], [])
    _, inverse, saved = ops.lpips_head_forward(*head, True)
    _, slopes, centre = ops.ssim_forward(*ssim, True, False)
    _, signs = ops.laplacian_forward(*pyramid, True)
    _, factor = ops.dmd_forward(x, y, z, alpha)
    return {
        "x0_loss_forward": (x, y, z, *rest),
        "x0_loss_backward": (
            upstream, *last, *masked, torch.rand(2, device=device), [True, False, True]
        ),
        "x0_loss_mean_forward": (*last, *rest),
        "x0_loss_mean_backward": (upstream[0], x, y, z, *rest, torch.randn(SHAPE, device=device)),
        "lpips_head_forward": (*head, True),
        "lpips_head_backward": (upstream, *head, inverse, saved, [True, True]),
        "dmd_forward": (x, y, z, alpha),
        "dmd_backward": (upstream, *last, factor),
        "ssim_forward": (*ssim, True, False),
        "ssim_backward": (upstream[:1], *ssim, slopes, centre, True, False),
        "laplacian_forward": (*pyramid, False),
        "laplacian_backward": (upstream[:1], *pyramid, signs, True, True),
        "x0_loss_backward/unmasked": (upstream, x, y, z, *rest, empty, [True, False, False]),
    }  # fmt: skip


def test_opcheck(device):
    """Schema, fake outputs (shapes, dtypes and strides) and tracing."""
    for name, arguments in calls(device).items():
        operation = getattr(torch.ops.nitrodistill, name.split("/")[0]).default
        result = torch.library.opcheck(operation, arguments)
        assert set(result.values()) == {"SUCCESS"}, (name, result)


@pytest.fixture
def process_group(device):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_distributed_wrappers(device, process_group, wrapper):
    torch.manual_seed(1)
    plain = nn.Conv2d(4, 4, 1).to(device)
    torch.manual_seed(1)
    model = nn.Conv2d(4, 4, 1).to(device)
    if wrapper == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh(device.type, (1,))
        fully_shard(model, mesh=mesh)
    x, y, z = (torch.randn(SHAPE, device=device) for _ in range(3))
    for network in (plain, model):
        loss = x0_loss_mean(network(x), y, z, *scales(device), prediction_type="epsilon")
        assert type(loss.grad_fn).__name__ == "X0LossMeanBackward"
        loss.backward()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        gradient = b.grad.full_tensor() if wrapper == "fsdp2" else b.grad
        torch.testing.assert_close(a.grad, gradient)


def test_the_switch_chooses_and_restores(device):
    x, y = torch.randn(SHAPE, device=device, requires_grad=True), torch.randn(SHAPE, device=device)
    function = losses(device)["lpips_head"]

    def implementation() -> str:
        return type(function(x, y).grad_fn).__name__

    assert implementation() == "LPIPSHeadBackward"
    with kernels.use("reference"):
        assert implementation() != "LPIPSHeadBackward"
    assert implementation() == "LPIPSHeadBackward"


def test_float64_and_empty_batches_take_the_reference(device):
    x = torch.randn(SHAPE, device=device, dtype=torch.float64, requires_grad=True)
    for function in losses(device).values():
        assert function(x, x.detach() + 1).dtype == torch.float64
    empty = torch.zeros(0, 4, 12, 14, device=device)
    assert lpips_head(empty, empty, torch.rand(4, device=device)).shape == (0,)
