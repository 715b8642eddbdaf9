from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from tools.toy.loop import LoopConfig, build, fit, save_atomic, seeded

CONFIG = LoopConfig(
    "line", steps=12, batch_size=8, learning_rate=0.1, flat=0.25, checkpoint_every=5
)


class Killed(Exception):
    pass


def line_loss(module: nn.Linear, batch_size: int, generator: torch.Generator) -> Tensor:
    """Learns y = 2 x."""
    x = torch.randn(batch_size, 1, generator=generator)
    return (module(x) - 2 * x).square().mean()


def make_line() -> nn.Linear:
    return nn.Linear(1, 1)


def test_rate_warms_up_stays_and_falls_to_zero():
    config = LoopConfig("s", steps=1000, batch_size=1, learning_rate=2.0, flat=0.5)
    assert config.rate(0) == pytest.approx(2.0 / 100)
    assert config.rate(99) == config.rate(300) == config.rate(500) == 2.0
    assert config.rate(750) == pytest.approx(1.0)
    assert config.rate(999) == pytest.approx(0.0, abs=1e-4)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="0 steps; give at least 1"):
        LoopConfig("s", steps=0, batch_size=1, learning_rate=1.0)


def test_it_learns(tmp_path: Path):
    config = LoopConfig("line", steps=200, batch_size=16, learning_rate=0.1, ema_decay=0.9)
    average = fit(build(make_line, 0), line_loss, config, tmp_path)
    assert average.weight.item() == pytest.approx(2.0, abs=0.05)
    assert not average.training


def test_killed_and_resumed_is_bit_equal(tmp_path: Path):
    (tmp_path / "whole").mkdir()
    whole = fit(build(make_line, 0), line_loss, CONFIG, tmp_path / "whole")

    calls = 0

    def killed(module: nn.Linear, batch_size: int, generator: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise Killed
        return line_loss(module, batch_size, generator)

    with pytest.raises(Killed):
        fit(build(make_line, 0), killed, CONFIG, tmp_path)
    module = build(make_line, 1)  # the checkpoint decides, not the start
    resumed = fit(module, line_loss, CONFIG, tmp_path)
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)


def test_a_finished_stage_is_loaded(tmp_path: Path):
    first = fit(build(make_line, 0), line_loss, CONFIG, tmp_path)

    def refuses(module: nn.Linear, batch_size: int, generator: torch.Generator) -> Tensor:
        raise AssertionError("trained again")

    again = fit(build(make_line, 1), refuses, CONFIG, tmp_path)
    assert torch.equal(first.weight, again.weight)


def test_average_is_the_closed_form(tmp_path: Path):
    """With a decay of (1 + s) / (10 + s) the first average keeps a tenth of the start."""
    config = LoopConfig("line", steps=1, batch_size=4, learning_rate=0.5)
    start, module = build(make_line, 0), build(make_line, 0)
    average = fit(module, line_loss, config, tmp_path)
    torch.testing.assert_close(average.weight, 0.1 * start.weight + 0.9 * module.weight)


def test_other_settings_are_refused(tmp_path: Path):
    fit(build(make_line, 0), line_loss, CONFIG, tmp_path)
    other = LoopConfig("line", steps=13, batch_size=8, learning_rate=0.1)
    with pytest.raises(ValueError, match="other settings"):
        fit(build(make_line, 0), line_loss, other, tmp_path)


def test_draws_depend_on_every_part():
    values = {
        torch.rand(1, generator=seeded(*parts)).item()
        for parts in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2)]
    }
    assert len(values) == 4
    assert torch.rand(1, generator=seeded(0, "a")) == torch.rand(1, generator=seeded(0, "a"))


def test_build_depends_on_the_seed_alone():
    before = torch.get_rng_state()
    assert torch.equal(build(make_line, 3).weight, build(make_line, 3).weight)
    assert not torch.equal(build(make_line, 3).weight, build(make_line, 4).weight)
    assert torch.equal(before, torch.get_rng_state())


def test_save_leaves_one_whole_file(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    for value in (1.0, 2.0):
        save_atomic({"x": torch.tensor([value])}, path, {"step": json.dumps(1)})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    with safe_open(path, "pt") as file:
        assert file.get_tensor("x").item() == 2.0
