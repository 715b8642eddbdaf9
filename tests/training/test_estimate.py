from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nitrodistill.losses import LatentLPIPSLoss
from nitrodistill.method import Cast, Draws
from nitrodistill.methods import LADD, LADDConfig
from nitrodistill.models import LoRAConfig, Pipeline, PruneSpec, prune
from nitrodistill.teachers import teacher_shapes
from nitrodistill.training import OptimizerConfig, Trainer, TrainerConfig
from nitrodistill.training.estimate import (
    Counts,
    Memory,
    RoleMemory,
    estimate,
    what_helps,
)
from nitrodistill.training.passes import Backward, Line, _Runs
from nitrodistill.training.recipe import Stage, load_recipe
from nitrodistill.types import Batch, Pairs

RECIPES = Path(__file__).parents[2] / "nitrodistill" / "recipes"
METHOD = LADDConfig(taps=("down_blocks.0", "mid_block"), updates="shared")
ROLES = {"student": OptimizerConfig(ema_decay=0.999), "discriminator": OptimizerConfig()}
STAGE = Stage("ladd", TrainerConfig(steps=2, batch_size=3, optimizers=ROLES), METHOD)


@pytest.fixture
def pipeline(tiny_diffusers, tiny_scheduler) -> Pipeline:
    return Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))


@pytest.fixture(scope="module")
def switched(tiny_diffusers, tiny_scheduler) -> dict[str, Memory]:
    """What helps `STAGE`, counted once."""
    shapes = Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))
    return what_helps(Counts(shapes, 5), STAGE, lora_rank=2)


def nbytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_weights_gradients_moments_and_average_are_those_of_a_real_run(pipeline):
    teacher = pipeline.denoiser
    method = LADD.build(METHOD, Cast.of(teacher, teacher.copy()))
    seen: dict[str, int] = {}

    def stream(number: int) -> Batch:
        index = torch.arange(3 * number, 3 * number + 3)
        noise = Draws(0, 0, index).normal("noise", pipeline.latent_shape)
        text = teacher.adapter.example_condition(noise[:1], 5)
        return Batch(index, Pairs(noise, noise, text.index([0, 0, 0])))

    trainer = Trainer(method, stream, STAGE.trainer)
    for _ in trainer.fit():
        pass
    for name, role in method.trainable().items():
        weights = [p for p in role.module.parameters() if p.requires_grad]
        moments = trainer._trained[name].optimizer.state.values()
        seen[name] = nbytes(value for state in moments for value in state.values())
        seen[f"{name}.weights"] = nbytes(weights)
    average = nbytes(trainer.averages["student"].state_dict().values())

    found = estimate(pipeline, STAGE, text_length=5).roles
    for name in ("student", "discriminator"):
        assert found[name].weights == found[name].gradients == seen[f"{name}.weights"]
        assert found[name].optimizer == seen[name]
    assert (found["student"].average, found["discriminator"].average) == (average, 0)
    assert found["teacher"].weights == found["student"].weights
    assert "teacher's copy" not in found, "it is the pipeline's own network"
    assert found["vae"].parameters == sum(p.numel() for p in pipeline.diffusers.vae.parameters())


def test_a_loss_on_a_network_from_a_file_is_counted(pipeline):
    trainer = TrainerConfig(steps=1, batch_size=3, optimizers={"student": ROLES["student"]})
    spec = {"latent_lpips": {"weights": "toy", "augment": "bg"}}
    found = []
    for reconstruction in ({"smooth_l1": 1.0}, spec):
        config = LADDConfig(adversarial_weight=0.0, reconstruction=reconstruction)
        found.append(Counts(pipeline, 5).flops(Stage("ladd", trainer, config)))
    loss, x = LatentLPIPSLoss(weights="toy"), torch.randn(3, *pipeline.latent_shape)
    with FlopCounterMode(display=False) as counter:
        loss(x.clone().requires_grad_(), x + 1).backward()
    assert found[1] - found[0] == counter.get_total_flops() > 0


def test_the_largest_batch_is_the_last_that_fits(switched):
    memory = switched["as it is"]
    capacity = 2 * memory.peak()
    largest = memory.largest_batch(capacity)
    assert memory.peak(largest) <= capacity < memory.peak(largest + 1)
    assert memory.largest_batch(memory.resident) == 0
    assert memory.peak() == memory.peak(3)


def test_the_peak_is_the_worst_moment_of_a_turn():
    """Gradients 10 and 7; kept 1 + 2 B and 3 B, blocks 4 and none. Of weights and moments there are 100 bytes."""
    roles = {
        "student": RoleMemory(0, 0, 100, gradients=10),
        "discriminator": RoleMemory(0, 0, 0, gradients=7),
    }
    student = Backward("student", Line(1, 2), Line(4, 0))
    discriminator = Backward("discriminator", Line(0, 3), Line(0, 0))
    both = {("student", "discriminator"): (student, discriminator)}
    shared = Memory(roles, both, batch_size=2, accumulates=False)
    assert shared.peak() == 100 + 10 + 7, "the second's gradients on the first's"
    assert shared.peak(6) == 100 + 10 + 3 * 6, "its activations on the first's gradients"
    turns = {("student",): (student,), ("discriminator",): (discriminator,)}
    alternating = Memory(roles, turns, batch_size=2, accumulates=False)
    assert alternating.peak() == 100 + 10 + 4, "a recomputed block on all of the gradients"
    assert alternating.peak(8) == 100 + 24, "each learns alone"
    kept = Memory(roles, both, batch_size=2, accumulates=True)
    assert kept.peak() == 100 + 10 + 7 + (1 + 2 * 2 + 4), (
        "from one micro-batch to the next all stay"
    )


def test_each_switch_lowers_what_it_should(switched):
    plain = switched["as it is"]
    assert all(m.peak() < plain.peak() for name, m in switched.items() if name != "as it is")
    assert switched["gradient checkpointing"].resident == plain.resident
    turn = ("student", "discriminator")
    (stored, _), (recomputed, _) = (
        switched[name].turns[turn] for name in ("as it is", "gradient checkpointing")
    )
    assert stored.block == (0, 0)
    assert recomputed.kept.each + recomputed.block.each < stored.kept.each
    student = switched["8-bit AdamW"].roles["student"]
    assert student.optimizer < plain.roles["student"].optimizer
    assert switched["CPU offload"].roles["student"].optimizer == 0
    bf16 = switched["bf16"].roles
    assert bf16["teacher's copy"].weights * 2 == bf16["teacher"].weights


def test_a_lora_student_holds_its_adapters_alone(pipeline):
    """Rank r: r (inputs + outputs) for each adapted layer."""
    rank = 2
    adapted = [
        module
        for name, module in copy.deepcopy(pipeline.denoiser.module).named_modules()
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    ]
    expected = sum(rank * (m.in_features + m.out_features) for m in adapted)
    student = estimate(pipeline, replace(STAGE, lora=LoRAConfig(rank)), text_length=5).roles[
        "student"
    ]
    assert student.trained == expected > 0
    assert student.weights == student.gradients == student.average == 4 * expected


def test_moments_in_8_bits(pipeline):
    """A byte and 4/256 of one for each of the two moments; small tensors stay in float32."""
    shapes = [p.numel() for p in pipeline.denoiser.module.parameters()]
    large = [n for n in shapes if n >= 4096]
    expected = sum(2 * (n + 4 * -(-n // 256)) for n in large)
    expected += sum(8 * n for n in shapes if n < 4096)
    small = {name: replace(config, eight_bit=True) for name, config in ROLES.items()}
    stage = replace(STAGE, trainer=replace(STAGE.trainer, optimizers=small))
    found = estimate(pipeline, stage, text_length=5).roles["student"]
    assert large
    assert found.optimizer == expected


def test_turns_of_their_own_are_counted_apart(pipeline):
    """Of the steps that the stage has: the two of the warm-up alone know no discriminator."""
    config = replace(METHOD, updates="alternating", warmup_steps=2)
    stage = replace(STAGE, settings=config)
    assert set(estimate(pipeline, stage, text_length=5).turns) == {("student",)}
    longer = replace(stage, trainer=replace(STAGE.trainer, steps=6))
    turns = estimate(pipeline, longer, text_length=5).turns
    assert set(turns) == {("student",), ("discriminator",)}
    (student,), (discriminator,) = turns["student",], turns["discriminator",]
    assert discriminator.kept.each < student.kept.each


def test_what_the_recipe_has_already_is_counted_and_not_offered(pipeline, switched, monkeypatch):
    """Each setting in the recipe is what its switch promised, and leaves the list."""
    small = {name: replace(config, eight_bit=True) for name, config in ROLES.items()}
    for switch, stage in {
        "8-bit AdamW": replace(STAGE, trainer=replace(STAGE.trainer, optimizers=small)),
        "CPU offload": replace(
            STAGE, trainer=replace(STAGE.trainer, parallel="fsdp", cpu_offload=True)
        ),
        "LoRA student, rank 2": replace(STAGE, lora=LoRAConfig(2)),
    }.items():
        assert estimate(pipeline, stage, text_length=5) == switched[switch]
        assert not any("_lora" in name for name, _ in pipeline.denoiser.module.named_parameters())
        with monkeypatch.context() as patch:  # what is offered; the counts are those from above
            patch.setattr("nitrodistill.training.estimate.Counts.memory", lambda *_: switched)
            assert switch not in what_helps(Counts(pipeline, 5), stage, lora_rank=2)


def test_what_goes_with_the_recipe_alone_is_offered(pipeline, monkeypatch):
    """FSDP2 goes with neither fp16 nor the gradients of single terms, which are left out of what is counted."""
    monkeypatch.setattr("nitrodistill.training.estimate.Counts.memory", lambda _, stage: stage)
    half = replace(STAGE, trainer=replace(STAGE.trainer, mixed_precision="fp16"))
    found = what_helps(Counts(pipeline, 5), half, lora_rank=2)
    assert "CPU offload" not in found
    assert found["checkpointing, fp16, 8 bits"].trainer.mixed_precision == "fp16"
    terms = replace(STAGE, trainer=replace(STAGE.trainer, term_gradients_every=2))
    assert "CPU offload" in what_helps(Counts(pipeline, 5), terms, lora_rank=2)


def with_all_but_lora(stage: Stage) -> Stage:
    """So that little else is left to offer."""
    small = {name: replace(one, eight_bit=True) for name, one in stage.trainer.optimizers.items()}
    trainer = replace(stage.trainer, steps=1, gradient_checkpointing=True, optimizers=small)
    return replace(stage, trainer=replace(trainer, mixed_precision="bf16"))


@pytest.mark.parametrize(("recipe", "adapts"), [("flow-map-toy", False), ("progressive-toy", True)])
def test_what_a_method_refuses_is_not_offered(recipe, adapts):
    """A flow map tells its student the interval by a weight that a LoRA role lacks."""
    stage = with_all_but_lora(load_recipe(RECIPES / f"{recipe}.yaml").stages[0])
    found = what_helps(Counts(teacher_shapes("toy"), 5), stage, lora_rank=2)
    assert {"as it is", "CPU offload", "checkpointing, bf16, 8 bits"} <= found.keys()
    assert any("LoRA" in name for name in found) == adapts


def test_the_student_of_a_pruned_stage_is_counted_without_its_blocks(pipeline):
    """And a stage that prunes is offered no LoRA, with which it does not go."""
    keep = {"down_blocks.1.attentions": ()}
    first = replace(STAGE, prune={"keep": keep})
    second = replace(STAGE, student="previous")
    small = sum(p.numel() for p in prune(pipeline.denoiser.network, PruneSpec(keep)).parameters())
    whole = sum(p.numel() for p in pipeline.denoiser.network.parameters())
    roles = estimate(pipeline, second, text_length=5, earlier=[first]).roles
    assert (roles["student"].parameters, roles["teacher"].parameters) == (small, whole)
    assert small < whole
    offered = what_helps(Counts(pipeline, 5), with_all_but_lora(first), lora_rank=2)
    assert not any("LoRA" in name for name in offered)


def test_a_lora_student_in_bf16_shares_the_backbones_copy(pipeline, switched):
    half = replace(
        STAGE, trainer=replace(STAGE.trainer, mixed_precision="bf16"), lora=LoRAConfig(2)
    )
    roles = estimate(pipeline, half, text_length=5).roles
    assert roles["teacher's copy"].weights * 2 == roles["teacher"].weights
    full = switched["LoRA student, rank 2"].roles
    assert roles["student"] == full["student"], "the role itself stays in float32"


def test_a_teacher_loaded_in_the_precision_that_trains_is_counted_once(pipeline):
    half = replace(STAGE, trainer=replace(STAGE.trainer, mixed_precision="bf16"))
    whole = estimate(pipeline, half, text_length=5)
    pipeline.denoiser.module.to(torch.bfloat16)
    found = estimate(pipeline, half, text_length=5)
    assert "teacher's copy" not in found.roles
    assert 2 * found.roles["teacher"].weights == whole.roles["teacher"].weights
    assert found.roles["student"] == whole.roles["student"], "it is float32"
    assert whole.peak() - found.peak() == whole.roles["teacher"].weights


def test_text_encoders_that_wait_on_the_cpu_come_while_nothing_is_trained(pipeline):
    here = estimate(pipeline, STAGE, text_length=5)
    pipeline.offload_text = True
    away = estimate(pipeline, STAGE, text_length=5)
    size = here.roles["text_encoder"].weights
    assert here.peak() - away.peak() == size == away.encoders
    assert away.roles["text_encoder"].weights == here.encoders == 0
    assert replace(away, encoders=2**40).peak() == away.resident + 2**40
    prompts = Stage(
        "dmd2",
        TrainerConfig(1, optimizers={"student": ROLES["student"], "critic": OptimizerConfig()}),
    )
    reads = estimate(pipeline, prompts, text_length=5)
    assert reads.roles["text_encoder"].weights == size, "each micro-batch's prompts are encoded"


def test_a_pass_without_gradients_stands_for_those_of_the_same_shapes():
    """What gradients need, and what a tap looks into, is run each time."""
    network, calls = torch.nn.Sequential(torch.nn.Linear(3, 2, device="meta")), []
    forward = network.forward
    network.forward = lambda x: calls.append(x.shape) or forward(x)
    run = _Runs(network, lower=False)
    small, large = (torch.empty(size, 3, device="meta") for size in (1, 4))
    with torch.no_grad():
        first, again, other = run(small), run(small), run(large)
        assert [len(shape) for shape in calls] == [2, 2]
        handle = network[0].register_forward_hook(lambda *_: None)
        run(small)
        handle.remove()
    assert (first.shape, again.shape, other.shape) == ((1, 2), (1, 2), (4, 2))
    assert again is not first, "a memory of its own, which is counted"
    assert run(small).requires_grad
    assert len(calls) == 4
