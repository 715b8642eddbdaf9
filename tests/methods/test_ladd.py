from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nitrodistill.discriminator import (
    Augmentation,
    ConvHead,
    LatentDiscriminator,
    MLPHead,
    TokenHead,
)
from nitrodistill.losses import (
    LatentLPIPSLoss,
    NonSaturatingGANLoss,
    RelativisticGANLoss,
    augment_latents,
)
from nitrodistill.method import Cast, DistillationMethod, Draws
from nitrodistill.methods.ladd import LADD, LADDConfig
from nitrodistill.models import FeatureTaps
from nitrodistill.models.denoiser import frozen
from nitrodistill.prediction import to_x0
from nitrodistill.rows import is_chosen
from nitrodistill.sampling import StepPlan, predict_x0, sample
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.timesteps import LogitNormal, Uniform
from nitrodistill.training.networks import check_cast
from nitrodistill.types import Batch, Condition, Pairs, expand

TAPS = ("conv_in", "mid_block")


def make_batch(start: int, size: int, seed: int = 5) -> Batch:
    index = torch.arange(start, start + size)
    draws = Draws(seed, 0, index)
    text = draws.normal("text", (5, 16))
    condition = Condition({"encoder_hidden_states": text})
    x0, noise = (draws.normal(name, (4, 8, 8)) for name in ("x0", "noise"))
    return Batch(index, Pairs(x0, noise, condition))


def pairs_of(batch: Batch) -> Pairs:
    assert batch.pairs is not None
    return batch.pairs


def make_method(denoiser, **settings) -> LADD:
    config = LADDConfig(**{"taps": TAPS, "head_width": 8, **settings})
    return LADD.build(config, Cast.of(denoiser, denoiser.copy()))


def run(method: LADD, batch: Batch, step: int = 0, seed: int = 0) -> dict:
    """Role -> (total, parts) with gradients accumulated, as a plain loop does."""
    found = {}
    for role, terms in method.losses(batch, method.active(step), Draws(seed, step, batch.index)):
        terms.total.backward()
        found[role] = (terms.total.detach(), terms.parts)
    return found


class Fixed:
    """A student that says these x0 of everything."""

    prediction_type = "sample"

    def __init__(self, teacher, x0: Tensor) -> None:
        self.schedule, self.module, self.x0 = teacher.schedule, teacher.module, x0

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.x0


def has_gradient(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


@pytest.mark.parametrize("adversarial_weight", [0.0, 1.0])
def test_the_teachers_features_as_reconstruction(tiny_denoiser, adversarial_weight):
    batch = make_batch(0, 3)
    empty = pairs_of(batch).condition.index(0)
    cast = Cast.of(tiny_denoiser, tiny_denoiser.copy(), empty=empty)
    network = {"taps": ["conv_in", "down_blocks.0"], "u": 0.25}
    config = LADDConfig(
        taps=TAPS,
        head_width=8,
        reconstruction={"latent_lpips": {"network": network}},
        adversarial_weight=adversarial_weight,
    )
    method = LADD.build(config, cast)
    check_cast(method, cast)
    taps = method.frozen()["teacher"].taps
    of_heads = TAPS if adversarial_weight else ()
    assert taps == (*of_heads, "conv_in", "down_blocks.0")
    frozen(tiny_denoiser.module)
    found = run(method, batch)["student"][1]["reconstruction"]
    assert has_gradient(method.student.module)
    assert not has_gradient(tiny_denoiser.module)

    pairs, (step,) = pairs_of(batch), method.plan.steps
    x0 = predict_x0(method.student, step, step.input.mix(pairs.x0, pairs.noise), pairs.condition)
    t = tiny_denoiser.schedule.timestep(torch.full((3,), 0.25))
    trunk = FeatureTaps(tiny_denoiser, network["taps"]).bind(t, empty.index([0, 0, 0]))
    torch.testing.assert_close(found, LatentLPIPSLoss(trunk).per_sample(x0, pairs.x0).detach())


@pytest.mark.parametrize("fresh", [0.0, 0.5])
def test_a_loss_by_name_is_augmented_by_the_methods_draws(tiny_denoiser, fresh):
    method = make_method(
        tiny_denoiser,
        reconstruction={"latent_lpips": {"weights": "toy", "augment": "bg"}},
        fresh_fraction=fresh,
    )
    batch, values = make_batch(0, 4), []
    pairs, (step,) = pairs_of(batch), method.plan.steps
    x0 = predict_x0(method.student, step, step.input.mix(pairs.x0, pairs.noise), pairs.condition)
    rows = (~is_chosen(batch.index, fresh)).nonzero().flatten()
    plain = LatentLPIPSLoss(weights="toy")
    for number in (0, 2, 0):
        found = run(method, batch, number)["student"][1]["reconstruction"]
        r = Draws(0, number, batch.index).uniform("reconstruction.losses.0", 14)[rows]
        sides = (augment_latents(z[rows], r) for z in (x0, pairs.x0))
        torch.testing.assert_close(found, plain.per_sample(*sides).detach())
        values.append(found)
    assert torch.equal(values[0], values[2])
    assert not torch.equal(values[0], values[1])


@pytest.mark.parametrize(
    ("head", "kind"), [("conv", ConvHead), ("token", TokenHead), ("mlp", MLPHead)]
)
def test_the_config_chooses_the_head(tiny_denoiser, head, kind):
    method = make_method(tiny_denoiser, head=head)
    assert method.discriminator is not None
    heads = method.discriminator.heads.get_submodule("heads")
    assert [type(h) for h in heads.children()] == [kind] * len(TAPS)
    with pytest.raises(ValueError, match="the head 'patch' is unknown; known are conv, token, mlp"):
        LADDConfig(head="patch")


@pytest.mark.parametrize("updates", ["shared", "alternating"])
def test_each_term_reaches_its_own_role_alone(tiny_denoiser, updates):
    method = make_method(tiny_denoiser, updates=updates)
    assert isinstance(method, DistillationMethod)
    roles = {name: role.module for name, role in method.trainable().items()}
    for step in (0, 1):
        batch = make_batch(0, 3)
        for role, terms in method.losses(batch, method.active(step), Draws(0, step, batch.index)):
            terms.total.backward()
            assert {name for name, module in roles.items() if has_gradient(module)} == {role}
            for module in roles.values():
                module.zero_grad()
    assert not has_gradient(tiny_denoiser.module)


def test_turns():
    teacher = _toy_2d()
    method = _method_2d(teacher, warmup_steps=2)
    assert [method.active(s) for s in range(5)] == [
        ("student",),
        ("student",),
        ("student",),
        ("discriminator",),
        ("student",),
    ]
    shared = _method_2d(teacher, warmup_steps=1, updates="shared")
    assert [len(shared.active(s)) for s in range(3)] == [1, 2, 2]
    alone = _method_2d(teacher, adversarial_weight=0.0)
    assert alone.active(7) == ("student",)
    assert list(alone.trainable()) == ["student"]


def test_the_student_term_is_the_published_formula(tiny_denoiser):
    """Nitro: softplus(-D(noised x0)) + smooth_l1(x0, z), both on the pairs, written out by hand."""
    method = make_method(tiny_denoiser, reconstruction={"smooth_l1": 2.0}, adversarial_weight=0.5)
    batch = make_batch(3, 4)
    pairs, draws = pairs_of(batch), Draws(9, 0, batch.index)
    total, parts = run(method, batch, seed=9)["student"]

    t_last = torch.tensor(999)
    text = pairs.condition["encoder_hidden_states"]
    v = tiny_denoiser.module(pairs.noise, t_last, encoder_hidden_states=text).sample
    x0 = -v  # zero terminal SNR
    reconstruction = F.smooth_l1_loss(x0, pairs.x0)
    t = (draws.uniform("generator.t").double() * 0.75 * 1000).long()
    abar = tiny_denoiser.schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    eps = draws.normal("generator.noise", (4, 8, 8))
    x_t = (abar.sqrt() * x0 + (1 - abar).sqrt() * eps).float()
    logits = method.discriminator(x_t, t, pairs.condition)
    adversarial = sum(F.softplus(-scale).mean() for scale in logits) / len(logits)
    torch.testing.assert_close(total, 2 * reconstruction + 0.5 * adversarial.detach())
    torch.testing.assert_close(parts["reconstruction"].mean(), 2 * reconstruction.detach())


@pytest.mark.parametrize("misaligned", [False, True])
def test_the_discriminator_term_is_the_published_formula(tiny_denoiser, misaligned):
    """mean over real of softplus(-D) + mean over all fakes of softplus(D); mismatches are half."""
    method = make_method(tiny_denoiser, misaligned_negatives=misaligned)
    batch = make_batch(0, 3)
    total, _ = run(method, batch, step=1)["discriminator"]

    pairs, draws = pairs_of(batch), Draws(0, 1, batch.index)
    text = pairs.condition["encoder_hidden_states"]
    student = -method.student.module(
        pairs.noise, torch.tensor(999), encoder_hidden_states=text
    ).sample

    def side(x0: Tensor, name: str, sign: int) -> Tensor:
        t = (draws.uniform(f"{name}.t").double() * 0.75 * 1000).long()
        abar = tiny_denoiser.schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * draws.normal(f"{name}.noise", (4, 8, 8))
        logits = method.discriminator(x_t.float(), t, pairs.condition)
        return sum(F.softplus(sign * scale).mean() for scale in logits) / len(logits)

    fakes = side(student, "fake", 1)
    if misaligned:
        fakes = (fakes + side(pairs.x0.roll(1, 0), "misaligned", 1)) / 2
    expected = side(pairs.x0, "real", -1) + fakes
    torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"updates": "shared"},
        {
            "updates": "shared",
            "fresh_fraction": 0.5,
            "adversarial": "hinge",
        },
        {"updates": "shared", "num_inference_steps": 4},
        {"fresh_fraction": 0.25},
        {
            "fresh_fraction": 0.25,
            "reconstruction": {"latent_lpips": {"weights": "toy", "augment": "bg"}},
        },
        {
            "updates": "shared_pass",
            "noising": "shared",
            "penalty": {"approximate_r1_r2": 0.5, "r1": {"weight": 0.1, "every": 2}},
            "augmentation": Augmentation(0.5, 0.25),
            "conditioning": ("timestep",),
            "num_inference_steps": 4,
            "step_probabilities": (0.7, 0.1, 0.1, 0.1),
        },
    ],
)
@pytest.mark.parametrize("size", [2, 4])
def test_micro_batches_are_one_batch(tiny_denoiser, settings, size):
    method = make_method(tiny_denoiser, **settings)
    whole = run(method, make_batch(0, 8))
    gradient = [p.grad.clone() for p in method.student.module.parameters()]
    method.student.module.zero_grad()
    parts = [run(method, make_batch(start, size)) for start in range(0, 8, size)]
    for role, (total, _) in whole.items():
        mean = sum(part[role][0] for part in parts if role in part) / len(parts)
        torch.testing.assert_close(total, mean, rtol=1e-5, atol=1e-6)
    for whole_grad, parameter in zip(gradient, method.student.module.parameters(), strict=True):
        torch.testing.assert_close(whole_grad, parameter.grad / len(parts), rtol=1e-4, atol=1e-6)


def test_a_discriminator_at_chance_moves_nobody_who_is_balanced(tiny_denoiser):
    method = make_method(tiny_denoiser, balanced=True)
    assert method.discriminator is not None
    for parameter in method.discriminator.heads.parameters():  # every latent has the same logit
        nn.init.zeros_(parameter)
    batch = make_batch(0, 3)
    total, parts = run(method, batch)["student"]
    assert parts["gap"].tolist() == [0, 0, 0]
    torch.testing.assert_close(total, parts["reconstruction"].mean())
    alone = make_method(tiny_denoiser, adversarial_weight=0.0)
    run(alone, batch)
    for mine, other in zip(
        method.student.module.parameters(), alone.student.module.parameters(), strict=True
    ):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("fresh", [0.0, 0.5])
def test_a_balanced_gradient_is_a_share_of_the_reconstructions(tiny_denoiser, fresh):
    """|d adversarial / d x0| = weight (gap - error) |d reconstruction / d x0|, along hinge's; by hand."""
    settings = {"adversarial": "hinge", "adversarial_weight": 3.0, "fresh_fraction": fresh}
    batch = make_batch(0, 6)
    chosen = is_chosen(batch.index, fresh) if fresh else torch.ones(6, dtype=torch.bool)
    paired, pairs = ~chosen if fresh else chosen, pairs_of(batch)
    method = make_method(tiny_denoiser, balanced=True, **settings)
    latents = Draws(2, 0, batch.index).normal("x0", (4, 8, 8)).requires_grad_()
    method.student = Fixed(tiny_denoiser, latents)
    draws = Draws(4, 0, batch.index)
    _, terms = next(iter(method.losses(batch, ("student",), draws)))
    grad = {
        n: torch.autograd.grad(t, latents, retain_graph=True)[0] for n, t in terms.weighted.items()
    }

    x0 = latents.detach().requires_grad_()
    t = (draws.uniform("generator.t").double() * 0.75 * 1000).long()
    abar = tiny_denoiser.schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    noise = (1 - abar).sqrt() * draws.normal("generator.noise", (4, 8, 8))

    def logit(of: Tensor) -> Tensor:
        logits = method.discriminator((abar.sqrt() * of + noise).float(), t, pairs.condition)
        return (sum(scale.mean(1) for scale in logits) / len(logits))[chosen]

    reconstruction = F.smooth_l1_loss(x0[paired], pairs.x0[paired])
    expected, gaps = torch.autograd.grad(reconstruction, x0)[0], logit(pairs.x0) - logit(x0)
    gap = (gaps.mean() - gaps.std() / len(gaps) ** 0.5).detach()
    direction = torch.autograd.grad(-logit(x0).mean(), x0)[0]
    size = 3 * float(gap.clamp(0, 1)) * float(expected.norm())
    assert size > 0, "a seed where the discriminator finds the teacher's latents more real"
    torch.testing.assert_close(grad["reconstruction"], expected)
    torch.testing.assert_close(
        grad["adversarial"], size * direction / direction.norm(), rtol=1e-3, atol=1e-7
    )
    adversarial = size * -logit(x0).mean() / direction.norm()
    torch.testing.assert_close(terms.total, reconstruction + adversarial, rtol=1e-4, atol=1e-6)


def test_processes_balance_as_one(tiny_denoiser):
    """Two halves of a batch that gather what the other found get the gradient of the whole."""
    settings = {"balanced": True, "fresh_fraction": 0.5, "adversarial": "hinge"}
    method = make_method(tiny_denoiser, **settings)
    whole = make_batch(0, 8)
    expected, _ = run(method, whole)["student"]
    told: list[Tensor] = []

    def total(batch: Batch, gather) -> Tensor:
        draws = Draws(0, 0, batch.index, gather)
        return next(iter(method.losses(batch, ("student",), draws)))[1].total.detach()

    def alone(values: Tensor) -> Tensor:
        told.append(values)
        return values

    halves = [make_batch(start, 4) for start in (0, 4)]
    for half in halves:
        total(half, alone)
    both = torch.cat(told)
    found = sum(total(half, lambda _: both) for half in halves) / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_one_pass_of_real_latents_serves_the_students_loss_the_balance_and_the_update(
    tiny_denoiser,
):
    plain, games = {"balanced": True}, {"adversarial": "relativistic"}
    for settings, noising, batches in (
        (plain, "shared", [3, 3]),
        (plain, "independent", [3, 3, 3]),
        (games, "shared", [3, 3]),
        (games, "independent", [3, 3, 3]),
        ({**plain, **games}, "shared", [3, 3]),
        ({**plain, **games}, "independent", [3, 3, 3, 3]),
    ):
        method = make_method(tiny_denoiser, updates="shared_pass", noising=noising, **settings)
        calls: list[int] = []
        handle = tiny_denoiser.module.conv_in.register_forward_hook(
            lambda _, args, __, calls=calls: calls.append(len(args[0]))
        )
        run(method, make_batch(0, 3))
        handle.remove()
        assert calls == batches


def test_fresh_noise_gets_the_adversarial_term_and_pairs_the_reconstruction(tiny_denoiser):
    method = make_method(tiny_denoiser, fresh_fraction=2 / 3, updates="shared")
    found = run(method, make_batch(12, 12))
    assert found["student"][1]["adversarial"].shape == (8,)
    assert found["student"][1]["reconstruction"].shape == (4,)
    assert found["discriminator"][1]["discriminator"].shape == (8,)
    warm = make_method(tiny_denoiser, fresh_fraction=2 / 3, warmup_steps=1)
    assert run(warm, make_batch(12, 12))["student"][1]["reconstruction"].shape == (12,)


def test_a_misaligned_pair_is_one_only_where_the_prompts_differ(tiny_denoiser):
    """Four samples of one prompt have no negatives to roll onto."""
    batch = make_batch(0, 4)
    pairs = pairs_of(batch)
    same = Condition(pairs.condition.tensors, torch.zeros(4, dtype=torch.int64))
    alike = Batch(batch.index, Pairs(pairs.x0, pairs.noise, same))
    plain = run(make_method(tiny_denoiser), alike, step=1)["discriminator"][0]
    with pytest.warns(RuntimeWarning, match="all 4 prompts of the first micro-batch are one"):
        rolled = run(make_method(tiny_denoiser, misaligned_negatives=True), alike, step=1)
    assert torch.equal(rolled["discriminator"][0], plain)


@pytest.mark.parametrize(("size", "fraction"), [(1, 0.0), (2, 0.5)])
def test_a_gap_of_one_sample_has_no_standard_error(tiny_denoiser, size, fraction):
    method = make_method(tiny_denoiser, balanced=True, fresh_fraction=fraction)
    with pytest.raises(ValueError, match=f"has {size} .*large enough for two, or set balanced"):
        run(method, make_batch(0, size))


@pytest.mark.parametrize(("size", "fraction"), [(1, 0.0), (2, 0.5)])
def test_a_micro_batch_of_one_has_no_misaligned_pair(tiny_denoiser, size, fraction):
    method = make_method(tiny_denoiser, misaligned_negatives=True, fresh_fraction=fraction)
    with pytest.raises(ValueError, match=f"has {size} .*large enough for two, or set misaligned"):
        run(method, make_batch(0, size), step=1)


def test_a_teacher_without_prompts_has_no_misaligned_pair():
    method = _method_2d(_toy_2d(), misaligned_negatives=True)
    points = torch.zeros(4, 2, 1, 1)
    batch = Batch(torch.arange(4), Pairs(points, points, Condition({}, torch.zeros(4).long())))
    with pytest.raises(ValueError, match="this teacher takes no prompts"):
        run(method, batch, step=1)


def test_laws_by_use(tiny_denoiser):
    biased, low = {"logit_normal": {"mean": 1}}, {"uniform": {"ranges": [[0, 0.4]]}}
    method = make_method(tiny_denoiser, generator_timesteps=biased, fake_timesteps=low)
    noising = method.game.noising
    assert noising.law("generator") == noising.law("generator.real") == LogitNormal(1.0)
    assert noising.law("fake") == noising.law("misaligned") == Uniform(((0, 0.4),))
    assert noising.law("real") == Uniform(((0.0, 0.75),))


def test_steps_are_drawn_with_their_probabilities(tiny_denoiser):
    """2000 samples of a student that is never run: what it would be told."""
    method = make_method(
        tiny_denoiser, num_inference_steps=4, step_probabilities=(0.6, 0.0, 0.3, 0.1)
    )
    told: list[Tensor] = []

    class Listening:
        schedule, prediction_type = tiny_denoiser.schedule, "v_prediction"
        module = method.student.module

        def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            told.append(t)
            return 0 * x_t

    method.student = Listening()
    index = torch.arange(2000)
    latents = torch.zeros(2000, 4, 8, 8)
    batch = Batch(index, Pairs(latents, latents, Condition({"text": torch.zeros(2000, 1)})))
    method.game = None  # the student's turn alone
    next(method.losses(batch, ("student",), Draws(0, 0, index)))
    shares = [float((told[0] == t).double().mean()) for t in method.plan.timesteps()]
    assert shares == pytest.approx([0.6, 0.0, 0.3, 0.1], abs=0.04)
    assert shares[1] == 0


def test_the_papers_form(tiny_denoiser):
    """No pair's latent reaches the student of one step; heads behind every block, told of the timestep."""
    method = make_method(
        tiny_denoiser,
        taps="every_block",
        conditioning=("timestep",),
        adversarial="hinge",
        reconstruction={},
        fresh_fraction=1.0,
        discriminator_timesteps={"logit_normal": {"mean": 1.0, "std": 1.0}},
    )
    assert method.discriminator.taps.names == tiny_denoiser.adapter.blocks(tiny_denoiser.module)
    batch = make_batch(0, 4)
    pairs = pairs_of(batch)
    other = Batch(batch.index, Pairs(pairs.x0 + 1, pairs.noise + 1, pairs.condition))
    total, parts = run(method, batch)["student"]
    assert list(parts) == ["adversarial"]
    assert total == run(method, other)["student"][0]
    roles = {name: role.module for name, role in method.trainable().items()}
    assert has_gradient(roles["student"])
    found = run(method, batch, step=1)["discriminator"][1]
    assert found["discriminator"].shape == (4,)
    assert all(p.grad is not None for p in roles["discriminator"].parameters())


def test_lazy_penalties_count_the_discriminators_turns(tiny_denoiser):
    """Every second update is every fourth step where the two take turns, and never misses them."""
    for updates, due in (("alternating", [1, 5, 9]), ("shared", [1, 3, 5, 7, 9])):
        method = make_method(
            tiny_denoiser,
            updates=updates,
            warmup_steps=1 if updates == "shared" else 0,
            penalty={"approximate_r1": {"weight": 1.0, "every": 2}},
        )
        batch, found = make_batch(0, 2), []
        for step in range(10):
            parts = run(method, batch, step).get("discriminator", (None, {}))[1]
            found += [step] if "penalty" in parts else []
        assert found == due


def test_penalties_add_their_weighted_means(tiny_denoiser):
    batch = make_batch(0, 3)
    plain, _ = run(make_method(tiny_denoiser), batch, step=1)["discriminator"]
    spec = {"r1": 0.5, "approximate_r1": {"weight": 2, "every": 2}}
    total, parts = run(make_method(tiny_denoiser, penalty=spec), batch, step=1)["discriminator"]
    expected = plain + 0.5 * parts["r1"].mean() + 2 * 2 * parts["approximate_r1"].mean()
    torch.testing.assert_close(total, expected)
    assert float(parts["r1"].min()) > 0


def test_one_pass_of_the_fakes_serves_both_updates(tiny_denoiser):
    """The student's loss and gradient are those of `shared`; the backbone sees a batch of 3 less."""
    values, gradients = {}, {}
    for updates, batches in (("shared", [3, 6]), ("shared_pass", [3, 3])):
        method, calls = make_method(tiny_denoiser, updates=updates), []
        first = tiny_denoiser.module.conv_in
        handle = first.register_forward_hook(
            lambda _, args, __, calls=calls: calls.append(len(args[0]))
        )
        values[updates] = run(method, make_batch(0, 3))
        handle.remove()
        assert calls == batches
        gradients[updates] = [p.grad for p in method.student.module.parameters()]
    shared, once = values["shared"], values["shared_pass"]
    assert torch.equal(shared["student"][0], once["student"][0])
    assert all(map(torch.equal, gradients["shared"], gradients["shared_pass"]))
    # real ones have the same draws, fakes the generator's
    logits = [found["discriminator"][1] for found in (shared, once)]
    torch.testing.assert_close(logits[0]["logit_real"], logits[1]["logit_real"])
    assert not torch.isclose(logits[0]["logit_fake"], logits[1]["logit_fake"]).any()


def test_a_penalty_needs_trained_heads(tiny_denoiser):
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, width=8)
    discriminator.requires_grad_(False)
    plan = StepPlan.from_schedule(tiny_denoiser.schedule)
    with pytest.raises(ValueError, match="the penalties r1 act on the discriminator's heads"):
        LADD(tiny_denoiser.copy(), discriminator, plan, LADDConfig(penalty={"r1": 1.0}))


def test_fresh_noise_is_fresh(tiny_denoiser):
    """With everything fresh, the student's loss must not depend on the pairs' noise."""
    method = make_method(tiny_denoiser, fresh_fraction=1.0, reconstruction={})
    batch = make_batch(0, 4)
    pairs = pairs_of(batch)
    other = Batch(batch.index, Pairs(pairs.x0, pairs.noise + 1, pairs.condition))
    assert run(method, batch)["student"][0] == run(method, other)["student"][0]


def test_a_relativistic_generator_sees_the_real_side(tiny_denoiser):
    plan = StepPlan.from_schedule(tiny_denoiser.schedule)
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, width=8)
    values = {}
    for loss in (NonSaturatingGANLoss(), RelativisticGANLoss()):
        method = LADD(tiny_denoiser.copy(), discriminator, plan, adversarial=loss)
        values[type(loss)] = run(method, make_batch(0, 3))["student"][0]
    assert values[NonSaturatingGANLoss] != values[RelativisticGANLoss]


def test_the_heads_are_thawed_even_if_the_loop_breaks_off(tiny_denoiser):
    method = make_method(tiny_denoiser)
    batch = make_batch(0, 2)
    for _ in method.losses(batch, ("student",), Draws(0, 0, batch.index)):
        assert not any(p.requires_grad for p in method.discriminator.heads.parameters())
        break
    assert all(p.requires_grad for p in method.discriminator.heads.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fresh_fraction": 1.5}, "fresh_fraction is 1.5"),
        ({"balanced": True, "fresh_fraction": 1.0}, "balanced weighs .*one of them is left out"),
        ({"balanced": True, "adversarial_weight": 0.0}, "balanced weighs"),
        (
            {"reconstruction": {"smoth_l1": 1.0}},
            "the loss 'smoth_l1' is unknown; did you mean 'smooth_l1'",
        ),
        (
            {"reconstruction": {"latent_lpips": {"weights": "toy", "augment": "gf"}}},
            "latent_lpips: augment is 'gf'; give letters of 'bgco'",
        ),
        ({"adversarial": "wgan"}, "'wgan'.*hinge"),
        ({"adversarial_weight": -1.0}, "adversarial_weight is -1.0"),
        ({"reconstruction": {}, "adversarial_weight": 0.0}, "nothing to do"),
        (
            {"discriminator_timesteps": {"uniform": {"ranges": [[0.5, 0.2]]}}},
            "rise and do not overlap",
        ),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"reconstruction": {}, "warmup_steps": 5}, "warm-up is reconstruction alone"),
        ({"num_inference_steps": 2, "timestep": 400}, "one-step student"),
        ({"penalty": {"r3": 1.0}}, "the penalty 'r3' is unknown"),
        ({"penalty": {"r1": 1.0}, "adversarial_weight": 0.0}, "trains no discriminator"),
        ({"step_probabilities": (0.5, 0.5)}, "num_inference_steps is 1; give one a step"),
        ({"step_probabilities": (0.0,)}, "at least one must be above 0"),
        ({"noising": "shared", "real_timesteps": {"uniform": {}}}, "have one timestep"),
        ({"updates": "shared_pass", "fake_timesteps": {"uniform": {}}}, "or set updates: shared"),
        (
            {"reconstruction": {}, "fresh_fraction": 0.5},
            "would have no loss; set fresh_fraction: 1",
        ),
        ({"fresh_fraction": 1.0}, "no sample is left for the reconstruction"),
        (
            {
                "updates": "shared_pass",
                "noising": "shared",
                "generator_timesteps": {"karras": {}},
            },
            "leave generator_timesteps out, and set discriminator_timesteps",
        ),
        ({"fake_timesteps": {"uniform": {"ranges": [[0.5, 1.2]]}}}, "0 <= low <= high <= 1"),
        ({"adversarial": {"hinge": {"weights": [1, 0]}}}, "a number of weights is 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LADDConfig(**settings)


def test_an_adversarial_term_needs_a_discriminator(tiny_denoiser):
    plan = StepPlan.from_schedule(tiny_denoiser.schedule)
    with pytest.raises(ValueError, match="needs a discriminator"):
        LADD(tiny_denoiser, None, plan)


# A mixture of 8 Gaussians on a circle, with its exact denoiser: does a run keep all modes?

MODES = torch.stack(
    [torch.tensor([math.cos(a), math.sin(a)]) for a in torch.arange(8) * math.pi / 4]
)
STD = 0.1


class Exact:
    """E[x0 | x_t] of the mixture, in closed form; points are `(B, 2, 1, 1)`."""

    schedule = RectifiedFlow(t_max=1)
    prediction_type = "sample"
    module = nn.Identity()

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = (expand(s.expand(len(x_t)), x_t).float() for s in self.schedule(t))
        variance = (alpha**2 * STD**2 + sigma**2).flatten(1)
        x, a = x_t.flatten(1), alpha.flatten(1)
        weights = (-(x[:, None] - a[..., None] * MODES).square().sum(2) / (2 * variance)).softmax(1)
        gain = a * STD**2 / variance
        means = MODES + gain[..., None] * (x[:, None] - a[..., None] * MODES)
        return (weights[..., None] * means).sum(1).reshape(x_t.shape)


class Network(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, width, 1), nn.SiLU(), nn.Conv2d(width, width, 1))
        self.outer = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU(), nn.Conv2d(width, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))


class Toy2d:
    """A learned denoiser on 2-D points, as any user of the contract would write it."""

    schedule = RectifiedFlow(t_max=1)
    prediction_type = "flow_prediction"

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        u = expand(t.expand(len(x_t)), x_t).float()
        return self.module(torch.cat([x_t, u.expand(-1, 1, *x_t.shape[2:])], dim=1))


def _toy_2d() -> Toy2d:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Toy2d(Network())


def _method_2d(teacher: Toy2d, **settings) -> LADD:
    config = LADDConfig(taps=("inner",), head_width=32, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        student = Toy2d(Network())
    student.module.load_state_dict(teacher.module.state_dict())
    example = (torch.zeros(1, 2, 1, 1), torch.zeros(()), Condition())
    discriminator = LatentDiscriminator(teacher, config.taps, width=32, example=example)
    plan = StepPlan.from_schedule(student.schedule)
    return LADD(student, discriminator, plan, config)


def _train_teacher(teacher: Toy2d, points: Tensor) -> None:
    optimizer = torch.optim.Adam(teacher.module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        x0 = points[torch.randint(len(points), (256,), generator=generator)]
        t = torch.rand(256, generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        x_t = teacher.schedule(t).mix(x0, eps)
        prediction = teacher(x_t, t, Condition())
        loss = (to_x0(prediction, x_t, teacher.schedule(t), "flow_prediction") - x0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_run_on_a_mixture_keeps_all_modes():
    exact, teacher = Exact(), _toy_2d()
    noise = Draws(0, 0, torch.arange(2048)).normal("pairs", (2, 1, 1))
    with torch.no_grad():
        data = sample(exact, StepPlan.from_schedule(exact.schedule, 50), noise, Condition())
    _train_teacher(teacher, data)
    method = _method_2d(
        teacher,
        fresh_fraction=0.5,
        warmup_steps=100,
        updates="shared",
        adversarial_weight=0.2,
        discriminator_timesteps={"uniform": {"ranges": [[0.05, 0.5]]}},
    )
    optimizers = {
        name: torch.optim.Adam(role.module.parameters(), lr=2e-3, betas=(0.5, 0.99))
        for name, role in method.trainable().items()
    }
    for step in range(400):
        index = torch.arange(step * 96, (step + 1) * 96)
        rows = index % len(data)
        batch = Batch(index, Pairs(data[rows], noise[rows], Condition()))
        for role, terms in method.losses(batch, method.active(step), Draws(0, step, index)):
            optimizers[role].zero_grad()
            terms.total.backward()
            optimizers[role].step()

    fresh = Draws(7, 0, torch.arange(2000)).normal("held out", (2, 1, 1))
    with torch.no_grad():
        points = sample(method.student, method.plan, fresh, Condition()).flatten(1)
    distance, mode = (points[:, None] - MODES).norm(dim=2).min(1)
    shares = torch.bincount(mode, minlength=8) / len(points)
    assert float(shares.min()) > 0.08, "every mode has 1/8 of the mass"
    assert float(shares.max()) < 0.18
    assert float((distance < 4 * STD).float().mean()) > 0.8
