from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from nitrodistill.discriminator import ConvHead, LatentDiscriminator, MLPHead, TokenHead
from nitrodistill.method import Role
from nitrodistill.models import LoRAConfig, add_lora
from nitrodistill.types import Condition
from tests.models.families import FAMILIES, inputs

TAPS = ("conv_in", "mid_block")


def number_of_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_logits_a_patch_for_every_tap(tiny_denoiser, tiny_condition):
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, width=12)
    logits = discriminator(torch.zeros(3, 4, 8, 8), torch.tensor(10), tiny_condition)
    assert [tuple(scale.shape) for scale in logits] == [(3, 25), (3, 9)]


def test_any_head(tiny_denoiser, tiny_condition):
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, head=TokenHead, width=12)
    logits = discriminator(torch.zeros(3, 4, 8, 8), torch.tensor(10), tiny_condition)
    assert [tuple(scale.shape) for scale in logits] == [(3, 64), (3, 16)]


def test_gradients_reach_the_latents_and_the_heads_alone(tiny_denoiser, tiny_condition, generator):
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS)
    x_t = torch.randn(3, 4, 8, 8, generator=generator, requires_grad=True)
    logits = discriminator(x_t, torch.tensor(10), tiny_condition)
    sum(scale.square().sum() for scale in logits).backward()
    assert x_t.grad is not None
    assert float(x_t.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in discriminator.heads.parameters())
    assert all(p.grad is None for p in tiny_denoiser.module.parameters())
    assert not tiny_denoiser.module.training


def test_the_backbone_is_not_among_the_heads(tiny_denoiser):
    heads = LatentDiscriminator(tiny_denoiser, TAPS).heads
    assert number_of_parameters(heads) == sum(
        number_of_parameters(ConvHead(channels)) for channels in (32, 64)
    )


def test_a_seed_gives_the_heads_and_leaves_the_global_generator(tiny_denoiser):
    before = torch.random.get_rng_state()
    one, two, other = (
        LatentDiscriminator(tiny_denoiser, TAPS, seed=seed).heads.state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_heads_and_lora_leave_the_generators_of_gpus(tiny_denoiser, monkeypatch):
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(int(torch.initial_seed()))
    assert len(seeds) == 1, "what it does to them is seen"
    LatentDiscriminator(tiny_denoiser, TAPS)
    add_lora(tiny_denoiser, "student", LoRAConfig(rank=2))
    assert len(seeds) == 1


def test_any_backbone_with_an_example(generator):
    class Backbone:
        module = torch.nn.Sequential(torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.SiLU())
        schedule = None
        prediction_type = "sample"

        def __call__(self, x_t, t, condition):
            return self.module(x_t)

    example = (torch.zeros(1, 2, 6, 6), torch.tensor(0), Condition())
    with pytest.raises(TypeError, match="example="):
        LatentDiscriminator(Backbone(), ["0"])
    discriminator = LatentDiscriminator(Backbone(), ["0"], example=example)
    assert discriminator(*example)[0].shape == (1, 16)


@pytest.mark.parametrize("name", FAMILIES)
def test_depths_and_every_block_work_for_every_family(name, generator):
    """With all that the heads can be told of it; a family without pooled text says so."""
    denoiser, _ = FAMILIES[name].make()
    x_t, t, condition = inputs(denoiser, size=FAMILIES[name].sizes[0])
    blocks = denoiser.adapter.blocks(denoiser.network)
    every = LatentDiscriminator(denoiser, "every_block", width=4)
    assert every.taps.names == blocks
    knows = ["timestep", "text"] if denoiser.adapter.pooled_text else ["timestep"]
    deep = LatentDiscriminator(denoiser, [0.5, 1.0], head=MLPHead, width=4, conditioning=knows)
    with torch.no_grad():
        logits = deep(x_t, t, condition)
        assert [scale.shape for scale in logits] == [(len(x_t), 1)] * 2
        assert len(every(x_t, t, condition)) == len(blocks)
        other = deep.logits(deep.taps.features(x_t, t, condition), 0.5 * t, condition)
    assert not torch.equal(other[0], logits[0])
    if not denoiser.adapter.pooled_text:
        with pytest.raises(ValueError, match="conditioning on text needs pooled text"):
            LatentDiscriminator(denoiser, [0.5], conditioning=["text"])


def test_it_is_a_module_whose_parameters_are_the_heads_alone(tiny_denoiser):
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, width=8, conditioning=["timestep"])
    names = dict(discriminator.named_parameters())
    assert all(name.startswith("heads.") for name in names)
    assert [*names.values()] == [*discriminator.heads.parameters()]
    assert set(discriminator.state_dict()) == set(names)
    backbone = {p.data_ptr(): p.dtype for p in tiny_denoiser.module.parameters()}
    discriminator.train().to(torch.float64)
    assert not any(module.training for module in tiny_denoiser.module.modules())
    assert discriminator.heads.training
    assert all(p.dtype == torch.float64 for p in discriminator.parameters())
    assert {p.data_ptr(): p.dtype for p in tiny_denoiser.module.parameters()} == backbone


def test_the_backbone_is_shared_and_frozen_to_optimizers(tiny_denoiser, tiny_condition, generator):
    """Neither gradients nor optimizer state nor weights of it move in an update."""
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, width=8)
    assert discriminator.denoiser.module is tiny_denoiser.module
    before = [p.clone() for p in tiny_denoiser.module.parameters()]
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=0.1)
    x_t = torch.randn(3, 4, 8, 8, generator=generator)
    mean_logit(discriminator(x_t, torch.tensor(10), tiny_condition)).backward()
    optimizer.step()
    assert set(optimizer.state) == set(discriminator.heads.parameters())
    after = tiny_denoiser.module.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def mean_logit(logits) -> torch.Tensor:
    return torch.stack([scale.mean() for scale in logits]).mean()


def test_accelerate_prepares_it_whole_or_by_its_heads(tiny_denoiser, tiny_condition, generator):
    accelerator = Accelerator(cpu=True)
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, width=8)
    x_t = torch.randn(3, 4, 8, 8, generator=generator)
    call = (x_t, torch.tensor(10), tiny_condition)
    plain = discriminator(*call)
    role = Role(discriminator, "heads")
    role.bind(accelerator.prepare(role.module))
    prepared = accelerator.prepare(discriminator)
    for logits in (discriminator(*call), prepared(*call)):
        assert all(torch.equal(a, b) for a, b in zip(logits, plain, strict=True))


def test_a_role_rebinds_the_heads(tiny_denoiser, tiny_condition):
    """What stands in their place later is what is called and what the parameters are."""
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, width=8)

    class Prepared(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *arguments):
            return tuple(2 * scale for scale in self.module(*arguments))

    call = (torch.ones(3, 4, 8, 8), torch.tensor(10), tiny_condition)
    plain = discriminator(*call)
    Role(discriminator, "heads").bind(Prepared(discriminator.heads))
    assert all(torch.equal(a, 2 * b) for a, b in zip(discriminator(*call), plain, strict=True))
    assert all(name.startswith("heads.module.") for name, _ in discriminator.named_parameters())


def test_a_trained_critic_and_a_lora_role_are_sources_too(tiny_denoiser, tiny_condition, generator):
    x_t = torch.randn(3, 4, 8, 8, generator=generator)
    critic = tiny_denoiser.copy()
    discriminator = LatentDiscriminator(critic, ["down_blocks.1"], width=8, freeze=False)
    mean_logit(discriminator(x_t, torch.tensor(10), tiny_condition)).backward()
    down = critic.module.down_blocks.parameters()
    assert all(p.grad is not None for p in down)
    role = add_lora(tiny_denoiser, "critic", LoRAConfig(rank=2))
    torch.nn.init.ones_(next(p for n, p in role.module.named_parameters() if "lora_B" in n))
    base, view = (
        LatentDiscriminator(source, ["mid_block"], width=8, freeze=False)
        for source in (tiny_denoiser, role)
    )
    call = (x_t, torch.tensor(10), tiny_condition)
    assert not torch.equal(base(*call)[0], view(*call)[0])
    mean_logit(view(*call)).backward()
    assert any(p.grad is not None for p in role.module.parameters())


def test_conditioned_heads_want_their_text(tiny_denoiser, tiny_condition, generator):
    """A Condition of one's own may name its pooled text; without it there is a sentence."""
    x_t, t, example = tiny_denoiser.example()
    pooled = torch.randn(3, 6, generator=generator)
    known = Condition({**example.tensors, "pooled": pooled[:1]})
    discriminator = LatentDiscriminator(
        tiny_denoiser, TAPS, conditioning=["text"], pooled="pooled", example=(x_t, t, known)
    )
    features = discriminator.taps.features(torch.zeros(3, 4, 8, 8), t, tiny_condition)
    told = Condition({**tiny_condition.tensors, "pooled": pooled})
    swapped = Condition({**tiny_condition.tensors, "pooled": pooled.flip(0)})
    logits, others = (discriminator.logits(features, t, c)[0] for c in (told, swapped))
    assert not torch.equal(logits[0], others[0])
    assert torch.equal(logits[1], others[1])
    with pytest.raises(ValueError, match="the Condition has none"):
        discriminator.logits(features, t, tiny_condition)


class Narrow(torch.nn.Conv2d):
    """A head of 7 channels, whatever it is asked for."""

    def __init__(self, channels: int, width: int | None) -> None:
        super().__init__(7, 1, 1)


class Plain(torch.nn.Module):
    """A head of one's own: one logit a sample, without a dimension for it, or something else."""

    def __init__(self, channels: int, width: int | None, result: str = "logits") -> None:
        super().__init__()
        self.linear, self.result = torch.nn.Linear(channels, 1), result

    def forward(self, features):
        logits = self.linear(features.mean((2, 3)))[:, 0]
        return {"logits": logits, "mean": logits.mean(), "pair": (logits, logits)}[self.result]


def test_a_head_may_give_one_logit_a_sample(tiny_denoiser, tiny_condition):
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, head=Plain)
    logits = discriminator(torch.zeros(3, 4, 8, 8), 5, tiny_condition)
    assert [tuple(one.shape) for one in logits] == [(3, 1), (3, 1)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_conditioned_heads_are_moved_to_another_dtype_like_others(
    tiny_denoiser, tiny_condition, dtype
):
    made = LatentDiscriminator(tiny_denoiser, TAPS, width=8, conditioning="timestep")
    call = (torch.ones(3, 4, 8, 8), 5, tiny_condition)
    before, after = made(*call), made.to(dtype)(*call)
    assert all(one.dtype == dtype for one in after)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other.float(), one, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"width": 0}, "width is 0"),
        ({"conditioning": ["timestep"] * 2}, r"'timestep'\); name each only once"),
        ({"pooled": "words"}, "pooled is 'words', but conditioning is .*; put 'text' in it"),
        ({"head": lambda c, w: Plain(c, w, "mean")}, r"'conv_in' makes \(\) of 2 maps"),
        ({"head": lambda c, w: Plain(c, w, "pair")}, "'conv_in' makes tuple of 2 maps"),
        ({"conditioning": ["class"]}, "conditioning is 'class'; it must be one of"),
        ({"conditioning": ["text"]}, "conditioning on text needs pooled text"),
        ({"head": Narrow}, "the head of 'conv_in' does not take its map of 32 channels"),
        ({"taps": ["time_embedding"]}, "neither a map"),
        ({"taps": [0.2, 1.5]}, "a tap's depth is 1.5"),
    ],
)
def test_bad_input(tiny_denoiser, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        LatentDiscriminator(tiny_denoiser, **{"taps": TAPS, **settings})


def test_what_makes_heads_must_make_modules(tiny_denoiser):
    with pytest.raises(TypeError, match=r"what .* makes is 3; it must be an nn.Module"):
        LatentDiscriminator(tiny_denoiser, TAPS, head=lambda channels, width: 3)


def test_a_tap_without_positions_on_a_network_of_ones_own():
    class Backbone:
        module = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2, 8)
        )
        schedule, prediction_type = None, "sample"

        def __call__(self, x_t, t, condition):
            return self.module(x_t)

    example = (torch.zeros(1, 2, 6, 6), torch.tensor(0), Condition())
    with pytest.raises(ValueError, match=r"the tap '2' gives shape \(1, 8\), which is no map"):
        LatentDiscriminator(Backbone(), ["2"], example=example)
