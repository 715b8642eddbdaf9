"""Feature distillation against its equation, written out by hand with hooks of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.method import Cast, Draws
from nitrodistill.methods import FeatureKD, FeatureKDConfig
from nitrodistill.methods.feature_kd import MATCHINGS
from nitrodistill.models import DiffusersDenoiser, PruneSpec, prune
from nitrodistill.schedules import DiscreteSchedule, RectifiedFlow
from nitrodistill.types import Batch, Condition, Latents, Pairs, PredictionType
from tests.models.families import FAMILIES
from tests.models.test_pruning import published, unet

CUT = PruneSpec({"mid_block": (), "up_blocks.0.attentions": ()})
BLOCKS = ("down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1")
MATCHES = tuple((name, name) for name in BLOCKS)


def batch(start: int = 0, size: int = 3) -> Batch:
    index = torch.arange(start, start + size)
    draws = Draws(5, 0, index)
    condition = Condition({"encoder_hidden_states": draws.normal("text", (5, 16))})
    x0, noise = (draws.normal(name, (4, 8, 8)) for name in ("x0", "noise"))
    return Batch(index, Pairs(x0, noise, condition), Latents(x0 + 1, condition))


def empty() -> Condition:
    return Condition({"encoder_hidden_states": torch.full((1, 5, 16), 0.3)})


def method(teacher: Any, **settings: Any) -> FeatureKD:
    config = FeatureKDConfig(**{"features": MATCHES, "num_inference_steps": 4, **settings})
    return FeatureKD.build(config, Cast.of(teacher, prune(teacher, CUT), empty=empty()))


def terms(made: FeatureKD, given: Batch, step: int = 0) -> Any:
    ((role, found),) = made.losses(given, made.active(step), Draws(0, step, given.index))
    assert role == "student"
    return found


def with_noise(denoiser: DiffusersDenoiser, kind: PredictionType) -> DiffusersDenoiser:
    """The network, read as if it predicted another kind."""
    schedules: dict[str, Any] = {
        "flow_prediction": RectifiedFlow(t_max=1.0),
        "epsilon": FAMILIES["sd15"].make()[0].schedule,  # not of zero terminal SNR
        "v_prediction": denoiser.schedule,
    }
    return DiffusersDenoiser(denoiser.module, schedules[kind], kind)


def hooked(network: Any, x_t: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The answer and the blocks' first outputs, by diffusers alone."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [network.get_submodule(n).register_forward_hook(keep(n)) for n in BLOCKS]
    answer = network(x_t, t, encoder_hidden_states=text).sample
    for handle in handles:
        handle.remove()
    return answer, [found[name] for name in BLOCKS]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_the_gradient_is_the_equations(tiny_denoiser, kind):
    teacher = with_noise(tiny_denoiser, kind)
    teacher.module.requires_grad_(False)
    made = method(teacher, task={"l2": 0.7}, output={"l2": 0.5}, feature={"l2": 0.2})
    given = batch()
    found = terms(made, given)
    found.total.backward()
    network: Any = made.student.module
    gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}

    network.zero_grad()
    assert given.real is not None
    draws, x0 = Draws(0, 0, given.index), given.real.x0
    u = draws.uniform("t")
    eps = draws.normal("noise", (4, 8, 8))
    if kind == "flow_prediction":
        t = u
        alpha, sigma, y = 1 - t, t, eps - x0
    else:
        assert isinstance(teacher.schedule, DiscreteSchedule)
        t = (u * 1000).floor().long()
        alpha, sigma = teacher.schedule(t)
    alpha, sigma = (s.float().view(-1, 1, 1, 1) for s in (alpha, sigma))
    if kind == "epsilon":
        y = eps
    if kind == "v_prediction":
        y = alpha * eps - sigma * x0
    text = given.real.condition["encoder_hidden_states"]
    x_t = alpha * x0 + sigma * eps
    with torch.no_grad():
        of_teacher, theirs = hooked(tiny_denoiser.module, x_t, t, text)
    of_student, ours = hooked(network, x_t, t, text)
    loss = 0.7 * F.mse_loss(of_student, y) + 0.5 * F.mse_loss(of_student, of_teacher)
    loss = loss + 0.2 * sum(F.mse_loss(a, b) for a, b in zip(ours, theirs, strict=True))
    loss.backward()
    torch.testing.assert_close(found.total, loss.detach(), rtol=1e-5, atol=1e-6)
    expected = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    assert len(expected) == sum(1 for _ in network.parameters())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_an_equal_student_has_the_task_alone(tiny_denoiser):
    config = FeatureKDConfig(features=(*MATCHES, (0.6, 0.6)), num_inference_steps=4)
    made = FeatureKD.build(config, Cast.of(tiny_denoiser, tiny_denoiser.copy()))
    found = terms(made, batch())
    assert (
        float(found.parts["output"].abs().max()) == float(found.parts["feature"].abs().max()) == 0
    )
    assert float(found.total.detach()) == pytest.approx(float(found.parts["task"].mean()))
    assert set(made.trainable()) == {"student"}
    assert made.frozen()["teacher"].module is tiny_denoiser.module


def test_the_teacher_gets_no_gradient(tiny_denoiser):
    tiny_denoiser.module.requires_grad_(True)
    terms(method(tiny_denoiser), batch()).total.backward()
    assert all(p.grad is None for p in tiny_denoiser.module.parameters())


def test_pairs_or_real_latents(tiny_denoiser):
    given = batch()
    assert given.pairs is not None
    assert given.real is not None
    real, pairs = method(tiny_denoiser), method(tiny_denoiser, data="pairs")
    assert (real.reads, pairs.reads) == ({"real"}, {"pairs"})
    swapped = Batch(given.index, real=Latents(given.pairs.x0, given.pairs.condition))
    assert torch.equal(terms(pairs, given).total, terms(real, swapped).total)
    assert not torch.equal(terms(pairs, given).total, terms(real, given).total)


def test_dropped_prompts_are_the_empty_one(tiny_denoiser):
    given = batch()
    assert given.real is not None
    nothing = Latents(given.real.x0, empty().index([0, 0, 0]))
    dropped = terms(method(tiny_denoiser, guidance_dropout=1.0), given)
    expected = terms(method(tiny_denoiser), Batch(given.index, real=nothing))
    assert torch.equal(dropped.total, expected.total)
    where = Draws(0, 0, torch.arange(4000)).uniform("dropout") < 0.1
    assert float(where.float().mean()) == pytest.approx(0.1, abs=0.015)


def test_guidance_is_the_output_losses_target(tiny_denoiser):
    given = batch()
    assert given.real is not None
    made = method(tiny_denoiser, guidance=3.0, task={}, feature={})
    found = terms(made, given)
    draws = Draws(0, 0, given.index)
    t = made.student.schedule.timestep(draws.uniform("t"))
    x_t = made.student.schedule(t).mix(given.real.x0, draws.normal("noise", (4, 8, 8)))
    condition = given.real.condition
    with torch.no_grad():
        null, told = (tiny_denoiser(x_t, t, c) for c in (condition.null(empty()), condition))
        student = made.student(x_t, t, condition)
    expected = F.mse_loss(student, null + 3 * (told - null))
    torch.testing.assert_close(found.total.detach(), expected, rtol=1e-5, atol=1e-7)
    assert set(found.parts) == {"output"}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weighs_task_and_output(tiny_denoiser, kind):
    teacher, given = with_noise(tiny_denoiser, kind), batch()
    plain = terms(method(teacher), given).parts
    weighed = terms(method(teacher, min_snr_gamma=5.0), given).parts
    t = teacher.schedule.timestep(Draws(0, 0, given.index).uniform("t"))
    alpha, sigma = teacher.schedule(t)
    snr = alpha.square() / sigma.square()
    weight = snr.clamp(max=5) / (snr if kind == "epsilon" else snr + 1)
    for name in ("task", "output"):
        torch.testing.assert_close(
            weighed[name], plain[name] * weight.float(), rtol=1e-4, atol=1e-6
        )
    assert torch.equal(weighed["feature"], plain["feature"])


def test_normalised_layers_count_alike(tiny_denoiser):
    """A pair that differs by a factor has the loss (1 - factor)^2, whatever its size."""
    made = method(tiny_denoiser, normalise=True)
    wanted = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    for size in (1e-3, 1.0, 1e3):
        value = made._compared(0.5 * size * wanted, size * wanted)
        torch.testing.assert_close(value, torch.full((3,), 0.25))


def test_any_named_loss(tiny_denoiser):
    loss = {"smooth_l1": 0.5, "l1": {"weight": 2.0}}
    found = terms(method(tiny_denoiser, feature=loss, task={}, output={}), batch())
    assert set(found.parts) == {"feature"}
    assert float(found.total.detach()) > 0


def test_losses_are_augmented_by_the_methods_draws(tiny_denoiser):
    spec = {"latent_lpips": {"weights": "toy", "augment": "bg"}}
    made = method(tiny_denoiser, task=spec, output={}, feature={})
    found = terms(made, batch())
    assert made.task is not None
    (loss,) = made.task.losses
    expected = Draws(0, 0, batch().index).uniform("task.losses.0", 14)
    torch.testing.assert_close(loss.drawn, expected)
    made.task.eval()
    assert found.parts["task"].isfinite().all()
    assert not torch.equal(found.parts["task"], terms(made, batch()).parts["task"])


def test_checkpointing_changes_no_gradient():
    teacher = DiffusersDenoiser(unet("sd15"), FAMILIES["sd15"].make()[0].schedule, "epsilon")
    config = FeatureKDConfig(features="bk-tiny", num_inference_steps=4)
    made = FeatureKD.build(config, Cast.of(teacher, prune(teacher, "bk-tiny")))
    index = torch.arange(2)
    draws = Draws(5, 0, index)
    text = Condition({"encoder_hidden_states": draws.normal("text", (5, 12))})
    given = Batch(index, real=Latents(draws.normal("x0", (4, 16, 16)), text))
    found = []
    for _ in range(2):
        made.student.module.zero_grad()
        terms(made, given).total.backward()
        found.append(
            [p.grad.clone() for p in made.student.module.parameters() if p.grad is not None]
        )
        student: Any = made.student
        student.enable_gradient_checkpointing()
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_tiny_matching_fits_linear_projections():
    """Stable Diffusion 2.x projects tokens, 1.x maps; tests/test_pruned_recipes.py has the other matchings."""
    schedule = FAMILIES["sd15"].make()[0].schedule
    whole = DiffusersDenoiser(published("sd21"), schedule, "epsilon")
    settings = FeatureKDConfig(features="bk-tiny")
    made = FeatureKD.build(settings, Cast.of(whole, prune(whole, "bk-tiny")))
    assert len(made.config.matches) == 6
    assert set(made.frozen()) == {"teacher", "task_loss", "output_loss", "feature_loss"}


def test_the_number_of_published_pairs():
    counts = {name: len(set(pairs)) for name, pairs in MATCHINGS.items()}
    assert counts == {
        "bk-base": 8,
        "bk-tiny": 6,
        "segmind-small": 9,
        "segmind-tiny": 6,
        "ssd-1b": 26,
    }


def test_what_does_not_fit(tiny_denoiser):
    with pytest.raises(ValueError, match=r"'mid_block' of the student, .*pruned away"):
        method(tiny_denoiser, features=(("mid_block", "mid_block"),))
    with pytest.raises(
        ValueError,
        match=r"'down_blocks.0' of the teacher \(32 channels on 2x2\) and 'up_blocks.1' of the student",
    ):
        method(tiny_denoiser, features=(MATCHES[1], ("down_blocks.0", "up_blocks.1")))
    with pytest.raises(
        ValueError, match="teacher predicts 'v_prediction' and the student 'epsilon'"
    ):
        FeatureKD.build(
            FeatureKDConfig(features=MATCHES),
            Cast.of(tiny_denoiser, with_noise(tiny_denoiser, "epsilon")),
        )
    for settings in ({"guidance": 2.0}, {"guidance_dropout": 0.1}):
        with pytest.raises(ValueError, match="need a condition that stands for none"):
            FeatureKD.build(
                FeatureKDConfig(features=MATCHES, **settings),
                Cast.of(tiny_denoiser, tiny_denoiser.copy()),
            )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": {}, "output": {}, "feature": {}}, "nothing to do"),
        ({"features": "bk-tin"}, "bk-tin.*did you mean"),
        ({"features": ()}, "features is empty"),
        ({"guidance_dropout": 1.5}, r"guidance_dropout is 1.5; it must be in \[0, 1\]"),
        ({"guidance": 0.5}, "guidance"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma"),
        ({"task": {"l3": 1.0}}, "l3"),
        ({"timesteps": "unifrom"}, "unifrom"),
    ],
)  # fmt: skip
def test_settings_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        FeatureKDConfig(**settings)
