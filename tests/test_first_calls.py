"""What a newcomer writes first: it works if it can mean one thing, else is one sentence; and what `repr` says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nitrodistill as nd

PROMPT = "a small red circle on a black background"


@pytest.fixture
def parts(tiny_denoiser: Any, tiny_condition: nd.Condition, tiny_scheduler: Any) -> Any:
    return SimpleNamespace(
        denoiser=tiny_denoiser,
        unet=tiny_denoiser.module,
        schedule=tiny_denoiser.schedule,
        scheduler=tiny_scheduler,
        condition=tiny_condition,
        tensors=dict(tiny_condition.tensors),
        x=torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        plan=nd.StepPlan.from_schedule(tiny_denoiser.schedule, 2),
        discriminator=nd.LatentDiscriminator(tiny_denoiser, ["mid_block"], width=8),
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


FIVE = torch.tensor([5, 5, 5])
MEANT = {
    "a timestep": (lambda p: p.schedule(999), lambda p: p.schedule(torch.tensor(999))),
    "a fraction": (lambda p: p.schedule.timestep(1), lambda p: torch.tensor(999)),
    "back": (lambda p: p.schedule.fraction(999), lambda p: torch.tensor(1.0).double()),
    "a flow's": (
        lambda p: nd.RectifiedFlow()(250),
        lambda p: nd.RectifiedFlow()(torch.tensor(250.0)),
    ),
    "a sigma": (lambda p: nd.KarrasSchedule()(0.5).sigma, lambda p: torch.tensor(0.5).double()),
    "a law's": (lambda p: nd.Shifted(3.0)(0.5), lambda p: torch.tensor(0.75).double()),
    "network, t": (
        lambda p: p.denoiser(p.x, 5, p.condition),
        lambda p: p.denoiser(p.x, FIVE, p.condition),
    ),
    "network, dict": (
        lambda p: p.denoiser(p.x, FIVE, p.tensors),
        lambda p: p.denoiser(p.x, FIVE, p.condition),
    ),
    "guided": (
        lambda p: nd.Guided(p.denoiser, 2.0, {k: v[:1] for k, v in p.tensors.items()})(
            p.x, 5, p.tensors
        ),
        lambda p: nd.Guided(p.denoiser, 2.0, p.condition.index(0))(p.x, FIVE, p.condition),
    ),
    "discriminator": (
        lambda p: p.discriminator(p.x, 5, p.tensors),
        lambda p: p.discriminator(p.x, FIVE, p.condition),
    ),
    "logits of one map": (
        lambda p: p.discriminator.logits(p.discriminator.taps.features(p.x, 5, p.tensors)[0], 5),
        lambda p: p.discriminator(p.x, FIVE, p.condition),
    ),
    "sample": (
        lambda p: nd.sample(p.denoiser, p.plan, p.x, p.tensors),
        lambda p: nd.sample(p.denoiser, p.plan, p.x, p.condition),
    ),
    "tap": (lambda p: nd.FeatureTaps(p.denoiser, "mid_block").names, lambda p: ("mid_block",)),
    "depth": (
        lambda p: nd.FeatureTaps(p.denoiser, 0.5).names,
        lambda p: nd.FeatureTaps(p.denoiser, [0.5]).names,
    ),
    "head": (
        lambda p: nd.LatentDiscriminator(p.denoiser, "mid_block", head="token")(p.x, 5, p.tensors),
        lambda p: nd.LatentDiscriminator(p.denoiser, ["mid_block"], head=nd.TokenHead)(
            p.x, FIVE, p.condition
        ),
    ),
    "conditioning": (
        lambda p: nd.LatentDiscriminator(p.denoiser, 0.5, conditioning="timestep").conditioning,
        lambda p: ("timestep",),
    ),
    "scales": (
        lambda p: nd.to_x0(p.x, p.x, (torch.ones(3), torch.ones(3)), "epsilon"),
        lambda p: 0 * p.x,
    ),
    "one row": (
        lambda p: p.condition.index(1)["encoder_hidden_states"],
        lambda p: p.condition["encoder_hidden_states"][1:2],
    ),
    "a shape": (
        lambda p: nd.Draws(0, 0, FIVE).normal("a", 2),
        lambda p: nd.Draws(0, 0, FIVE).normal("a", (2,)),
    ),
    "a part": (
        lambda p: nd.PruneSpec.without(p.denoiser, "mid_block"),
        lambda p: nd.PruneSpec.without(p.unet, ["mid_block"]),
    ),
}


@pytest.mark.parametrize("name", MEANT)
@torch.no_grad()
def test_what_means_one_thing_works(parts, name):
    written, meant = MEANT[name]
    assert same(written(parts), meant(parts))


A_DENOISER = "it must be a Denoiser, such as Pipeline.from_diffusers"
A_SCHEDULE = "schedule is a DDIMScheduler; it must be a NoiseSchedule, .* DiscreteSchedule.from_sch"
WRONG = {
    "D of a network": (lambda p: nd.LatentDiscriminator(p.unet, ["mid_block"]), A_DENOISER),
    "taps of a network": (lambda p: nd.FeatureTaps(p.unet, ["mid_block"]), A_DENOISER),
    "guided network": (lambda p: nd.Guided(p.unet, 2.0, p.condition.index(0)), A_DENOISER),
    "sample a network": (lambda p: nd.sample(p.unet, p.plan, p.x, p.condition), A_DENOISER),
    "x0 of a network": (
        lambda p: nd.predict_x0(p.unet, p.plan.steps[0], p.x, p.condition),
        A_DENOISER,
    ),
    "cast of networks": (lambda p: nd.Cast.of(p.unet, p.unet).teacher, f"teacher .*{A_DENOISER}"),
    "LADD of a network": (lambda p: nd.LADD(p.unet, p.discriminator, p.plan), "student is a UNet"),
    "LoRA on a network": (lambda p: nd.add_lora(p.unet, "a"), "must be a DiffusersDenoiser"),
    "LoRA of a number": (lambda p: nd.add_lora(p.denoiser, "a", 4), "config is 4; it must be a Lo"),
    "scheduler": (lambda p: nd.StepPlan.from_schedule(p.scheduler), A_SCHEDULE),
    "scheduler of a network": (
        lambda p: nd.DiffusersDenoiser(p.unet, p.scheduler, "epsilon"),
        A_SCHEDULE,
    ),
    "table of a scheduler": (
        lambda p: nd.DiscreteSchedule(p.scheduler),
        "from_scheduler reads a diffusers scheduler",
    ),
    "network twice": (
        lambda p: nd.DiffusersDenoiser(p.denoiser, p.schedule, "epsilon"),
        "module is a DiffusersDenoiser; it must be an nn.Module: the network itself",
    ),
    "no pipeline": (lambda p: nd.Pipeline(None, p.unet), "Pipeline.from_diffusers.pipe. makes it"),
    "steps": (lambda p: nd.sample(p.denoiser, 2, p.x, p.condition), "plan is 2; it must be a Step"),
    "plan": (
        lambda p: nd.predict_x0(p.denoiser, p.plan, p.x, p.condition),
        r"step is a StepPlan; it must be a Step, such as plan.steps\[0\]",
    ),
    "t": (lambda p: nd.ode_step(p.denoiser, 5, 4, p.x, p.condition), "step is 5; it must be a St"),
    "t too large": (lambda p: p.denoiser(p.x, 1000, p.condition), r"t is 1000; .* in \[0, 999\]"),
    "t of D": (lambda p: p.discriminator(p.x, -1, p.condition), r"t is -1; .* in \[0, 999\]"),
    "t is a list": (lambda p: p.schedule([1, 2]), "t is a list; it must be a torch.Tensor, or a n"),
    "t of others": (
        lambda p: p.denoiser(p.x, torch.tensor([1, 2]), p.condition),
        r"t has shape \(2,\); it must be \(3,\), one timestep per sample, or one for all",
    ),
    "sigma": (lambda p: nd.KarrasSchedule()(-1), "t is -1; it must be finite and at least 0"),
    "u": (lambda p: p.plan.at(0.5), r"u has shape \(\); it must be \(B,\)"),
    "a tensor": (
        lambda p: p.denoiser(p.x, 5, p.condition["encoder_hidden_states"]),
        "condition is a tensor of torch.float32; it must be a Condition",
    ),
    "no condition": (lambda p: p.denoiser(p.x, 5), "needs 'encoder_hidden_states' in its Condit"),
    "a list in it": (lambda p: nd.Condition({"a": [1.0]}), "a of a Condition is .1.0.; it must be"),
    "a list of latents": (
        lambda p: p.discriminator([1.0], 5, p.condition),
        r"x_t is \[1.0\]; it must be a torch.Tensor",
    ),
    "other maps": (
        lambda p: p.discriminator.logits([p.x], 5),
        r"features are maps of \[4\] channels; the heads take one of each tap, of \[64\]",
    ),
    "settings": (
        lambda p: nd.LADD(p.denoiser, p.discriminator, p.plan, {"taps": "mid_block"}),
        "config is {'taps': 'mid_block'}; it must be a LADDConfig",
    ),
    "no cast": (
        lambda p: nd.Consistency.build(nd.ConsistencyConfig(), p.denoiser),
        r"cast is a DiffusersDenoiser; it must be a Cast or none: Cast.of\(teacher, student\)",
    ),
    "a role": (lambda p: nd.Role(p.unet).module, "owner is the object that uses it"),
    "frozen": (lambda p: nd.Frozen(p.denoiser), "must be an nn.Module, such as denoiser.module"),
    "frozen within": (lambda p: nd.frozen_within(p.denoiser).__enter__(), "must be an nn.Module"),
    "losses": (lambda p: nd.WeightedSum([nd.L1Loss()]), "a mapping: .name: .weight, loss.."),
    "a path": (lambda p: nd.BatchStream("pairs", 0, 4), "source is 'pairs'; open the store first"),
    "latents": (lambda p: nd.LatentStore("pairs"), "store is 'pairs'; .* PairStore.open"),
    "teacher": (
        lambda p: nd.generate(p.unet, [PROMPT], "x", nd.GenerateConfig(1), teacher_name="a"),
        "pipeline is a UNet2DConditionModel; it must be a Pipeline",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_anything_else_is_one_sentence(parts, name):
    call, sentence = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=sentence) as error:
        call(parts)
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 300


def test_a_pipeline_takes_one_prompt_and_refuses_other_tensors(tiny_diffusers, tiny_scheduler):
    pipeline = nd.Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))
    one, listed = pipeline.encode_prompt(PROMPT), pipeline.encode_prompt([PROMPT])
    assert torch.equal(one["encoder_hidden_states"], listed["encoder_hidden_states"])
    for call, sentence in (
        (lambda: pipeline.decode(torch.zeros(4, 8, 8)), r"latents has shape \(4, 8, 8\)"),
        (lambda: pipeline.encode_image(torch.zeros(1, 3, 16, 16).byte()), "images has dtype"),
        (lambda: pipeline.null_condition(["a", "b"]), "negative_prompt is"),
    ):
        with pytest.raises((TypeError, ValueError), match=sentence):
            call()
    assert repr(pipeline).startswith(
        "Pipeline(StableDiffusionPipeline, 16x16 pixels, latents (4, 8, 8), DiffusersDenoiser("
    )


def test_repr_says_what_it_is_in_one_line(parts):
    p = parts
    lines = {
        "DiscreteSchedule(1000 timesteps, alpha 0.9996 to 0 (zero terminal SNR))": p.schedule,
        "StepPlan(2 steps, ode, t = 999, 499)": p.plan,
        "StepPlan(10 steps, ode, t = 999, 899, 799, 699, 599, 499, ..., 99)": (
            nd.StepPlan.from_schedule(p.schedule, 10)
        ),
        "StepPlan(Step(t=400, input=(0, 1), output=(0.626, 0.7798)))": (
            nd.StepPlan.from_noise(p.schedule, 400)
        ),
        "Condition(tensors={encoder_hidden_states: float32 (3, 5, 16)})": p.condition,
        "Latents(x0=float32 (3, 4, 8, 8), condition=Condition(tensors={}))": (
            nd.Latents(p.x, nd.Condition())
        ),
        "Batch(index=int64 (3,), prompts=Condition(tensors={}))": (
            nd.Batch(FIVE, prompts=nd.Condition())
        ),
        "FeatureTaps(mid_block of UNet2DConditionModel)": p.discriminator.taps,
        "LatentDiscriminator(conv heads of 0.00834M parameters, on UNet2DConditionModel at mid_block "
        "(64 channels))": p.discriminator,
        "DiffusersDenoiser(UNet2DConditionModel of 0.977M parameters, v_prediction, "
        f"{p.schedule!r})": p.denoiser,
        f"Guided({p.denoiser!r}, scale=2.0)": nd.Guided(p.denoiser, 2.0, p.condition.index(0)),
        f"LADD(student={p.denoiser!r}, discriminator={p.discriminator!r}, plan={p.plan!r})": (
            nd.LADD(p.denoiser, p.discriminator, p.plan)
        ),
        "Frozen(module=UNet2DConditionModel, taps=(), follows='', decay=0.95, as_it_is=False)": (
            nd.Frozen(p.unet)
        ),
        f"Prompts(2 prompts, {PROMPT!r:.40}...)": nd.Prompts(
            [PROMPT, "b"], lambda rows: p.condition
        ),
    }
    for line, value in lines.items():
        assert repr(value) == line
    losses = (nd.L1Loss(), nd.LatentSSIMLoss(8.0), nd.HingeGANLoss())
    for value in (*losses, nd.RectifiedFlow(), nd.Uniform(), nd.LADDConfig()):
        assert repr(value).startswith(type(value).__name__ + "(")
        assert "\n" not in repr(value)
