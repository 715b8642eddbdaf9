"""The game on a linear discriminator, where every number is known, and what is shared between passes."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nitrodistill.discriminator import (
    AdversarialGame,
    Augmentation,
    ConvHead,
    LatentDiscriminator,
    Noising,
    TokenHead,
)
from nitrodistill.losses import (
    ApproximateR1Penalty,
    HingeGANLoss,
    LazyPenalty,
    R1Penalty,
    R1R2Penalty,
    RelativisticGANLoss,
)
from nitrodistill.method import Draws
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.timesteps import LogitNormal, Uniform
from nitrodistill.types import Condition, expand

SHAPE = (2, 4, 4)
INDEX = torch.arange(5)
DRAWS = Draws(0, 3, INDEX)
CONDITION = Condition({"label": torch.zeros(5)})
X0, Z = (DRAWS.normal(name, SHAPE) for name in ("x0", "z"))
WEIGHT = torch.randn(1, 2, 1, 1, generator=torch.Generator().manual_seed(0))


class Identity:
    """A backbone whose features are its input."""

    schedule = RectifiedFlow(t_max=1)
    prediction_type = "sample"

    def __init__(self) -> None:
        self.module = nn.Sequential(nn.Identity())
        self.module.register_parameter("anchor", nn.Parameter(torch.zeros(1)))
        self.passes: list[tuple[Tensor, Tensor]] = []
        self.conditions: list[Condition] = []

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.passes.append((t, x_t))
        self.conditions.append(condition)
        return self.module(x_t)


def linear(channels: int, width: int | None) -> nn.Module:
    head = nn.Conv2d(channels, 1, 1, bias=False)
    with torch.no_grad():
        head.weight.copy_(WEIGHT)
    return head


def make_game(
    adversarial: Any = None, penalties: Any = None, head: Any = linear, **how: Any
) -> AdversarialGame:
    example = (torch.zeros(1, *SHAPE), torch.zeros(()), Condition())
    discriminator = LatentDiscriminator(Identity(), ["0"], head=head, example=example)
    laws = {"generator": LogitNormal(1, 1), "real": Uniform(((0, 0.5),)), "fake": Uniform()}
    noising = Noising(**{**laws, **how})
    discriminator.denoiser.passes.clear()
    discriminator.denoiser.conditions.clear()
    return AdversarialGame(discriminator, noising, adversarial or HingeGANLoss(), penalties)


def update(game: AdversarialGame, number: int = 0, **how: Any):
    return game.update(X0, Z, CONDITION, DRAWS, number, **how)


def by_use(game: AdversarialGame) -> list[tuple[Tensor, Tensor]]:
    """The passes, of which one may serve several uses, cut into these."""
    passes = game.discriminator.denoiser.passes
    cut = ((t.split(len(INDEX)), x_t.split(len(INDEX))) for t, x_t in passes)
    return [use for ts, x_ts in cut for use in zip(ts, x_ts, strict=True)]


def noised(x0: Tensor, law: Any, name: str) -> tuple[Tensor, Tensor]:
    """By hand: u from the law, t = u, x_t = (1 - t) x0 + t eps."""
    t = law(DRAWS.uniform(f"{name}.t"))
    u = expand(t, x0)
    return t, (1 - u) * x0 + u * DRAWS.normal(f"{name}.noise", SHAPE)


def test_each_use_has_its_law_and_its_draws():
    game = make_game(RelativisticGANLoss())
    game.generator(X0, Z, CONDITION, DRAWS)
    update(game, wrong=(Z.roll(1, 0), None))
    cases = [
        (X0, LogitNormal(1, 1), "generator"),
        (Z, LogitNormal(1, 1), "generator.real"),
        (Z, Uniform(((0, 0.5),)), "real"),
        (X0, Uniform(), "fake"),
        (Z.roll(1, 0), Uniform(), "misaligned"),
    ]
    for (t, x_t), case in zip(by_use(game), cases, strict=True):
        torch.testing.assert_close((t.float(), x_t), noised(*case), rtol=1e-5, atol=1e-5)


def test_the_losses_are_those_of_the_logits():
    game = make_game()
    loss, seen = game.generator(X0, Z, CONDITION, DRAWS)
    _, x_t = noised(X0, LogitNormal(1, 1), "generator")
    torch.testing.assert_close(loss, -(x_t * WEIGHT).sum(1).mean((1, 2)))
    assert torch.equal(seen["generator"].features[0], game.discriminator.denoiser.passes[0][1])
    found = update(game)
    real, fake = (
        (noised(x, law, name)[1] * WEIGHT).sum(1).flatten(1)
        for x, law, name in ((Z, Uniform(((0, 0.5),)), "real"), (X0, Uniform(), "fake"))
    )
    expected = (1 - real).relu().mean(1) + (1 + fake).relu().mean(1)
    torch.testing.assert_close(found.per_sample, expected)


def test_shared_noise_is_the_same_for_real_and_fake_and_leaves_the_generators():
    law = Uniform()
    game = make_game(generator=law, real=law, fake=law, shared=True)
    game.generator(X0, Z, CONDITION, DRAWS)
    game.update(Z, Z, CONDITION, DRAWS, 0, wrong=(Z, None))
    first, *others = by_use(game)
    assert len(others) == 3
    for t, x_t in others:
        assert torch.equal(t, others[0][0])
        assert torch.equal(x_t, others[0][1])
    assert not torch.equal(first[0], others[0][0])


def test_one_pass_serves_both_updates():
    """The fake's features are the generator's, cut off; with shared noise the real side follows them."""
    for shared in (False, True):
        game = make_game(real=Uniform(), shared=shared)
        passes = game.discriminator.denoiser.passes
        x0 = X0.clone().requires_grad_()
        _, seen = game.generator(x0, Z, CONDITION, DRAWS)
        found = update(game, seen=seen)
        assert len(passes) == 2, "the generator's and the real one's"
        assert torch.equal(found.fake.logits[0], seen["generator"].logits[0])
        assert torch.equal(passes[0][0], passes[1][0]) == shared
        (gradient,) = torch.autograd.grad(found.per_sample.sum(), x0, allow_unused=True)[:1]
        assert gradient is None


@pytest.mark.parametrize("shared", [False, True])
def test_a_relativistic_generators_real_pass_serves_where_the_noise_is_shared(shared):
    game = make_game(RelativisticGANLoss(), real=Uniform(), shared=shared)
    passes = game.discriminator.denoiser.passes
    _, seen = game.generator(X0, Z, CONDITION, DRAWS)
    assert len(passes) == 2
    gap, real = game.gap(Z, seen, CONDITION, DRAWS)
    found = update(game, seen=seen)
    assert len(passes) == (2 if shared else 4)
    # those of passes of their own, which the fake's alone asks for
    alone = {"generator": seen["generator"]}
    other, again = game.gap(Z, alone, CONDITION, DRAWS)
    torch.testing.assert_close((gap, real.logits), (other, again.logits))
    torch.testing.assert_close(found.per_sample, update(game, seen=alone).per_sample)


def test_passes_that_the_network_learns_from_serve_the_discriminator_too():
    game = make_game()
    x0 = X0.clone().requires_grad_()
    seen = {"real": game.side(Z, CONDITION, DRAWS, "real")}
    seen["fake"] = game.side(x0, CONDITION, DRAWS, "fake")
    assert torch.autograd.grad(seen["fake"].logits[0].sum(), x0, retain_graph=True)[0].any()
    found = game.update(x0, Z, CONDITION, DRAWS, 0, seen=seen)
    assert len(game.discriminator.denoiser.passes) == 2
    assert torch.equal(found.per_sample, update(game).per_sample)
    assert torch.autograd.grad(found.per_sample.sum(), x0, allow_unused=True)[0] is None


def test_real_latents_may_have_other_prompts():
    game, others = make_game(RelativisticGANLoss()), Condition({"label": torch.ones(5)})
    game.generator(X0, Z, CONDITION, DRAWS, z_condition=others)
    update(game, z_condition=others, wrong=(Z, None))
    labels = [c["label"][::5].tolist() for c in game.discriminator.denoiser.conditions]
    assert labels == [[0], [1], [1, 0, 0]]


def test_what_is_logged_and_the_total():
    """A loss of one logit for everything has no advantage; r1 and r1_r2 add 2 |w|^2 / 16 and 3 of twice that."""
    penalties = {"a": LazyPenalty(R1Penalty(), 2.0), "b": LazyPenalty(R1R2Penalty(), 3.0)}
    game = make_game(penalties=penalties)
    found = update(game)
    shown, r1 = game.shown(found), WEIGHT.square().sum() / 16
    torch.testing.assert_close((shown["a"], shown["b"]), (r1.expand(5), (2 * r1).expand(5)))
    torch.testing.assert_close(found.total(torch.mean), found.per_sample.mean() + 8 * r1)
    torch.testing.assert_close(shown["advantage"], 1 - found.per_sample.detach() / 2)
    assert {"discriminator", "logit_real", "accuracy_fake", "logit_gap.0"} < shown.keys()
    assert not any(value.requires_grad for value in shown.values())


def test_an_update_is_one_pass_of_the_backbone_and_one_of_the_heads_for_each_use():
    """Heads may normalise over a batch, so they must not see real and fake in one."""
    game, seen = make_game(), list[Tensor]()
    hook = game.discriminator.heads.register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    update(game, wrong=(Z.roll(1, 0), None))
    hook.remove()
    ((t, x_t),) = game.discriminator.denoiser.passes
    assert t.shape == (15,)
    assert all(map(torch.equal, seen, x_t.split(5)))
    assert len(seen) == 3


def test_mismatches_are_half_of_the_fakes_where_they_are_mismatches():
    game, differ = make_game(), torch.tensor([True, False, True, True, False])
    plain, wrong = update(game).per_sample, Z.roll(1, 0)
    found, everywhere = (update(game, wrong=(wrong, where)).per_sample for where in (differ, None))
    assert torch.equal(found, torch.where(differ, everywhere, plain))
    assert not torch.isclose(everywhere, plain).any()


@pytest.mark.parametrize("scale", [0.3, 1e-2, 1e-3])
def test_the_approximate_penalty_of_a_linear_discriminator_on_noised_latents(scale):
    """The mean logit moves by (1 - t) scale w n: exact at any noise level, and 0 with the perturbation."""
    game = make_game(penalties={"a": LazyPenalty(ApproximateR1Penalty(scale), 2.0)})
    ((factor, value),) = update(game).penalties.values()
    t, _ = noised(Z, Uniform(((0, 0.5),)), "real")
    moved = expand(1 - t, Z) * scale * DRAWS.normal("real.moved", SHAPE)
    assert factor == 2
    torch.testing.assert_close(
        value, (moved * WEIGHT).sum(1).square().mean((1, 2)), rtol=2e-2, atol=1e-10
    )
    clean, _, perturbed = by_use(game)
    assert torch.equal(clean[0], perturbed[0]), "the same timestep"


@pytest.mark.parametrize("head", [ConvHead, TokenHead])
def test_the_approximate_penalty_vanishes_with_the_perturbation_while_heads_are_trained(head):
    """As its square: a spectral norm that moves on between two passes would leave a rest."""
    slopes = []
    for scale in (1e-2, 1e-4):
        penalties = {"a": LazyPenalty(ApproximateR1Penalty(scale))}
        game = make_game(penalties=penalties, head=lambda channels, _: head(channels, 64))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # as after a step: the norms are behind the weights
            for parameter in game.discriminator.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        assert game.discriminator.training
        slopes.append(update(game).penalties["a"][1].mean() / scale**2)
        assert all(module.training for module in game.discriminator.modules())
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0.1, atol=0)


def test_the_exact_penalty_acts_on_the_heads_inputs():
    """Of the mean of a 1x1 convolution's 16 logits: |w|^2 / 16, whatever the noise."""
    game = make_game(penalties={"r1": LazyPenalty(R1Penalty())})
    found = update(game)
    expected = (WEIGHT.square().sum() / 16).expand(5)
    torch.testing.assert_close(found.penalties["r1"][1], expected)
    found.penalties["r1"][1].sum().backward()
    assert all(p.grad is not None for p in game.discriminator.parameters())
    assert not found.fake.features[0].requires_grad


def test_lazy_penalties_are_not_computed_between():
    game = make_game(penalties={"r1": LazyPenalty(ApproximateR1Penalty(), 1.0, every=3)})
    found = [update(game, number).penalties for number in range(4)]
    assert [{name: factor for name, (factor, _) in one.items()} for one in found] == [
        {"r1": 3.0},
        {},
        {},
        {"r1": 3.0},
    ]
    assert len(game.discriminator.denoiser.passes) == 4 + 2


def test_augmentation_comes_before_the_noise():
    law = Uniform()
    plain, flipped = (
        make_game(real=law, augmentation=augmentation)
        for augmentation in (None, Augmentation(flip=1.0))
    )
    update(plain)
    flipped.update(X0.flip(3), Z.flip(3), CONDITION, DRAWS, 0)
    for (_, a), (_, b) in zip(
        plain.discriminator.denoiser.passes, flipped.discriminator.denoiser.passes, strict=True
    ):
        torch.testing.assert_close(a, b)


def test_weights_of_other_heads_are_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"has 2 weights, and the discriminator 1 heads \(at 0\)"):
        make_game(HingeGANLoss(weights=(1.0, 2.0)))


def test_augmentation_without_kornia_is_refused_before_the_first_step(monkeypatch):
    for name in ("kornia.geometry", "kornia.geometry.transform"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="pip install kornia"):
        make_game(augmentation=Augmentation(flip=0.5))


def test_a_use_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="use is 'reel'; it must be one of 'generator', 'real'"):
        make_game().side(X0, CONDITION, DRAWS, "reel")


def test_a_penalty_needs_heads_that_are_trained():
    game = make_game()
    game.discriminator.requires_grad_(False)
    with pytest.raises(
        ValueError, match="the penalties r1 act on the discriminator's heads, and no"
    ):
        AdversarialGame(
            game.discriminator, game.noising, HingeGANLoss(), {"r1": LazyPenalty(R1Penalty())}
        )
