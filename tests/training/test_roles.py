from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nitrodistill.discriminator import LatentDiscriminator
from nitrodistill.method import DistillationMethod, Role
from nitrodistill.sampling import StepPlan
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.training import OptimizerConfig, Trainer, find_checkpoints
from nitrodistill.training.roles import checkpoint_gradients, kept
from nitrodistill.types import Terms


def _wide(tiny, eight_bit):
    """A student wide enough for 8-bit moments (from 4096 elements on), and its settings."""
    method = tiny.Method()
    generator = torch.Generator().manual_seed(0)
    method.student_network = nn.Sequential(nn.Linear(4, 2048), nn.Tanh(), nn.Linear(2048, 4))
    for weight in method.student_network.parameters():
        weight.data.normal_(0, 0.05, generator=generator)
    optimizers = {
        "student": OptimizerConfig(1e-2, ema_decay=0.9, eight_bit=eight_bit),
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
    with pytest.raises(ImportError, match=r"pip install bitsandbytes"):
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


class Slope(DistillationMethod):
    """One role, whose gradient is 1 everywhere: AdamW moves each weight down by its rate at every step."""

    plan = StepPlan.from_schedule(RectifiedFlow())

    def __init__(self, dtype: torch.dtype) -> None:
        values = 0.02 * torch.randn(40, 256, generator=torch.Generator().manual_seed(0))
        self.network = nn.ParameterList(nn.Parameter(row.to(dtype)) for row in values)

    @classmethod
    def build(cls, config, cast):
        raise NotImplementedError

    def trainable(self):
        return {"student": Role(self, "network")}

    def losses(self, batch, active, draws):
        yield "student", Terms(torch.stack([p.float().sum() for p in self.network]).sum(), {})


def _slope(tiny, dtype, **options):
    """Share of the weights that each step changed, and how far all have moved, in units of the true way."""
    method, rate, steps = Slope(dtype), 1e-6, 50
    optimizers = {"student": OptimizerConfig(rate, max_grad_norm=None)}
    config = tiny.config(steps=steps, optimizers=optimizers, log_every=1, **options)
    start = tiny.weights(method.network).double()
    shares = [
        float(s.parts["student/changed"]) for s in Trainer(method, tiny.Stream(4), config).fit()
    ]
    moved = start - tiny.weights(method.network).double()
    return start, shares, float(moved.mean()) / (steps * rate)


def test_adamw_stalls_on_bfloat16_weights_at_the_rates_of_this_field_and_not_on_ours(tiny, caplog):
    """A step of 1e-6 is lost where it is less than half of the distance to the next bfloat16 number."""
    _, shares, way = _slope(tiny, torch.float32)
    assert set(shares) == {1.0}
    assert way == pytest.approx(1, rel=1e-2)

    with pytest.raises(
        ValueError, match=r"role 'student' are torch.bfloat16: at a learning rate of"
    ):
        _slope(tiny, torch.bfloat16)

    start, shares, way = _slope(tiny, torch.bfloat16, half_precision_weights=True)
    half_apart = 2.0 ** (start.abs().log2().floor() - 8)
    surely, perhaps = ((half_apart < limit).double().mean() for limit in (0.9e-6, 1.1e-6))
    assert surely <= shares[0] <= perhaps < 0.025
    assert max(shares) < 0.025
    assert way < 0.1, "what was to be shown: nearly nothing has moved"
    assert "trains half-precision weights (half_precision_weights)" in caplog.text
    assert "student/changed" in caplog.text


def test_the_share_that_changed_is_in_the_log(tiny, tmp_path):
    trainer = Trainer(tiny.Method(), tiny.Stream(4), tiny.config(log_every=3), output=tmp_path)
    states = list(trainer.fit())
    assert ["student/changed" in state.parts for state in states] == [False, False, True] * 2
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["student/changed"] for line in lines] == [1.0, 1.0]
    # the critic's last bias, one of 49 weights, cancels in its loss: no gradient, no step
    assert [line["critic/changed"] for line in lines] == pytest.approx([48 / 49] * 2)
