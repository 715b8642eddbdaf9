"""One test a feature, for all families, on tiny random networks of their real classes.

`python tests/models/write_table.py` runs these and writes the table of docs/families.md from what passed.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from nitrodistill.models import (
    DiffusersDenoiser,
    FeatureTaps,
    Guided,
    LoRAConfig,
    PruneSpec,
    add_lora,
    merged,
    prune,
)
from nitrodistill.models.pruning import weight_map
from nitrodistill.sampling import StepPlan, predict_x0
from nitrodistill.types import Condition, Denoiser
from tests.models.families import FAMILIES, Family, PeakBytes, inputs


@cache
def made(name: str) -> tuple[DiffusersDenoiser, Any]:
    """A family's denoiser and scheduler, built once; nobody changes them."""
    return FAMILIES[name].make()


@pytest.fixture(params=FAMILIES, ids=str)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def family(name: str) -> Family:
    return FAMILIES[name]


@pytest.fixture
def denoiser(name: str) -> DiffusersDenoiser:
    return made(name)[0]


@pytest.fixture
def own(name: str) -> DiffusersDenoiser:
    """A frozen copy that the test may change."""
    shared = made(name)[0]
    return shared.with_module(copy.deepcopy(shared.network))


@torch.no_grad()
def test_equals_diffusers(family, denoiser):
    for size in family.sizes:
        x_t, t, condition = inputs(denoiser, size=size)
        theirs = family.call(denoiser.network, x_t, t, condition)
        found = denoiser(x_t, t, condition)
        assert found.shape == x_t.shape
        torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)
    assert isinstance(denoiser, Denoiser)


@torch.no_grad()
def test_x0_is_the_schedulers(name, family, denoiser):
    """A whole one-step sampling by diffusers' scheduler, as its pipelines do it, ends at our x0."""
    scheduler, shape = _one_step(made(name)[1], denoiser), family.sizes[0]
    x_t, _, condition = inputs(denoiser, size=shape)
    told = scheduler.timesteps[0]
    step = StepPlan.from_schedule(denoiser.schedule).steps[0]
    x_t = x_t * step.input.sigma.float()
    shown = x_t
    if family.raw is not None:
        shown = scheduler.scale_model_input(x_t, told)
    t = (told * denoiser.adapter.timestep_scale).expand(len(x_t))
    raw = (family.raw or family.call)(denoiser.network, shown, t, condition)
    theirs = scheduler.step(raw, told, x_t, return_dict=False)[0]
    found = predict_x0(denoiser, step, x_t, condition)
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def _one_step(scheduler: Any, denoiser: DiffusersDenoiser) -> Any:
    """A scheduler that samples in one step; the family's own where that is exact."""
    if isinstance(scheduler, diffusers.EDMEulerScheduler):
        exact: Any = diffusers.EDMEulerScheduler.from_config(scheduler.config)
    elif denoiser.prediction_type == "flow_prediction":
        exact = diffusers.FlowMatchEulerDiscreteScheduler(shift=denoiser.schedule.shift)  # type: ignore[attr-defined]
    else:
        exact = diffusers.DDPMScheduler.from_config(
            scheduler.config, timestep_spacing="trailing", clip_sample=False
        )
    exact.set_timesteps(1)
    return exact


@torch.no_grad()
def test_guidance(family, denoiser):
    if not denoiser.adapter.entries():
        pytest.skip("nothing to be guided by")
    x_t, t, condition = inputs(denoiser, size=family.sizes[0])
    null = _shuffled(condition).index([0])
    low = denoiser(x_t, t, null.index([0, 0]))
    high = denoiser(x_t, t, condition)
    found = Guided(denoiser, 3.0, null)(x_t, t, condition)
    scale = float(found.abs().max())
    torch.testing.assert_close(found, low + 3 * (high - low), rtol=1e-4, atol=1e-5 * scale)
    assert not torch.allclose(found, high)


def _shuffled(condition: Condition) -> Condition:
    """Other embeddings; the last sample's labels, so that they are of a class that there is."""
    return Condition(
        {
            key: value.flip(0) if not value.is_floating_point() else value.flip(-1)
            for key, value in condition.tensors.items()
        }
    )


@torch.no_grad()
def test_taps(family, denoiser):
    taps = FeatureTaps(denoiser, [0.25, 0.5, 0.75])
    blocks = denoiser.adapter.blocks(denoiser.network)
    assert [blocks.index(name) for name in taps.names] == sorted(map(blocks.index, taps.names))
    shapes = taps.shapes()
    for size in family.sizes:
        x_t, t, condition = inputs(denoiser, size=size)
        prediction, full = taps.prediction_and_features(x_t, t, condition)
        torch.testing.assert_close(prediction, denoiser(x_t, t, condition))
        for shape, early, late in zip(shapes, taps.features(x_t, t, condition), full, strict=True):
            height, width = (side // shape.stride for side in size)
            assert early.shape == (2, shape.channels, height, width)
            assert torch.equal(early, late)


@torch.no_grad()
def test_early_exit(family, own):
    """Fewer modules run, and `trim` removes exactly such as never ran."""
    x_t, t, condition = inputs(own, size=family.sizes[0])
    taps, ran = FeatureTaps(own, [0.5]), []
    handles = [m.register_forward_hook(lambda *_: ran.append(0)) for m in own.network.modules()]
    own(x_t, t, condition)
    everything = len(ran)
    ran.clear()
    features = taps.features(x_t, t, condition)
    early = len(ran)
    for handle in handles:
        handle.remove()
    assert 0 < early < 0.8 * everything
    blocks = own.adapter.blocks(own.network)
    before = sum(p.numel() for p in own.network.parameters())
    removed = taps.trim()
    assert blocks[-1] in removed
    assert not set(removed) & set(blocks[: blocks.index(taps.names[0]) + 1])
    assert sum(p.numel() for p in own.network.parameters()) < 0.8 * before
    assert torch.equal(taps.features(x_t, t, condition)[0], features[0])
    with pytest.raises((AttributeError, RuntimeError), match=r"removed .* by FeatureTaps\.trim"):
        own(x_t, t, condition)
    with pytest.raises(ValueError, match="lies behind the early exit"):
        FeatureTaps(own, [f"{blocks[-1]}.anything"])


def test_gradients_through_the_frozen_backbone(family, denoiser):
    x0, t, condition = inputs(denoiser, size=family.sizes[0])
    x0.requires_grad_(True)
    scales = denoiser.schedule(t)
    features = FeatureTaps(denoiser, [0.5]).features(
        scales.mix(x0, torch.ones_like(x0)), t, condition
    )
    features[0].square().mean().backward()
    assert x0.grad is not None
    assert all(float(row.abs().sum()) > 0 for row in x0.grad)
    assert all(p.grad is None for p in denoiser.network.parameters())


def test_a_copy_trains_all_that_the_prediction_depends_on_and_nothing_else(name, denoiser):
    """DDP waits for the gradient of every weight that asks for one."""
    copied = denoiser.copy()
    x_t, t, condition = inputs(copied, size=FAMILIES[name].sizes[0])
    copied(x_t, t, condition).square().sum().backward()
    weights = dict(copied.network.named_parameters())
    asks = {name for name, weight in weights.items() if weight.requires_grad}
    assert asks == {name for name, weight in weights.items() if weight.grad is not None}
    assert len(asks) > 0.9 * len(weights)


def test_checkpointing(own):
    """Less memory at the peak, and the same gradients, through taps inside of blocks too."""
    size = (16, 16)
    x_t, t, condition = inputs(own, batch=4, size=size)
    own.network.requires_grad_(True)
    taps = FeatureTaps(own, [_inside(own)])

    def gradients() -> tuple[list[Tensor], int]:
        with PeakBytes() as memory:
            prediction, (features,) = taps.prediction_and_features(x_t, t, condition)
            (prediction.square().mean() + features.square().mean()).backward()
        found = [p.grad for p in own.network.parameters() if p.grad is not None]
        own.network.zero_grad()
        return found, memory.peak

    plain, most = gradients()
    own.enable_gradient_checkpointing()
    less_memory, least = gradients()
    assert least < 0.9 * most
    assert len(plain) == len(less_memory) > 0
    for one, other in zip(plain, less_memory, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def _inside(denoiser: DiffusersDenoiser) -> str:
    """A submodule of a block in the middle."""
    block = FeatureTaps(denoiser, [0.5]).names[0]
    inside = ("attn1", "attn", "attention", "resnets.0")
    part = denoiser.network.get_submodule(block)
    names = dict(part.named_modules())
    return f"{block}.{next(name for name in inside if name in names)}"


def test_lora_roles(family, own):
    """Two roles on one network: each differs, the base stays, each gets its own gradients, and one merges."""
    x_t, t, condition = inputs(own, size=family.sizes[0])
    before = own(x_t, t, condition)
    count = sum(p.numel() for p in own.network.parameters())
    student = add_lora(own, "student", LoRAConfig(rank=2))
    critic = add_lora(own, "critic", LoRAConfig(rank=1, seed=1))
    assert torch.equal(student(x_t, t, condition), before)
    roles = [p for role in (student, critic) for p in role.module.parameters()]
    assert sum(p.numel() for p in own.network.parameters()) == count + sum(p.numel() for p in roles)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in roles:
            parameter.normal_(0, 0.2, generator=generator)
    assert torch.equal(own(x_t, t, condition), before)

    own.enable_gradient_checkpointing()  # recomputes blocks after the roles have changed
    drawn = student(x_t, t, condition)
    assert not torch.allclose(drawn, before)
    assert not torch.allclose(critic(x_t, t, condition), drawn)
    critic.module.requires_grad_(False)  # through the critic to the student alone
    critic(own(drawn, t, condition), t, condition).square().mean().backward()
    assert all(p.grad is not None for p in student.module.parameters())
    assert all(p.grad is None for p in critic.module.parameters())
    assert all(p.grad is None for n, p in own.network.named_parameters() if "lora_" not in n)
    with torch.no_grad():
        plain = merged(student)
        assert {n for n, _ in plain.network.named_parameters()} == {
            n.replace(".base_layer.", ".")
            for n, _ in own.network.named_parameters()
            if "lora_" not in n
        }
        scale = float(drawn.abs().max())
        torch.testing.assert_close(
            plain(x_t, t, condition), drawn.detach(), rtol=1e-3, atol=1e-4 * scale
        )


@torch.no_grad()
def test_sdpa(family, denoiser, monkeypatch):
    """Attention runs through torch's fused kernel."""
    calls, fused = [], nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional,
        "scaled_dot_product_attention",
        lambda *a, **k: (calls.append(0), fused(*a, **k))[1],
    )
    denoiser(*inputs(denoiser, size=family.sizes[0]))
    assert calls


@torch.no_grad()
def test_pruning(denoiser, family, tmp_path):
    """Without the first part that can go: fewer weights, each a copy; saved and loaded by diffusers alone."""
    for names in denoiser.adapter.removable(denoiser.network):
        try:
            spec = PruneSpec.without(denoiser.network, names)
            student = prune(denoiser, spec)
        except ValueError:  # the first or the last of a kind that must stay
            continue
        break
    else:
        pytest.skip("nothing can go")
    weights, before = student.network.state_dict(), denoiser.network.state_dict()
    moved = weight_map(denoiser.network, spec)
    assert set(weights) <= set(moved)
    assert all(torch.equal(weights[name], before[moved[name]]) for name in weights)
    assert sum(w.numel() for w in weights.values()) < sum(w.numel() for w in before.values())
    given = inputs(denoiser, size=family.sizes[0])
    found = student(*given)
    student.network.save_pretrained(tmp_path)
    loaded = type(denoiser.network).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(student.with_module(loaded)(*given), found, rtol=0, atol=0)
    assert not torch.equal(found, denoiser(*given))


def test_bad_input(family, denoiser):
    """Shapes that do not fit are told before the network runs."""
    x_t, t, condition = inputs(denoiser, size=family.sizes[0])
    channels = denoiser.adapter.channels()
    with pytest.raises(ValueError, match=rf"takes latents \(B, {channels}, H, W\)"):
        denoiser(x_t[:, 1:], t, condition)
    if denoiser.adapter.multiple > 1:
        with pytest.raises(ValueError, match="must be divisible by"):
            denoiser(x_t[..., 1:], t, condition)
    for key, value in condition.tensors.items():
        others = {k: v for k, v in condition.tensors.items() if k != key}
        with pytest.raises(ValueError, match=f"needs '{key}' in its Condition"):
            denoiser(x_t, t, Condition(others))
        wrong = value[:, :-1] if key.endswith("mask") else value[..., None]
        with pytest.raises(ValueError, match=r"encoded for another model|covers 4 tokens"):
            denoiser(x_t, t, Condition({**others, key: wrong}))
    if condition.tensors:
        with pytest.raises(ValueError, match="holds 1 samples for 2 latents"):
            denoiser(x_t, t, condition.index([0]))
