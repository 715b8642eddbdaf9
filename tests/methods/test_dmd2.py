"""Distribution matching distillation: who learns what, from which input, at which step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nitrodistill.diagnostics import logit_statistics
from nitrodistill.discriminator import Augmentation
from nitrodistill.losses import LatentLPIPSLoss, augment_latents
from nitrodistill.losses import functional as F
from nitrodistill.method import Cast, Draws
from nitrodistill.methods import find_method
from nitrodistill.methods.dmd2 import (
    DMD2,
    CriticConfig,
    DecoupledConfig,
    DMD2Config,
    GANConfig,
    RegressionConfig,
)
from nitrodistill.methods.dmd2.critic import critic_error, critic_signal
from nitrodistill.methods.dmd2.inputs import Inputs, latents_of, make_inputs
from nitrodistill.models import DiffusersDenoiser, LoRAConfig, add_lora
from nitrodistill.sampling import Step, StepPlan, sample
from nitrodistill.schedules import DiscreteSchedule, KarrasSchedule, RectifiedFlow
from nitrodistill.training import OptimizerConfig, Trainer, TrainerConfig
from nitrodistill.training.records import gradient_shares
from nitrodistill.types import (
    Batch,
    Condition,
    Latents,
    NoiseSchedule,
    Pairs,
    PredictionType,
)
from tests.mixtures import SCHEDULES, ExactDenoiser, Mixture
from tests.models.families import FAMILIES

PAIRS = GANConfig(0.1, real="pairs", taps=("mid_block",), head_width=4)
TEACHERS = dataclasses.replace(PAIRS, features="teacher", real="real", adversarial="hinge")
REGRESSION = RegressionConfig(weight=0.5, share=1 / 2)
CASES: dict[str, DMD2Config] = {
    "alone": DMD2Config(guidance=2.0),
    "gan_on_the_critic": DMD2Config(gan=PAIRS, divergence="jensen_shannon", alpha_weight=True),
    "gan_on_the_teacher": DMD2Config(gan=TEACHERS, regression=REGRESSION, updates="alternating"),
    "decoupled": DMD2Config(
        guidance=3.0, decoupled=DecoupledConfig(), off_grid_weight=0.5, normaliser="conditional",
        num_inference_steps=2,
    ),
    "relativistic": DMD2Config(gan=dataclasses.replace(PAIRS, adversarial="relativistic")),
    "all_of_the_game": DMD2Config(gan=dataclasses.replace(
        PAIRS, taps=("down_blocks.0", "mid_block"), head="mlp", conditioning=("timestep",),
        adversarial={"hinge": {"weights": [1, 2]}}, augmentation=Augmentation(flip=0.5), noising="shared",
        penalty={"r1_r2": 0.1, "approximate_r1": {"weight": 10.0, "scale": 0.1}},
    )),
}  # fmt: skip


def cast_of(teacher: DiffusersDenoiser, lora: bool = False) -> Cast:
    """Student and critic that differ from the teacher and from each other."""
    empty = Condition({"encoder_hidden_states": torch.ones(1, 5, 16)}, torch.tensor([-1]))
    if lora:
        made: dict[str, Any] = {
            name: add_lora(teacher, name, LoRAConfig(rank=2)) for name in ("student", "critic")
        }
    else:
        made = {name: teacher.copy() for name in ("student", "critic")}
    generator = torch.Generator().manual_seed(4)
    for denoiser in made.values():
        for weight in denoiser.module.parameters():
            weight.data += 0.02 * torch.randn(weight.shape, generator=generator)
    return Cast.of(teacher, made["student"], {"critic": made["critic"]}, empty)


def batch_of(start: int, size: int) -> Batch:
    """All parts, each sample a function of its number."""
    index = torch.arange(start, start + size)
    draws = Draws(11, 0, index)
    x0, noise, real = (draws.normal(name, (4, 8, 8)) for name in ("x0", "eps", "real"))
    texts = [
        Condition({"encoder_hidden_states": draws.normal(name, (5, 16))}, index)
        for name in ("pairs", "captions", "prompts")
    ]
    return Batch(index, Pairs(x0, noise, texts[0]), Latents(real, texts[1]), texts[2])


def run(
    method: DMD2, step: int = 0, size: int = 4, seed: int = 0
) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    batch = batch_of(0, size)
    draws = Draws(seed, step, batch.index)
    found = {}
    for role, terms in method.losses(batch, method.active(step), draws):
        found[role] = (terms.total.detach(), terms.parts)
    return found


def inputs(method: DMD2, batch: Batch, draws: Draws) -> Inputs:
    return make_inputs(method.config, method.student, method.plans, batch, draws)


class Spy:
    """A denoiser that remembers what it was shown."""

    def __init__(self, denoiser: DiffusersDenoiser) -> None:
        self.denoiser = denoiser
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.seen.append((x_t.detach(), t))
        return self.denoiser(x_t, t, condition)


def has_gradient(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


@pytest.mark.parametrize(
    ("case", "lora"),
    [*((case, False) for case in CASES), ("gan_on_the_critic", True), ("gan_on_the_teacher", True)],
)
def test_each_loss_reaches_its_own_role_alone(tiny_denoiser, case, lora):
    method = DMD2.build(CASES[case], cast_of(tiny_denoiser, lora))
    assert find_method("dmd2") is DMD2
    roles = {name: role.module for name, role in method.trainable().items()}
    learned = set()
    for step in (0, 1):
        batch = batch_of(0, 4)
        for role, terms in method.losses(batch, method.active(step), Draws(0, step, batch.index)):
            if terms.weighted and step == 0:
                torch.testing.assert_close(sum(terms.weighted.values()), terms.total)
                own = [p for p in roles[role].parameters() if p.requires_grad]
                shares = gradient_shares(terms, own)
                torch.testing.assert_close(sum(shares.values()), torch.ones(()))
            terms.total.backward()
            assert {name for name, module in roles.items() if has_gradient(module)} == {role}
            learned.add(role)
            for module in roles.values():
                module.zero_grad()
    assert learned == set(roles)
    owned = {id(p) for module in roles.values() for p in module.parameters()}
    frozen = [p for p in tiny_denoiser.module.parameters() if id(p) not in owned]
    assert all(p.grad is None for p in frozen)
    flags = {p.requires_grad for module in roles.values() for p in module.parameters()}
    assert flags == {True}


def test_the_one_step_losses_are_the_published_formulas(tiny_denoiser):
    """Written out by hand, for a v-prediction teacher at zero SNR with guidance 2."""
    cast = cast_of(tiny_denoiser)
    method = DMD2.build(CASES["alone"], cast)
    found, batch = run(method), batch_of(0, 4)
    assert batch.prompts is not None
    assert cast.empty is not None
    draws, text = Draws(0, 0, batch.index), batch.prompts
    nothing = cast.empty.index([0] * 4)
    abar = tiny_denoiser.schedule.alphas_cumprod

    def x0_of(network: Any, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
        a = abar[t].reshape(-1, 1, 1, 1)
        return (a.sqrt() * x_t - (1 - a).sqrt() * network(x_t, t, c)).float()

    with torch.no_grad():
        noise = draws.normal("noise", (4, 8, 8))
        x0 = -cast.student(noise, torch.tensor(999), text)
        t = ((0.02 + 0.96 * draws.uniform("matching.t").double()) * 1000).long()
        a = abar[t].reshape(-1, 1, 1, 1)
        eps = draws.normal("matching.noise", (4, 8, 8))
        x_t = (a.sqrt() * x0 + (1 - a).sqrt() * eps).float()
        with_prompt, without = (x0_of(cast.teacher, x_t, t, c) for c in (text, nothing))
        real = without + 2 * (with_prompt - without)
        g = x0_of(method.critic, x_t, t, text) - real
        g = g / (x0 - real).abs().mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(found["student"][0], g.square().mean() / 2, rtol=1e-4, atol=0)

        t = (draws.uniform("critic.t").double() * 1000).long()
        a = abar[t].reshape(-1, 1, 1, 1)
        eps = draws.normal("critic.noise", (4, 8, 8))
        x_t = (a.sqrt() * x0 + (1 - a).sqrt() * eps).float()
        v = (a.sqrt() * eps - (1 - a).sqrt() * x0).float()
        error = (method.critic(x_t, t, text) - v).square().mean()
        torch.testing.assert_close(found["critic"][0], error)
    assert len(method.plan) == 1
    mean, std = (found["student"][1][name] for name in ("x0_mean", "x0_std"))
    torch.testing.assert_close(mean, x0.mean((1, 2, 3)))
    torch.testing.assert_close(std, x0.flatten(1).std(1, correction=0))


SETTINGS: dict[str, dict[str, Any]] = {
    "conditional": {"normaliser": "conditional"},
    "none": {"normaliser": "none"},
    "floor": {"normaliser_floor": 5.0},
    "alpha": {"alpha_weight": True},
    "divergence": {"gan": PAIRS, "divergence": "jensen_shannon"},
    "rescaled": {"guidance_rescale": 0.7},
    "decoupled": {"decoupled": DecoupledConfig({"uniform": {"ranges": [[0.2, 0.6]]}}, floor=5.0)},
    "decoupled_none": {
        "decoupled": DecoupledConfig({"uniform": {"ranges": [[0.2, 0.6]]}}), "normaliser": "none",
    },
    "off_grid": {"off_grid_weight": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_of_matching_is_what_it_says(tiny_denoiser, name):
    """Written out by hand, as above, at guidance 3."""
    cast, settings = cast_of(tiny_denoiser), SETTINGS[name]
    method = DMD2.build(DMD2Config(guidance=3.0, **settings), cast)
    total, parts = run(method)["student"]
    batch = batch_of(0, 4)
    draws, text = Draws(0, 0, batch.index), batch.prompts
    assert text is not None
    assert cast.empty is not None
    nothing, abar = cast.empty.index([0] * 4), tiny_denoiser.schedule.alphas_cumprod

    def law(key: str, low: float = 0.02, high: float = 0.98) -> Tensor:
        return ((low + (high - low) * draws.uniform(f"{key}.t").double()) * 1000).long()

    def mixed(x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        a = abar[t].reshape(-1, 1, 1, 1)
        return (a.sqrt() * x0 + (1 - a).sqrt() * eps).float()

    def noised(x0: Tensor, t: Tensor, key: str) -> Tensor:
        return mixed(x0, t, draws.normal(f"{key}.noise", (4, 8, 8)))

    def x0_of(v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return mixed(x_t, t, -v)

    def term(g: Tensor, distance: Tensor, floor: float = 0.0) -> Tensor:
        g = g / distance.abs().mean((1, 2, 3), keepdim=True).clamp(min=floor)
        return g.square().mean((1, 2, 3)) / 2

    with torch.no_grad():
        noise = draws.normal("noise", (4, 8, 8))
        x0, t = -cast.student(noise, torch.tensor(999), text), law("matching")
        x_t = noised(x0, t, "matching")
        v_text, v_none, v_fake = (
            network(x_t, t, c)
            for network, c in ((cast.teacher, text), (cast.teacher, nothing), (method.critic, text))
        )
        v = v_none + 3 * (v_text - v_none)
        if name == "rescaled":
            v = v * (
                0.7 * v_text.std((1, 2, 3), keepdim=True) / v.std((1, 2, 3), keepdim=True) + 0.3
            )
        real, conditional, fake = (x0_of(one, x_t, t) for one in (v, v_text, v_fake))
        real = conditional if "decoupled" in name else real
        against = conditional if name == "conditional" else real
        matching = term(fake - real, x0 - against, 5.0 if name == "floor" else 0.0)
        if "none" in name:
            matching = (fake - real).square().mean((1, 2, 3)) / 2
        if name == "alpha":
            matching = matching * abar[t].sqrt()
        if name == "divergence":
            assert method.discriminator is not None
            logits = method.discriminator(x_t, t, text)
            matching = matching * F.f_divergence_weight(logits, "jensen_shannon")
        expected = {"matching": matching.float()}
        if "decoupled" in name:
            t = law("guidance", 0.2, 0.6)
            x_t = noised(x0, t, "guidance")
            given, free = (x0_of(cast.teacher(x_t, t, c), x_t, t) for c in (text, nothing))
            g = 2 * (given - free)
            plain, normalised = g.square().mean((1, 2, 3)) / 2, term(g, x0 - given, 5.0)
            expected["guidance"] = plain if "none" in name else normalised
        if name == "off_grid":
            t = law("off_grid")
            between = mixed(x0, t, noise)  # the whole step begins at pure noise
            there = x0_of(cast.student(between, t, text), between, t)
            t = law("off_grid.matching")
            x_t = noised(there, t, "off_grid.matching")
            fake, real = (x0_of(n(x_t, t, text), x_t, t) for n in (method.critic, cast.teacher))
            expected["off_grid"] = term(fake - real, there - real)
    for key, value in expected.items():
        torch.testing.assert_close(parts[key].float(), value, rtol=1e-3, atol=1e-6)
    if name != "divergence":  # whose total has the discriminator's opinion, too
        weights = {"off_grid": 0.5}
        known = sum(weights.get(key, 1.0) * value.mean() for key, value in expected.items())
        torch.testing.assert_close(total.float(), known, rtol=1e-3, atol=1e-6)


def test_on_the_critics_features_the_gradients_are_those_of_the_joint_loss(tiny_denoiser):
    """Published: one loss, L_F + w_d L_D, trains the critic's backbone and the heads."""
    config = DMD2Config(gan=dataclasses.replace(PAIRS, critic_weight=0.3))
    method = DMD2.build(config, cast_of(tiny_denoiser))
    assert method.discriminator is not None
    critic, heads = method.critic.module, method.discriminator.heads
    batch, draws = batch_of(0, 4), Draws(0, 1, torch.arange(4))
    totals = {}
    for role, terms in method.losses(batch, method.active(1), draws):
        terms.total.backward()
        totals[role] = terms.total.detach()
    found = [p.grad.clone() for m in (critic, heads) for p in m.parameters() if p.grad is not None]
    for module in (critic, heads):
        module.zero_grad()
    made = inputs(method, batch, draws)
    with torch.no_grad():
        x0 = -method.student(made.x_t, torch.tensor(999), made.condition)
    seen = method._seen(x0, made, batch, draws)
    told = F.non_saturating_discriminator(seen["real"].logits, seen["fake"].logits).mean()
    denoising = method._critic_terms(x0, made, {}, draws).total
    torch.testing.assert_close(totals["critic"], (denoising + 0.3 * told).detach())
    (denoising + 0.3 * told).backward()
    joint = [p.grad for p in critic.parameters() if p.grad is not None]
    joint += [p.grad / 0.3 for p in heads.parameters() if p.grad is not None]
    for one, other in zip(found, joint, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_the_discriminator_sees_data_with_their_own_prompts_and_says_how_it_goes(tiny_denoiser):
    """By hand: noised data and samples through the teacher, hinge on the heads, and R1 on what they see."""
    penalty = {"r1": {"weight": 3e-3, "every": 2}}
    gan = dataclasses.replace(TEACHERS, head="token", conditioning=("timestep",), penalty=penalty)
    method = DMD2.build(DMD2Config(gan=gan), cast_of(tiny_denoiser))
    assert method.discriminator is not None
    batch = batch_of(0, 4)
    assert batch.real is not None
    assert batch.prompts is not None
    for step, factor in ((2, 6e-3), (3, 0.0)):
        total, parts = run(method, step)["discriminator"]
        draws, features, logits = Draws(0, step, batch.index), [], []
        with torch.no_grad():
            x0 = -method.student(draws.normal("noise", (4, 8, 8)), torch.tensor(999), batch.prompts)
        for name, latents, text in (
            ("real", batch.real.x0, batch.real.condition), ("fake", x0, batch.prompts),
        ):  # fmt: skip
            t = (draws.uniform(f"{name}.t").double() * 1000).long()
            a = tiny_denoiser.schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
            eps = draws.normal(f"{name}.noise", (4, 8, 8))
            x_t = (a.sqrt() * latents + (1 - a).sqrt() * eps).float()
            with torch.no_grad():
                maps = method.discriminator.taps.features(x_t, t, text)
            features.append([f.requires_grad_() for f in maps])
            logits.append(method.discriminator.logits(features[-1], t, text))
        adversarial = F.hinge_discriminator(*logits)
        r1 = F.gradient_penalty(logits[0], features[0])
        known = (adversarial.mean() + factor * r1.mean()).detach()
        torch.testing.assert_close(total, known, rtol=1e-4, atol=0)
        expected = {"discriminator": adversarial, "advantage": 1 - adversarial / 2}
        expected |= {**logit_statistics(*logits), **({"penalty": r1} if factor else {})}
        assert parts.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(parts[name], value.detach(), rtol=1e-4, atol=1e-5)


def test_lazy_penalties_count_the_discriminators_own_updates(tiny_denoiser):
    """Three updates to one of the student, behind a step of warm-up: it learns at steps 2, 3, 4, 6, 7, 8."""
    gan = dataclasses.replace(TEACHERS, penalty={"r1": {"weight": 1.0, "every": 2}})
    settings: dict[str, Any] = {"gan": gan, "regression": RegressionConfig(warmup_steps=1)}
    for updates, due in (("alternating", [2, 4, 7]), ("shared", [1, 3, 5, 7])):
        config = DMD2Config(updates=updates, critic=CriticConfig(updates=3), **settings)
        method = DMD2.build(config, cast_of(tiny_denoiser))
        parts = {step: run(method, step, size=1).get("discriminator") for step in range(9)}
        assert [s for s, found in parts.items() if found and "penalty" in found[1]] == due


@pytest.mark.parametrize("transition", ["ode", "renoise"])
def test_backward_simulation_is_the_samplers_own_trajectory_bit_for_bit(tiny_denoiser, transition):
    config = DMD2Config(num_inference_steps=4, transition=transition)
    method = DMD2.build(config, cast_of(tiny_denoiser))
    batch, reached = batch_of(0, 2), set()
    for seed in range(12):
        draws = Draws(seed, 0, batch.index)
        made = inputs(method, batch, draws)
        noise = [draws.normal("noise", (4, 8, 8))]
        noise += [draws.normal(f"renoise.{i}", (4, 8, 8)) for i in (1, 2, 3)]
        spy = Spy(method.student)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            sample(spy, method.plan, noise[0], made.condition, noise.__getitem__)
        number = [int(step.t) for step in method.plan.steps].index(int(made.step.t))
        assert torch.equal(made.x_t, spy.seen[number][0])
        assert int(spy.seen[number][1]) == int(made.step.t)
        reached.add(number)
    assert reached == {0, 1, 2, 3}


@pytest.mark.parametrize("name", SCHEDULES)
def test_so_it_is_on_all_schedules_with_exact_denoisers(name: str):
    method = _analytic(*SCHEDULES[name], same=False)
    index = torch.arange(3)
    condition = Condition({"c": torch.zeros(3, 1)}, index)
    noise = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    pairs = Pairs(noise, noise, condition)
    seen = []
    for seed in range(8):
        made = inputs(method, Batch(index, pairs, None, None), Draws(seed, 0, index))
        start = Draws(seed, 0, index).normal("noise", (2, 1, 1))
        spy = Spy(method.student)  # pyright: ignore[reportArgumentType]
        sample(spy, method.plan, start, made.condition)
        number = [float(step.t) for step in method.plan.steps].index(float(made.step.t))
        assert torch.equal(made.x_t, spy.seen[number][0])
        seen.append(number)
    assert set(seen) == {0, 1}


@pytest.mark.parametrize("decoupled", [None, DecoupledConfig()])
def test_a_guided_teacher_is_asked_once_for_both_halves(tiny_denoiser, decoupled):
    """One batch with and without the prompt; apart, the matching term asks for the prompt's half alone."""
    config = DMD2Config(guidance=3.0, decoupled=decoupled)
    method = DMD2.build(config, cast_of(tiny_denoiser))
    assert method.guided is not None
    spy = Spy(tiny_denoiser)
    method.guided.denoiser = method.teacher = spy  # pyright: ignore[reportAttributeAccessIssue]
    batch = batch_of(0, 4)
    next(method.losses(batch, ("student", "critic"), Draws(0, 0, batch.index)))
    assert [len(x) for x, _ in spy.seen] == ([8] if decoupled is None else [4, 8])


ONE_STEP: tuple[dict[str, Any], ...] = (
    {"num_inference_steps": 1},
    {"transition": "ode"},
    {"num_inference_steps": 1, "step_range": (1, 1)},
    {"timestep": 999},
)


@pytest.mark.parametrize("settings", ONE_STEP)
def test_k_steps_of_which_there_is_one_are_the_one_step_path(tiny_denoiser, settings):
    cast = cast_of(tiny_denoiser)
    one, other = (run(DMD2.build(DMD2Config(guidance=2.0, **s), cast)) for s in ({}, settings))
    assert float(one["student"][0]) > 0
    for role, (total, parts) in one.items():
        assert torch.equal(total, other[role][0])
        assert all(torch.equal(part, other[role][1][name]) for name, part in parts.items())


def test_regression_may_be_a_sum_of_losses_through_the_decoder(tiny_denoiser):
    """DMD1's is LPIPS on pictures: here L1 on what a decoder of one layer draws, and half of L2."""
    cast = cast_of(tiny_denoiser)
    decoder = nn.Conv2d(4, 3, 1).requires_grad_(False)
    cast.decode = decoder
    losses = {"l1": {"decode": True}, "l2": 0.5}
    config = DMD2Config(regression=RegressionConfig(losses, share=1.0, warmup_steps=1))
    method, batch = DMD2.build(config, cast), batch_of(0, 4)
    assert batch.pairs is not None
    total, parts = run(method)["student"]
    with torch.no_grad():
        x0 = -method.student(batch.pairs.noise, torch.tensor(999), batch.pairs.condition)
        gap = x0 - batch.pairs.x0
        shown = (decoder(x0) - decoder(batch.pairs.x0)).abs().mean((1, 2, 3))
    expected = shown + 0.5 * gap.square().mean((1, 2, 3))
    torch.testing.assert_close(parts["regression"], expected)
    torch.testing.assert_close(total, config.regression.weight * expected.mean())
    (terms,) = (t for role, t in method.losses(batch, ("student",), Draws(0, 0, batch.index)))
    terms.total.backward()
    assert has_gradient(method.student.module)


def test_the_trajectory_is_that_of_diffusers_ddim(tiny_denoiser, tiny_scheduler):
    method = DMD2.build(DMD2Config(num_inference_steps=4, transition="ode"), cast_of(tiny_denoiser))
    scheduler = type(tiny_scheduler).from_config(tiny_scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    batch = batch_of(0, 2)
    draws = next(
        d for d in (Draws(s, 0, batch.index) for s in range(20))
        if int(inputs(method, batch, d).step.t) == 249
    )  # fmt: skip
    made, x = inputs(method, batch, draws), draws.normal("noise", (4, 8, 8))
    with torch.no_grad():
        for t in scheduler.timesteps[:3]:
            x = scheduler.step(method.student(x, t, made.condition), t, x).prev_sample
    torch.testing.assert_close(made.x_t, x, rtol=1e-4, atol=1e-5)


def test_the_drawn_step_is_shared_and_has_the_only_gradient(tiny_denoiser):
    """Whatever part of a batch a process has, it calls the student as often, at the same timesteps."""
    config = DMD2Config(num_inference_steps=4, critic=CriticConfig(updates=1))
    method = DMD2.build(config, cast_of(tiny_denoiser))
    told, calls = [], []

    def note(module: nn.Module, args: object, kwargs: Any) -> None:
        calls.append((int(kwargs["timestep"][0]), torch.is_grad_enabled()))

    method.student.module.register_forward_pre_hook(note, with_kwargs=True)
    for rows in (slice(0, 2), slice(2, 4)):
        whole = batch_of(0, 4)
        assert whole.prompts is not None
        batch = Batch(whole.index[rows], prompts=whole.prompts.index(rows))
        for seed in range(6):
            calls.clear()
            list(method.losses(batch, ("student",), Draws(seed, 0, batch.index)))
            told.append(list(calls))
    assert told[:6] == told[6:]
    grid = [999, 749, 499, 249]
    for found in told:
        assert found == [(t, t == grid[len(found) - 1]) for t in grid[: len(found)]]
    assert len({len(found) for found in told}) > 2


def test_without_backward_simulation_the_input_is_noised_data(tiny_denoiser):
    config = DMD2Config(gan=TEACHERS, num_inference_steps=2, backward=0.0)
    method = DMD2.build(config, cast_of(tiny_denoiser))
    batch, fed = batch_of(0, 3), {}
    assert batch.real is not None
    for seed in range(6):
        draws = Draws(seed, 0, batch.index)
        made = inputs(method, batch, draws)
        fed[int(made.step.t)] = (made.x_t, draws.normal("noise", (4, 8, 8)))
    assert torch.equal(*fed[999])
    x_t, noise = fed[499]
    abar = tiny_denoiser.schedule.alphas_cumprod[499]
    torch.testing.assert_close(
        x_t, (abar.sqrt() * batch.real.x0 + (1 - abar).sqrt() * noise).float()
    )


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"gan": TEACHERS}, "real"),
        ({"gan": PAIRS}, "pairs"),
        ({"regression": dataclasses.replace(REGRESSION, share=1e-9)}, "pairs"),
    ],
)
def test_noised_data_has_its_own_prompts(tiny_denoiser, settings, part):
    """And what the sampler makes has the prompts to draw: the first step, and all under simulation."""
    method = DMD2.build(
        DMD2Config(num_inference_steps=2, backward=0.5, **settings), cast_of(tiny_denoiser)
    )
    batch, seen = batch_of(0, 3), set()
    assert batch.prompts is not None
    for seed in range(16):
        draws = Draws(seed, 0, batch.index)
        made = inputs(method, batch, draws)
        simulated = draws.shared.uniform("backward").item() < 0.5
        is_data = int(made.step.t) == 499 and not simulated
        condition = getattr(batch, part).condition if is_data else batch.prompts
        key = "encoder_hidden_states"
        assert torch.equal(made.condition[key], condition[key])
        seen.add((int(made.step.t), simulated))
    assert len(seen) == 4


def test_where_all_rows_are_pairs_nothing_is_simulated(tiny_denoiser):
    """In a warm-up, and with a share of 1: no step calls the student before its own."""
    for regression in (RegressionConfig(warmup_steps=1, share=0.5), RegressionConfig()):
        config = DMD2Config(num_inference_steps=3, regression=regression)
        method = DMD2.build(config, cast_of(tiny_denoiser))
        method.student = spy = Spy(method.student)  # pyright: ignore
        batch, reached = batch_of(0, 2), set()
        for seed in range(6):
            reached.add(int(inputs(method, batch, Draws(seed, 0, batch.index)).step.t))
        assert len(reached) > 1
        assert spy.seen == []


def test_a_batch_without_a_paired_row_calls_the_same_networks(tiny_denoiser):
    """A regression on the teacher's features: processes that share the teacher out wait for each other in it."""
    regression = RegressionConfig(
        {"latent_lpips": {"network": {"taps": ["mid_block"]}}}, share=0.25
    )
    method = DMD2.build(DMD2Config(regression=regression), cast_of(tiny_denoiser))
    calls, found = [], []
    method.teacher.module.register_forward_pre_hook(lambda *_: calls.append(1))
    for start in (0, 2):  # of every four samples the last one is a pair
        calls.clear()
        batch = batch_of(start, 2)
        ((_, terms),) = method.losses(batch, ("student",), Draws(0, 1, batch.index))
        found.append((len(calls), float(terms.weighted["regression"].detach()), terms.parts))
    assert found[0][0] == found[1][0] > 1
    assert found[0][1] == 0 < found[1][1]
    assert "regression" not in found[0][2]
    assert found[1][2]["regression"].shape == (1,)


def test_a_regression_is_augmented_by_the_methods_draws_of_its_rows(tiny_denoiser):
    regression = RegressionConfig({"latent_lpips": {"weights": "toy", "augment": "bg"}}, share=0.5)
    method = DMD2.build(DMD2Config(regression=regression), cast_of(tiny_denoiser))
    batch, rows = batch_of(0, 4), torch.tensor([1, 3])  # of every two samples the second is a pair
    draws, x0 = Draws(0, 2, batch.index), torch.randn(4, 4, 8, 8)
    _, shown = method._regression(x0, batch.index % 2 == 1, batch, draws)
    r = draws.uniform("regression.losses.0", 14)
    sides = (augment_latents(z, r, "bg")[rows] for z in (x0, latents_of(batch, "pairs").x0))
    expected = LatentLPIPSLoss(weights="toy").per_sample(*sides)
    torch.testing.assert_close(shown["regression"], expected)


def test_noise_without_data_has_the_size_that_the_student_draws(tiny_denoiser):
    tiny_denoiser.size = (4, 12)
    method = DMD2.build(CASES["alone"], cast_of(tiny_denoiser))
    batch = batch_of(0, 2)
    assert inputs(method, batch, Draws(0, 0, batch.index)).x_t.shape == (2, 4, 4, 12)


def test_the_number_of_steps_is_drawn_and_each_grid_is_the_plans(tiny_denoiser):
    config = DMD2Config(num_inference_steps=2, step_range=(1, 3), transition="ode")
    method = DMD2.build(config, cast_of(tiny_denoiser))
    assert method.plan.timesteps().tolist() == [999, 499]
    schedule = tiny_denoiser.schedule
    grids = [StepPlan.from_schedule(schedule, n).timesteps().tolist() for n in (1, 2, 3)]
    assert [plan.timesteps().tolist() for plan in method.plans] == grids
    batch = batch_of(0, 1)
    drawn = {int(inputs(method, batch, Draws(s, 0, batch.index)).step.t) for s in range(30)}
    assert drawn == {t for grid in grids for t in grid}


@pytest.mark.parametrize(
    ("schedule", "kind", "first"),
    [
        (RectifiedFlow(), "flow_prediction", [1000.0, 500.0]),
        (KarrasSchedule(), "sample", [80.0, 0.002]),
        (DiscreteSchedule(torch.linspace(0.999, 0.005, 1000).double()), "epsilon", [999, 499]),
        (DiscreteSchedule(torch.linspace(0.999, 0.005, 1000).double()), "v_prediction", [999, 499]),
        (DiscreteSchedule(torch.linspace(0.999, 0.0, 1000).double()), "v_prediction", [999, 499]),
    ],
)
def test_exact_networks_are_at_rest_on_every_schedule(schedule, kind, first):
    """A critic that is the teacher asks for nothing, whatever the samples; another one asks for something."""
    method = _analytic(schedule, kind, same=True)
    assert method.plan.timesteps().tolist() == pytest.approx(first)
    found = [_student(method, seed) for seed in range(4)]
    assert all(float(parts["matching"].max()) < 1e-12 for parts in found)
    other = _analytic(schedule, kind, same=False)
    assert min(float(_student(other, seed)["matching"].min()) for seed in range(4)) > 1e-8


def _student(method: DMD2, seed: int) -> Mapping[str, Tensor]:
    batch = batch_of(0, 3)
    assert batch.pairs is not None
    batch = dataclasses.replace(
        batch,
        pairs=Pairs(batch.pairs.x0[:, :2, :1, :1], batch.pairs.noise[:, :2, :1, :1], Condition()),
    )
    ((_, terms),) = method.losses(batch, ("student",), Draws(seed, 0, batch.index))
    return terms.parts


def _analytic(schedule: NoiseSchedule, kind: PredictionType, same: bool) -> DMD2:
    one, two = (
        Mixture(torch.tensor([1.0]), torch.tensor([[m, -m]]), torch.tensor([0.5]))
        for m in (1.0, 2.0)
    )
    teacher, student = ExactDenoiser(one, schedule, kind), ExactDenoiser(two, schedule, kind)
    critic = ExactDenoiser(one if same else two, schedule, kind)
    config = DMD2Config(
        num_inference_steps=2, transition="ode", conditions="pairs",
        regression=RegressionConfig(weight=0.0, share=1e-9),
    )  # fmt: skip
    return DMD2.build(config, Cast.of(teacher, student, {"critic": critic}))


def test_the_student_may_predict_another_thing_than_the_teacher(tiny_denoiser):
    """All are read as x0: an epsilon and a v student that mean the same have the same loss."""
    flow = DiscreteSchedule(torch.linspace(0.999, 0.005, 1000).double())
    mixture = Mixture(torch.tensor([1.0]), torch.tensor([[1.0, 0.0]]), torch.tensor([0.5]))
    parts = []
    for kind in ("epsilon", "v_prediction"):
        method = _analytic(flow, "sample", same=False)
        method.student = ExactDenoiser(mixture, flow, kind)
        parts.append(_student(method, 0)["matching"])
    torch.testing.assert_close(*parts, rtol=1e-3, atol=1e-6)


def test_two_time_scales():
    """Both countings, 2 updates of the critic to one of the student, behind 2 steps of warm-up."""
    warm = RegressionConfig(warmup_steps=2)
    settings: dict[str, Any] = {"critic": CriticConfig(updates=2), "regression": warm}
    method = DMD2.__new__(DMD2)
    method.discriminator = None
    method.config = DMD2Config(**settings)
    both = ("student", "critic")
    assert [method.active(s) for s in range(6)] == [
        *[("student",)] * 2, both, ("critic",), both, ("critic",)
    ]  # fmt: skip
    method.config = DMD2Config(updates="alternating", **settings)
    assert [method.active(s) for s in range(7)] == [
        *[("student",)] * 3, *[("critic",)] * 2, ("student",), ("critic",)
    ]  # fmt: skip


@pytest.mark.parametrize("updates", ["shared", "alternating"])
def test_what_lazy_penalties_count_is_what_is_active(updates):
    method = DMD2.__new__(DMD2)
    method.discriminator = None
    warm = RegressionConfig(warmup_steps=3)
    method.config = DMD2Config(updates=updates, critic=CriticConfig(updates=4), regression=warm)
    learns = ["critic" in method.active(step) for step in range(40)]
    for step in (step for step, does in enumerate(learns) if does):
        assert method._updates_before(step) == sum(learns[:step])


def test_warm_up_is_regression_alone_and_then_a_share_of_the_rows(tiny_denoiser):
    regression = RegressionConfig({"l2": 1.0}, weight=0.5, share=1 / 2, warmup_steps=1)
    method = DMD2.build(DMD2Config(regression=regression), cast_of(tiny_denoiser))
    batch = batch_of(0, 4)
    assert batch.pairs is not None
    assert batch.prompts is not None
    total, parts = run(method)["student"]
    with torch.no_grad():
        x0 = -method.student(batch.pairs.noise, torch.tensor(999), batch.pairs.condition)
    gap = (x0 - batch.pairs.x0).square().mean((1, 2, 3))
    torch.testing.assert_close(total, 0.5 * gap.mean())
    assert "matching" not in parts

    total, parts = run(method, step=1)["student"]
    made = inputs(method, batch, Draws(0, 1, batch.index))
    assert made.rows is not None
    assert made.rows.tolist() == [False, True, False, True]
    assert torch.equal(made.x_t[1::2], batch.pairs.noise[1::2])
    assert torch.equal(made.x_t[::2], Draws(0, 1, batch.index).normal("noise", (4, 8, 8))[::2])
    text = made.condition["encoder_hidden_states"]
    assert torch.equal(text[::2], batch.prompts["encoder_hidden_states"][::2])
    torch.testing.assert_close(parts["regression"], gap[1::2])
    torch.testing.assert_close(total, parts["matching"].mean() + 0.5 * gap[1::2].mean())


def test_guidance_apart_is_taken_below_the_students_own_noise(tiny_denoiser):
    method = DMD2.build(CASES["decoupled"], cast_of(tiny_denoiser))
    batch, latest = batch_of(0, 16), {}
    for seed in range(6):
        spy = Spy(tiny_denoiser)
        assert method.guided is not None
        method.guided.denoiser = spy
        draws = Draws(seed, 0, batch.index)
        made = inputs(method, batch, draws)
        method._matching(torch.zeros(16, 4, 8, 8), made, draws)
        (_, t) = spy.seen[-1]
        latest.setdefault(int(made.step.t), []).append(int(t.max()))
    assert max(latest[499]) <= 499 < max(latest[999])
    assert min(latest[499]) > 300


@pytest.mark.parametrize("weight", ["prediction", "sample", "min_snr", "snr_plus_one"])
def test_the_critics_weights_are_those_of_the_x0_error(tiny_denoiser, weight):
    """v-MSE is (SNR + 1) times the x0 error."""
    config = DMD2Config(
        critic=CriticConfig(weight=weight, timesteps={"uniform": {"ranges": [[0.1, 0.9]]}})
    )
    method = DMD2.build(config, cast_of(tiny_denoiser))
    batch = batch_of(0, 4)
    draws = Draws(0, 1, batch.index)
    ((_, terms),) = method.losses(batch, ("critic",), draws)
    made = inputs(method, batch, draws)
    with torch.no_grad():
        x0 = -method.student(made.x_t, torch.tensor(999), made.condition)
        step, x_t, _ = method._noised(x0, method.critic_law, draws, "critic")
        alpha, sigma = (s.reshape(-1, 1, 1, 1) for s in step.output)
        said = alpha * x_t - sigma * method.critic(x_t, step.t, made.condition)
        error = (said - x0).square().mean((1, 2, 3))
    snr = step.output.snr()
    expected = {
        "prediction": snr + 1,
        "sample": torch.ones_like(snr),
        "min_snr": snr.clamp(max=5),
        "snr_plus_one": snr + 1,
    }[weight]
    torch.testing.assert_close(terms.parts["critic"].double(), expected * error, rtol=1e-4, atol=0)


def test_an_edm_critic_is_weighed_as_edm():
    """1 / sigma^2 + 1 / sigma_data^2 of the x0 error, which is 1 / c_out^2 (Karras et al. 2022, table 1)."""
    critic, _ = FAMILIES["unet2d-edm"].make()
    assert critic.preconditioning is not None
    sigma_data = critic.preconditioning.sigma_data
    t = critic.schedule.timestep(torch.tensor([0.2, 0.5, 0.9]))
    scales = critic.schedule(t)
    x0, noise = torch.randn(
        2, 3, *critic.latent_shape(), generator=torch.Generator().manual_seed(0)
    )
    condition = Condition({"class_labels": torch.tensor([0, 1, 2])})
    with torch.no_grad():
        said = critic(scales.mix(x0, noise), t, condition)
        error = (said - x0).square().mean((1, 2, 3))
        c_out = scales.sigma * sigma_data / (scales.sigma.square() + sigma_data**2).sqrt()
        for weight in ("auto", "edm"):
            step = Step(t, scales, scales)
            found = critic_error(critic, weight, step, x0, noise, condition)
            torch.testing.assert_close(
                found.double(), (error / c_out.square()).double(), rtol=1e-4, atol=0
            )


class Shift(nn.Module):
    def __init__(self, mean: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))


@dataclasses.dataclass
class Gaussian:
    """The best denoiser of N(mean, 1), whose mean is learned."""

    module: nn.Module
    schedule: NoiseSchedule = dataclasses.field(default_factory=RectifiedFlow)
    prediction_type: PredictionType = "sample"

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = (s.reshape(-1, 1, 1, 1).to(x_t.dtype) for s in self.schedule(t))
        mean = self.module.mean  # pyright: ignore
        return mean + alpha / (alpha**2 + sigma**2) * (x_t - alpha * mean)


class Moved(Gaussian):
    """A one-step generator: noise + mean."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return x_t + self.module.mean  # pyright: ignore


@pytest.mark.parametrize(("mean", "signal"), [(-1.0, 1.0), (-4.0, 0.5), (5.0, -1.0), (2.0, 0.0)])
def test_the_signal_is_the_true_part_of_what_the_critic_says(mean, signal):
    """Teacher at 2, student at -1: (S - T) / (F - T) is -3 / (mean - 2) at every timestep, and exact is 1."""
    schedule, generator = RectifiedFlow(), torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 20_000, 1, 1, 1, generator=generator)
    x0 = x0 - 1
    t = schedule.timestep(torch.linspace(0.02, 0.98, len(x0)))
    x_t = schedule(t).mix(x0, noise)
    real, fake = (Gaussian(Shift(m))(x_t, t, Condition()) for m in (2.0, mean))
    assert critic_signal(x0, real, fake).item() == pytest.approx(signal, abs=0.02)


def _learn(updates: int, rate: float, student_updates: int = 30) -> tuple[list[float], float]:
    """The student's distance from the teacher after each of its updates; and the critic's from the student's."""
    teacher, student, critic = (Gaussian(Shift(m)) for m in (2.0, -1.0, 2.0))
    student = Moved(student.module)
    config = DMD2Config(
        critic=CriticConfig(updates=updates), conditions="pairs", normaliser="none",
        regression=RegressionConfig(weight=0.0, share=1e-9),
    )  # fmt: skip
    method = DMD2.build(config, Cast.of(teacher, student, {"critic": critic}))
    rates = {"student": 1.0, "critic": rate}
    optimizers = {
        name: torch.optim.SGD(role.module.parameters(), lr=rates[name])
        for name, role in method.trainable().items()
    }
    told = []
    for step in range(updates * student_updates):
        index = torch.arange(step * 64, step * 64 + 64)
        zero = torch.zeros(64, 1, 1, 1)
        batch = Batch(index, Pairs(zero, zero, Condition()))
        for role, terms in method.losses(batch, method.active(step), Draws(0, step, index)):
            optimizers[role].zero_grad()
            terms.total.backward()
            optimizers[role].step()
            if role == "student":
                told.append(abs(student.module.mean.item() - 2.0))  # pyright: ignore
    return told, abs(critic.module.mean.item() - student.module.mean.item())  # pyright: ignore


def test_the_critics_optimum_is_the_students_score_and_many_updates_beat_one():
    """A critic that lags makes the student overshoot; with 8 updates it settles at the teacher."""
    one, _ = _learn(1, rate=0.15)
    many, gap = _learn(8, rate=0.15)
    assert gap < 0.1
    assert many[-1] < 0.1
    assert max(one[20:]) > 5 * max(many[20:])


def trained(method: DMD2, folder: Path | None, steps: int, stop: int | None = None, **changes: Any):
    optimizers = {n: OptimizerConfig(1e-3, ema_decay=0.5) for n in method.trainable()}
    config = TrainerConfig(
        steps=steps, batch_size=4, optimizers=optimizers, checkpoint_every=1, **changes
    )
    trainer = Trainer(method, lambda number: batch_of(4 * number, 4), config, output=folder)
    for state in trainer.fit():
        if state.step == stop:
            break
    return torch.cat([w.flatten() for t in trainer._trained.values() for w in t.weights.values()])


def test_stopped_in_either_phase_and_resumed_it_ends_bit_equal(tiny_denoiser, tmp_path):
    config = dataclasses.replace(
        CASES["gan_on_the_teacher"], critic=CriticConfig(updates=2, follow=0.9),
        num_inference_steps=2,
    )  # fmt: skip

    def make() -> DMD2:
        return DMD2.build(config, cast_of(tiny_denoiser))

    phases = [make().active(step) for step in range(5)]
    assert phases[0] == phases[3] == ("student",) != phases[1]
    whole = trained(make(), None, 4)
    for stop in (2, 3):  # among the critic's updates, and before the student's
        trained(make(), tmp_path / str(stop), 4, stop)
        assert torch.equal(trained(make(), tmp_path / str(stop), 4), whole)


@pytest.mark.parametrize(
    ("updates", "follow", "of_average"),
    [("shared", 0.7, False), ("alternating", 0.7, False), ("alternating", 0.0, True)],
)
def test_the_critic_is_drawn_to_the_student_after_its_updates(
    tiny_denoiser, updates, follow, of_average
):
    """IDA: lambda critic + (1 - lambda) student; and to the student's average, of which 0 is a copy.

    Where both learn at one step, the critic's own update comes first, from the weights that its gradient is of.
    """

    def after_a_step(critic: CriticConfig) -> tuple[DMD2, Trainer]:
        config: Any = DMD2Config(critic=critic, updates=updates)
        method = DMD2.build(config, cast_of(tiny_denoiser))
        optimizers = {n: OptimizerConfig(1e-3, ema_decay=0.5) for n in ("student", "critic")}
        trainer = Trainer(
            method,
            lambda number: batch_of(0, 4),
            TrainerConfig(steps=1, batch_size=4, optimizers=optimizers),
        )
        list(trainer.fit())
        return method, trainer

    alone, _ = after_a_step(CriticConfig(updates=2))
    method, trainer = after_a_step(CriticConfig(2, follow=follow, follow_average=of_average))
    average = trainer.averages["student"].state_dict()
    for (name, student), own, now in zip(
        method.student.module.named_parameters(), alone.critic.module.parameters(),
        method.critic.module.parameters(), strict=True,
    ):  # fmt: skip
        source = average[name] if of_average else student.detach()
        torch.testing.assert_close(now.detach(), follow * own.detach() + (1 - follow) * source)


def test_on_lora_it_says_what_it_averages(tiny_denoiser, caplog):
    method = DMD2.build(DMD2Config(critic=CriticConfig(follow=0.9)), cast_of(tiny_denoiser, True))
    trained(method, None, 1)
    assert "critic is drawn to student by its LoRA factors" in caplog.text


def test_a_follower_of_no_average_is_told(tiny_denoiser):
    critic = CriticConfig(follow=0.9, follow_average=True)
    method = DMD2.build(DMD2Config(critic=critic), cast_of(tiny_denoiser))
    optimizers = {n: OptimizerConfig(1e-3) for n in ("student", "critic")}
    with pytest.raises(ValueError, match="follows the average of 'student', which keeps none"):
        Trainer(method, lambda n: batch_of(n, 4), TrainerConfig(steps=1, optimizers=optimizers))


def test_what_it_reads():
    def reads(**settings: Any) -> set[str]:
        return set(DMD2Config(**settings).reads)

    assert reads() == {"prompts"}
    assert reads(gan=TEACHERS, conditions="real") == {"real"}
    assert reads(gan=TEACHERS, regression=REGRESSION) == {"prompts", "real", "pairs"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"critic": {"updates": 0}}, "updates is 0; it must be at least 1"),
        ({"guidance": 0.5}, r"guidance is 0.5; it must be at least 1"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"decoupled": {}}, "decoupled is set, but guidance is 1"),
        ({"guidance_rescale": 0.7}, r"guidance_rescale is 0.7, .* \(guidance is 1\)"),
        ({"guidance_rescale": 0.7, "guidance": 2, "decoupled": {}}, "decoupled is set"),
        ({"normaliser": "none", "normaliser_floor": 0.1}, "but normaliser is 'none'"),
        ({"divergence": "kl"}, "divergence is 'kl', which takes the density ratio"),
        ({"divergence": "kl", "gan": {"adversarial": "hinge"}}, "is 'hinge'; take non_saturating"),
        ({"gan": {}, "backward": 0.5}, "a trajectory of one step has no later one"),
        ({"gan": {}, "backward": 0.5, "step_range": [1, 1]}, "has no later one"),
        ({"guidance": 2, "rescale_by": "norm"}, "rescale_by is 'norm', but guidance_rescale is 0"),
        ({"backward": 0.5}, "some inputs are noised data, but there is none"),
        ({"backward": 1.5}, r"backward is 1.5; it must be in \[0, 1\]"),
        ({"timestep": 399, "num_inference_steps": 4}, "timestep=399.0 is for a one-step student"),
        ({"step_range": [4, 2]}, r"step_range is \(4, 2\)"),
        ({"step_range": [2, 4]}, r"to draw in 1 steps .* trained in 2 to 4"),
        ({"regression": {"share": 0}}, r"share is 0.0; it must be in \(0, 1\]"),
        ({"regression": {"losses": {"l3": 1}}}, "l3"),
        ({"critic": {"follow": 1.0}}, r"follow is 1.0; it must be in \[0, 1\)"),
        ({"critic": {"follow_average": True}}, "follow is null and nothing is pulled"),
        ({"critic": {"follow": 0}}, "undoes the critic's own update .* take 'alternating'"),
        (
            {"gan": {"features": "teacher", "critic_weight": 0.1}},
            "critic_weight is 0.1, but features",
        ),
        (
            {"guidance": 2, "decoupled": {"floor": 0.2}, "normaliser": "none"},
            "decoupled.floor is 0.2, but normaliser is 'none'",
        ),
        (
            {"regression": {}, "backward": 0.5, "num_inference_steps": 2},
            "backward is 0.5, but with regression.share 1",
        ),
        ({"gan": {"features": "student"}}, "features"),
        ({"gan": {"weight": -1}}, "weight is -1"),
        ({"gan": {"head": "tokens"}}, "token"),
        ({"gan": {"penalty": {"r3": 1}}}, "r3"),
        ({"gan": {"conditioning": ["words"]}}, "words"),
        ({"gan": {"augmentation": {"flip": 2}}}, r"flip is 2.0; it must be in \[0, 1\]"),
        ({"timesteps": {"uniform": {"ranges": [[0.5, 2]]}}}, "ranges"),
    ],
)
def test_bad_settings_are_told(settings, sentence):
    from nitrodistill.settings import build

    with pytest.raises(ValueError, match=sentence):
        build(DMD2Config, settings, "settings")


def test_what_does_not_fit_the_networks_is_told(tiny_denoiser):
    def refused(sentence: str, cast: Cast, **settings: Any) -> None:
        with pytest.raises((ValueError, TypeError), match=sentence):
            DMD2.build(DMD2Config(**settings), cast)

    cast = cast_of(tiny_denoiser)
    cast.empty = None
    for more in ({}, {"decoupled": DecoupledConfig()}):
        refused("no condition that stands for none", cast, guidance=2.0, **more)
    refused("has no EDM preconditioning", cast, critic=CriticConfig(weight="edm"))
    zero = tiny_denoiser.schedule
    student, critic = (DiffusersDenoiser(tiny_denoiser.module, zero, "epsilon") for _ in range(2))
    epsilon = Cast.of(tiny_denoiser, tiny_denoiser, {"critic": critic})
    told = "the {}'s prediction: 'epsilon' cannot be converted"
    refused(told.format("student"), Cast.of(tiny_denoiser, student, {"critic": critic}))
    ends: Any = {"uniform": {"ranges": [[0.0, 1.0]]}}
    refused(told.format("critic"), epsilon, timesteps=ends)
    between = Cast.of(tiny_denoiser, student, {"critic": tiny_denoiser})
    settings: dict[str, Any] = {"timestep": 399, "timesteps": ends}
    DMD2.build(DMD2Config(**settings), between)
    refused(told.format("student"), between, off_grid_weight=1.0, **settings)
    refused("diverges at zero SNR", epsilon, critic=CriticConfig(weight="snr_plus_one"))
    refused(
        "averages the weights of a student that predicts", epsilon, critic=CriticConfig(follow=0.5)
    )
    larger = Shift(0.0)
    larger.more = nn.Parameter(torch.zeros(1))  # as a pruned student leaves a critic
    unlike = Cast.of(Gaussian(larger), Moved(Shift(0.0)), {"critic": Gaussian(larger)})
    refused("but the student is another network", unlike, critic=CriticConfig(follow=0.5))
    refused(
        "infinite for a network .* 'sample'", unlike, critic=CriticConfig(weight="snr_plus_one")
    )


@pytest.mark.parametrize("case", ["gan_on_the_critic", "gan_on_the_teacher", "alone"])
def test_a_batch_without_its_part_is_told(tiny_denoiser, case):
    method = DMD2.build(CASES[case], cast_of(tiny_denoiser))
    batch = Batch(torch.arange(4))
    with pytest.raises(ValueError, match="the batch has no"):
        list(method.losses(batch, method.active(0), Draws(0, 0, batch.index)))
