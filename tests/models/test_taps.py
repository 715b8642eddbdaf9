from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.testing import CompileCounter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from nitrodistill.models import FeatureTaps, Guided
from nitrodistill.models.wrappers import unwrapped
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.types import Condition, NoiseSchedule, PredictionType

NAMES = ("conv_in", "down_blocks.0", "mid_block")


@pytest.fixture
def inputs(tiny_condition, generator):
    return torch.randn(3, 4, 8, 8, generator=generator), torch.tensor(400), tiny_condition


def test_channels_are_probed(tiny_denoiser):
    assert FeatureTaps(tiny_denoiser, NAMES).channels() == (32, 32, 64)


@pytest.mark.parametrize("size", [(8, 8), (16, 12)])
def test_features_have_the_networks_shapes_in_the_order_asked(tiny_denoiser, tiny_condition, size):
    x_t = torch.zeros(3, 4, *size)
    maps = FeatureTaps(tiny_denoiser, NAMES[::-1]).features(x_t, torch.tensor(1), tiny_condition)
    h, w = size
    shapes = [(3, 64, h // 2, w // 2), (3, 32, h // 2, w // 2), (3, 32, h, w)]
    assert [tuple(m.shape) for m in maps] == shapes


def test_early_exit_runs_less_and_finds_the_same(tiny_denoiser, inputs):
    taps = FeatureTaps(tiny_denoiser, NAMES)
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in tiny_denoiser.module.named_modules()
        if name in ("mid_block", "up_blocks.0", "conv_out")
    ]
    early = taps.features(*inputs)
    assert ran == [] or ran == ["mid_block"]
    ran.clear()
    prediction, full = taps.prediction_and_features(*inputs)
    assert ran == ["mid_block", "up_blocks.0", "conv_out"]
    for handle in handles:
        handle.remove()
    for a, b in zip(early, full, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(prediction, tiny_denoiser(*inputs))


def test_gradients_flow_to_the_input_and_hooks_do_not_stay(tiny_denoiser, inputs):
    x_t, t, condition = inputs
    x_t = x_t.requires_grad_(True)
    tiny_denoiser.module.requires_grad_(False)
    features = FeatureTaps(tiny_denoiser, NAMES).bind(t, condition)(x_t)
    torch.stack([f.square().mean() for f in features]).sum().backward()
    assert x_t.grad is not None
    assert float(x_t.grad.abs().sum()) > 0
    assert not any(m._forward_hooks for m in tiny_denoiser.module.modules())


def test_gradient_checkpointing_changes_nothing(tiny_denoiser, inputs):
    x_t, t, condition = inputs
    taps = FeatureTaps(tiny_denoiser, NAMES)

    def gradient() -> torch.Tensor:
        leaf = x_t.clone().requires_grad_(True)
        means = [f.square().mean() for f in taps.features(leaf, t, condition)]
        return torch.autograd.grad(torch.stack(means).sum(), leaf)[0]

    plain = gradient()
    tiny_denoiser.module.enable_gradient_checkpointing()
    tiny_denoiser.module.train()
    torch.testing.assert_close(gradient(), plain)


def test_bad_names_list_the_nearest(tiny_denoiser):
    with pytest.raises(ValueError, match=r"nearest are .*mid_block"):
        FeatureTaps(tiny_denoiser, ["midblock"])
    with pytest.raises(ValueError, match="only once"):
        FeatureTaps(tiny_denoiser, ["mid_block", "mid_block"])
    with pytest.raises(ValueError, match="at least one"):
        FeatureTaps(tiny_denoiser, [])


def test_a_module_that_is_never_called(tiny_denoiser, inputs):
    tiny_denoiser.module.unused = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"\['unused'\] were never reached"):
        FeatureTaps(tiny_denoiser, ["mid_block", "unused"]).features(*inputs)


def test_depths_count_the_blocks_that_have_run(tiny_denoiser):
    found = [FeatureTaps(tiny_denoiser, [depth]).names[0] for depth in (0.01, 0.2, 0.4, 0.5, 1)]
    assert found == ["down_blocks.0", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.1"]


def test_bad_depths(tiny_denoiser):
    for depth in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            FeatureTaps(tiny_denoiser, [depth])
    with pytest.raises(TypeError, match="needs a DiffusersDenoiser"):
        FeatureTaps(Guided(tiny_denoiser, 1.0, Condition({"x": torch.zeros(1)})), [0.5])


def test_shapes_are_probed(tiny_denoiser):
    shapes = FeatureTaps(tiny_denoiser, NAMES).shapes()
    assert shapes == (
        ("conv_in", 32, 1, (4, 4)),
        ("down_blocks.0", 32, 2, (2, 2)),
        ("mid_block", 64, 2, (2, 2)),
    )


def test_text_is_not_taken_for_the_image(tiny_denoiser, inputs):
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"  # 5 tokens of text
    with pytest.raises(ValueError, match="a module that the image passes through"):
        FeatureTaps(tiny_denoiser, [name]).features(*inputs)
    with pytest.raises(ValueError, match="neither a map"):
        FeatureTaps(tiny_denoiser, ["time_embedding"]).features(*inputs)


class _Plain:
    """A Denoiser that is not diffusers': three convolutions."""

    schedule: NoiseSchedule = RectifiedFlow()
    prediction_type: PredictionType = "epsilon"

    def __init__(self) -> None:
        self.module: torch.nn.Module = torch.nn.Sequential(
            *(torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        )

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        return self.module(x_t)


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_network_gives_its_features_eagerly(whole, inputs):
    denoiser, counts = _Plain(), CompileCounter()
    taps = FeatureTaps(denoiser, ["0", "1"])
    with torch.no_grad():
        plain, predicted = taps.features(*inputs), denoiser(*inputs)
        torch._dynamo.reset()
        if whole:
            compiled: Any = torch.compile(denoiser.module, backend=counts)
            denoiser.module = compiled
        else:
            denoiser.module.get_submodule("1").compile(backend=counts)
        denoiser(*inputs)
        frames = counts.frame_count
        assert frames > 0
        for one, other in zip(taps.features(*inputs), plain, strict=True):
            assert torch.equal(one, other)
        prediction, _ = taps.prediction_and_features(*inputs)
        assert torch.equal(prediction, predicted)
        denoiser(*inputs)
        assert counts.frame_count == frames  # and is still compiled as before


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _gradients(taps: FeatureTaps, inputs) -> dict[str, Any]:
    network = unwrapped(taps.denoiser.module)
    total = torch.stack([f.square().mean() for f in taps.features(*inputs)]).sum()
    total.backward()
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


def test_left_early_ddp_still_reduces_the_gradients(tiny_denoiser, inputs, process_group):
    taps = FeatureTaps(tiny_denoiser, NAMES[:2])
    plain = _gradients(taps, inputs)
    ddp = DistributedDataParallel(tiny_denoiser.module, find_unused_parameters=True)
    reduced: list[int] = []

    def reduce(state, bucket):
        reduced.append(bucket.buffer().numel())
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    ddp.register_comm_hook(None, reduce)
    tiny_denoiser.module = ddp
    for turn in (1, 2):
        found = _gradients(taps, inputs)
        assert sum(reduced) == turn * sum(p.numel() for p in ddp.parameters())
        for name, gradient in plain.items():
            torch.testing.assert_close(found[name], gradient)


def test_left_early_fsdp2_gives_the_same_gradients(tiny_denoiser, inputs, process_group):
    """In one process: the hooks are FSDP2's, the gathering is trivial."""
    taps = FeatureTaps(tiny_denoiser, NAMES)
    plain = _gradients(taps, inputs)
    mesh, network = init_device_mesh("cpu", (1,)), tiny_denoiser.module
    for block in [*network.down_blocks, network.mid_block, *network.up_blocks, network]:
        fully_shard(block, mesh=mesh)
    for _ in range(2):
        found = _gradients(taps, inputs)
        assert set(found) == set(plain)
        for name, gradient in plain.items():
            torch.testing.assert_close(found[name].full_tensor(), gradient)
