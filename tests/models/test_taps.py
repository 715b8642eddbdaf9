from __future__ import annotations

import pytest
import torch

from nitrodistill.models import FeatureTaps

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
    sum(f.square().mean() for f in features).backward()
    assert x_t.grad is not None
    assert float(x_t.grad.abs().sum()) > 0
    assert not any(m._forward_hooks for m in tiny_denoiser.module.modules())


def test_gradient_checkpointing_changes_nothing(tiny_denoiser, inputs):
    x_t, t, condition = inputs
    taps = FeatureTaps(tiny_denoiser, NAMES)

    def gradient() -> torch.Tensor:
        leaf = x_t.clone().requires_grad_(True)
        total = sum(f.square().mean() for f in taps.features(leaf, t, condition))
        return torch.autograd.grad(total, leaf)[0]

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
