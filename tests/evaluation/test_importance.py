"""The search for blocks that matter least: planted blocks that do nothing, budgets, stops."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from nitrodistill.evaluation import importance as module
from nitrodistill.evaluation.importance import importance, propose
from nitrodistill.method import Draws
from nitrodistill.models import DiffusersDenoiser, PruneSpec, prune
from nitrodistill.models.pruning import pruned_network
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.teachers import load_teacher
from nitrodistill.toy.scenes import captions
from nitrodistill.types import Latents
from tests.models.families import FAMILIES, inputs
from tests.models.test_pruning import unet


def silence(block: nn.Module) -> None:
    """Turns a block into the identity: what it adds to its input is made zero."""
    for name, part in block.named_modules():
        if name.endswith(("to_out.0", "ff.net.2", "conv2", "proj_out")):
            part.requires_grad_(False)
            for parameter in part.parameters():
                parameter.zero_()


def batches(denoiser: DiffusersDenoiser, size: tuple[int, int] = (8, 8)) -> list[Latents]:
    x_t, _, condition = inputs(denoiser, size=size)
    return [Latents(x_t, condition), Latents(x_t.flip(0), condition)]


def drawn(name: str) -> tuple[DiffusersDenoiser, list[Latents]]:
    """An embedded teacher and sixteen of its own latents."""
    pipeline = load_teacher(name)
    condition = pipeline.encode_prompt(list(captions()[::20][:16]))
    noise = Draws(0, 0, torch.arange(16)).normal("noise", pipeline.latent_shape)
    plan = StepPlan.from_schedule(pipeline.denoiser.schedule, 10)
    with torch.no_grad():
        x0 = sample(pipeline.guided(3.0), plan, noise, condition)
    return pipeline.denoiser, [Latents(x0, condition)]


def planted(
    denoiser: DiffusersDenoiser, moved: dict[str, str], idle: list[str], **config: Any
) -> DiffusersDenoiser:
    """A larger network of the same class: block -> the block that it copies; those that are idle do nothing."""
    before: Any = denoiser.network
    larger = type(before).from_config({**before.config, **config}).requires_grad_(False).eval()
    weights = before.state_dict()
    for name in larger.state_dict():
        block = next((b for b in moved if name.startswith(f"{b}.")), None)
        source = name if block is None else moved[block] + name.removeprefix(block)
        larger.state_dict()[name].copy_(weights[source])
    for block in idle:
        silence(larger.get_submodule(block))
    return denoiser.with_module(larger)


def test_the_planted_blocks_of_a_unet_are_found():
    teacher, given = drawn("toy")
    blocks = [f"up_blocks.0.attentions.{k}.transformer_blocks" for k in (0, 1)]
    moved = {f"{block}.1": f"{block}.0" for block in blocks}
    depths = {
        "transformer_layers_per_block": [1, 1],
        "reverse_transformer_layers_per_block": [2, 1],
    }
    larger = planted(teacher, moved, list(moved), **depths)
    found = importance(larger, given, progress=False, repeats=1)
    names = [score.names for score in found.scores]
    # this teacher needs its mid block as little
    assert set(names[:3]) >= {(f"{block}.1",) for block in blocks}
    for score in found.scores:
        idle = score.names[0] in moved
        assert (abs(score.loss) < 1e-6) == (score.features < 1e-5) == idle
    assert names[-1] == ("up_blocks.0.attentions",)
    kept = propose(larger, found, 1 - 1e-3).keep
    assert set(kept) <= {"mid_block", *blocks}
    small = prune(larger, propose(larger, found, 0.6))
    assert sum(p.numel() for p in small.module.parameters()) <= 0.6 * found.cost.parameters
    assert small(*small.example()).isfinite().all()
    with pytest.raises(ValueError, match=r"without all parts .* are left, and 1.0% are asked for"):
        propose(larger, found, 0.01)
    with pytest.raises(ValueError, match="the share that may be left is nan"):
        propose(larger, found, float("nan"))


def test_the_planted_block_of_a_dit_is_found():
    teacher, given = drawn("toy-dit")
    old = [0, 1, 1, 2, 3, 4]  # the third does nothing
    moved = {f"transformer_blocks.{i}": f"transformer_blocks.{k}" for i, k in enumerate(old)}
    larger = planted(teacher, moved, ["transformer_blocks.2"], num_layers=6)
    found = importance(larger, given, progress=False, repeats=1)
    assert found.scores[0].names == ("transformer_blocks.2",)
    assert found.scores[0].loss == found.scores[0].features == 0
    assert all(score.loss > 1e-2 and score.features > 1e-2 for score in found.scores[1:])
    for budget in ("parameters", "flops"):
        spec = propose(larger, found, 0.9, budget)
        assert spec.keep == {"transformer_blocks": (0, 1, 3, 4, 5)}


def test_parts_of_sdxl_fit_its_config():
    """The mid block is as deep as the last level's first attention, so their blocks go together."""
    network: Any = unet("sdxl")
    parts = DiffusersDenoiser(
        network, FAMILIES["sd15"].make()[0].schedule, "epsilon"
    ).adapter.removable(network)
    pair = tuple(f"{b}.attentions.0.transformer_blocks.7" for b in ("down_blocks.2", "mid_block"))
    assert pair in parts
    for part in (
        pair,
        ("up_blocks.0.attentions.2.transformer_blocks.0",),
        ("mid_block.attentions",),
    ):
        assert pruned_network(network, PruneSpec.without(network, part), copy=False) is not None


@torch.no_grad()
def test_the_numbers_are_what_the_pruned_network_gives():
    """One part by hand: the rise of the loss, the operations, the parameters."""
    denoiser = FAMILIES["pixart-sigma"].make()[0]
    given = batches(denoiser)[:1]
    found = importance(denoiser, given, progress=False, repeats=1, seed=3)
    (score,) = [s for s in found.scores if s.names == ("transformer_blocks.2",)]
    spec = PruneSpec.without(denoiser.network, score.names)
    cut = denoiser.with_module(pruned_network(denoiser.network, spec))
    draws = Draws(3, 0, torch.arange(2), purpose="importance")
    t = denoiser.schedule.timestep(draws.uniform("t"))
    noise = draws.normal("noise", (4, 8, 8))
    x_t = denoiser.schedule(t).mix(given[0].x0, noise)
    losses = [(d(x_t, t, given[0].condition) - noise).square().mean() for d in (denoiser, cut)]
    assert found.loss == pytest.approx(float(losses[0]), rel=1e-5)
    assert score.loss == pytest.approx(float(losses[1] - losses[0]), rel=1e-3, abs=1e-6)
    assert score.cost.parameters == sum(p.numel() for p in cut.module.parameters())
    assert score.cost.flops < found.cost.flops


def test_a_short_distillation_by_hand():
    """One update of AdamW on the second batch, then the loss on the first."""
    denoiser = FAMILIES["pixart-sigma"].make()[0]
    given = batches(denoiser)
    found = importance(
        denoiser, given, progress=False, repeats=1, seed=3, distil_steps=1, learning_rate=1e-3
    )
    before = importance(denoiser, given[:1], progress=False, repeats=1, seed=3)
    (score,) = [s for s in found.scores if s.names == ("transformer_blocks.2",)]
    (plain,) = [s for s in before.scores if s.names == score.names]
    network = pruned_network(denoiser.network, PruneSpec.without(denoiser.network, score.names))
    cut = denoiser.with_module(network.requires_grad_(True))

    def noised(batch: Latents, purpose: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        draws = Draws(3, 0, torch.arange(2), purpose=purpose)
        t = denoiser.schedule.timestep(draws.uniform("t"))
        noise = draws.normal("noise", (4, 8, 8))
        return denoiser.schedule(t).mix(batch.x0, noise), t, noise

    x_t, t, _ = noised(given[1], "importance/distil")
    target = denoiser(x_t, t, given[1].condition).detach()
    (cut(x_t, t, given[1].condition) - target).square().mean().backward()
    for weight in network.parameters():
        if weight.grad is not None:  # Adam's first step: the sign of the gradient, but for eps
            weight.data -= 1e-3 * weight.grad / (weight.grad.abs() + 1e-8)
    x_t, t, noise = noised(given[0], "importance")
    with torch.no_grad():
        losses = [(d(x_t, t, given[0].condition) - noise).square().mean() for d in (denoiser, cut)]
    rise = float(losses[1] - losses[0])
    assert score.loss == pytest.approx(rise, rel=1e-2, abs=1e-6)
    assert abs(rise - plain.loss) > 5e-2 * abs(rise)  # the update does something
    assert score.features == pytest.approx(plain.features)


def test_what_training_mends_is_not_held_against_a_part():
    """A block that adds a constant raises the loss at once, and its neighbour's bias learns to add it."""
    denoiser = FAMILIES["pixart-sigma"].make()[0].copy()
    block = denoiser.network.get_submodule("transformer_blocks.1")
    silence(block)
    with torch.no_grad():
        block.get_parameter("ff.net.2.bias").fill_(1.0)
    given = batches(denoiser)
    settings: dict[str, Any] = {"progress": False, "repeats": 1}
    found = [
        importance(denoiser, given, **settings, distil_steps=n, learning_rate=3e-2) for n in (0, 30)
    ]
    rises = [
        next(s.loss for s in one.scores if s.names == ("transformer_blocks.1",)) for one in found
    ]
    assert rises[1] < 0.3 * rises[0]
    with pytest.raises(ValueError, match="one to distil with, one to measure"):
        importance(denoiser, given[:1], **settings, distil_steps=1)


def test_parts_that_cannot_go_say_why(tmp_path):
    denoiser = FAMILIES["sd3"].make()[0]
    found = importance(denoiser, batches(denoiser), progress=False, repeats=1)
    assert [*found.refused] == ["transformer_blocks.3"]
    assert "is the last block" in found.refused["transformer_blocks.3"]
    found.save(tmp_path)
    table = (tmp_path / "importance.md").read_text()
    assert table.count("\n| transformer_blocks.") == 3
    assert "- transformer_blocks.3: " in table
    assert (tmp_path / "importance.svg").read_text().count("<rect ") == 3


def test_a_stopped_search_goes_on(tmp_path, monkeypatch):
    denoiser = FAMILIES["dit"].make()[0]
    given, measured = batches(denoiser), module._Search.without
    asked: list[Any] = []

    def stops(self: Any, names: Any) -> Any:
        asked.append(names)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return measured(self, names)

    monkeypatch.setattr(module._Search, "without", stops)
    with pytest.raises(KeyboardInterrupt):
        importance(denoiser, given, output=tmp_path, progress=False, repeats=1)
    assert len(json.loads((tmp_path / "importance.json").read_text())["parts"]) == 2
    resumed = importance(denoiser, given, output=tmp_path, progress=False, repeats=1)
    assert len(asked) == 5  # two, the one that was stopped, and the last two
    fresh = importance(denoiser, given, progress=False, repeats=1)
    plain = [[(s.names, s.loss, s.features) for s in found.scores] for found in (resumed, fresh)]
    assert plain[0] == plain[1]
    with pytest.raises(ValueError, match="is of another search"):
        importance(denoiser, given, output=tmp_path, progress=False, repeats=1, seed=1)


def test_what_is_not_finite_is_never_good():
    denoiser = FAMILIES["dit"].make()[0].copy()
    broken = denoiser.network.get_parameter("transformer_blocks.1.ff.net.2.bias")
    with torch.no_grad():
        broken.fill_(torch.nan)
    with pytest.raises(ValueError, match="the whole network's loss is nan"):
        importance(denoiser, batches(denoiser), progress=False, repeats=1)
    with pytest.raises(ValueError, match="there is no batch"):
        importance(denoiser, [], progress=False)
