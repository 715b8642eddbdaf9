from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nitrodistill.discriminator import LatentDiscriminator
from nitrodistill.training import OptimizerConfig, Trainer, find_checkpoints
from nitrodistill.training.roles import checkpoint_gradients, kept


def _wide(tiny, eight_bit):
    """A student wide enough for 8-bit moments (from 4096 elements on), and its settings."""
    method = tiny.Method()
    generator = torch.Generator().manual_seed(0)
    method.student_network = nn.Sequential(nn.Linear(4, 2048), nn.Tanh(), nn.Linear(2048, 4))
    for weight in method.student_network.parameters():
        weight.data.normal_(0, 0.05, generator=generator)
    optimizers = {
        "student": OptimizerConfig(1e-2, eight_bit=eight_bit),
        "critic": OptimizerConfig(),
    }
    return method, tiny.config(optimizers=optimizers, checkpoint_every=2)


def test_eight_bit_moments_stay_near_and_resume_bit_equal(tiny, tmp_path):
    def act(rank, world):
        # beside the environment, not in it: diffusers would import it in every process, for seconds
        sys.path.append(str(Path(sys.prefix) / "eight-bit"))  # `make venv` puts it there
        found = {}
        for eight_bit in (False, True):
            method, config = _wide(tiny, eight_bit)
            start = tiny.weights(method.student_network)
            trainer = tiny.train(config, method)
            found[eight_bit] = tiny.weights(method.student_network)
        role = trainer._trained["student"]
        kinds = [role.optimizer.state[w]["state1"].dtype for w in role.weights.values()]
        assert kinds.count(torch.uint8) == 2, "of the two matrices"
        assert (found[True] - found[False]).norm() < 0.1 * (found[False] - start).norm()
        method, config = _wide(tiny, True)
        for state in Trainer(method, tiny.Stream(4), config, output=tmp_path).fit():
            if state.step == 5:
                break
        method, _ = _wide(tiny, True)
        resumed = Trainer(method, tiny.Stream(4), config, output=tmp_path)
        assert resumed.step == 4
        list(resumed.fit())
        assert torch.equal(tiny.weights(method.student_network), found[True])

    tiny.in_processes(act, world=1)


def test_eight_bit_without_bitsandbytes_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    method, config = _wide(tiny, True)
    with pytest.raises(ImportError, match=r"pip install nitrodistill\[eight-bit\]"):
        tiny.train(config, method)


@pytest.mark.parametrize("save_frozen", [True, False])
def test_only_trained_weights_are_averaged_and_if_wanted_saved(tiny, tmp_path, save_frozen):
    def make():
        method = tiny.Method()
        method.student_network[0].requires_grad_(False)
        method.student_network.register_buffer("shift", torch.ones(2))
        return method

    config = tiny.config(save_frozen=save_frozen, checkpoint_every=2)
    whole = tiny.train(config, make())
    for state in Trainer(make(), tiny.Stream(4), config, output=tmp_path).fit():
        if state.step == 3:
            break
    saved = find_checkpoints(tmp_path)[0]
    assert set(saved.tensors("student.ema")) == {"2.weight", "2.bias"}
    frozen = {"0.weight", "0.bias", "shift"} if save_frozen else set()
    assert set(saved.tensors("student")) == {"2.weight", "2.bias"} | frozen
    resumed = tiny.train(config, make(), output=tmp_path)
    one, other = (tiny.weights(t.method.student_network) for t in (whole, resumed))
    assert torch.equal(one, other)


def test_another_network_is_refused_by_name(tiny):
    trainer = Trainer(tiny.Method(), tiny.Stream(4), tiny.config())
    role = trainer._trained["student"]
    tensors = role.tensors(frozen=True, keep=True)
    for wrong in (
        {n: v for n, v in tensors.items() if n != "2.bias"},
        tensors | {"2.bias": torch.zeros(5)},
        tensors | {"other": torch.zeros(1)},
    ):
        with pytest.raises(ValueError, match=r"'student' is another network.*(2\.bias|other)"):
            role.load(wrong)


def test_copies_are_contiguous_and_share_nothing(generator):
    value = torch.randn(3, 2, generator=generator).t()
    copies = kept({"a": value, "b": value}, keep=True)
    assert all(torch.equal(copy, value) and copy.is_contiguous() for copy in copies.values())
    assert copies["a"].data_ptr() != copies["b"].data_ptr() != value.data_ptr()
    assert kept({"a": value}, keep=False) == {}


def test_gradients_are_checkpointed_on_a_frozen_backbone_in_eval_mode(
    tiny_denoiser, tiny_condition, generator
):
    """Blocks run again in the backward pass, and the latents' gradient is the same."""
    x0 = torch.randn(3, 4, 8, 8, generator=generator)
    discriminator = LatentDiscriminator(tiny_denoiser, ["down_blocks.0", "mid_block"], width=8)
    unet = tiny_denoiser.module
    calls = []
    unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))

    def gradient():
        calls.clear()
        leaf = x0.clone().requires_grad_(True)
        logits = discriminator(leaf, torch.tensor(500), tiny_condition)
        torch.stack([scale.mean() for scale in logits]).sum().backward()
        return leaf.grad, len(calls)

    plain, once = gradient()
    checkpoint_gradients(unet)
    assert not unet.training
    again, twice = gradient()
    assert (once, twice) == (1, 2)
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-6)
