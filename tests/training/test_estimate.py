from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from nitrodistill.method import Draws
from nitrodistill.methods import LADD, LADDConfig
from nitrodistill.models import LoRAConfig, Pipeline
from nitrodistill.training import OptimizerConfig, Trainer, TrainerConfig
from nitrodistill.training.estimate import estimate, what_helps
from nitrodistill.training.recipe import Stage
from nitrodistill.types import Batch

METHOD = LADDConfig(taps=("down_blocks.0", "mid_block"), updates="shared")
ROLES = {name: OptimizerConfig() for name in ("student", "discriminator")}
STAGE = Stage(METHOD, TrainerConfig(steps=2, batch_size=3, optimizers=ROLES))


@pytest.fixture
def pipeline(tiny_diffusers, tiny_scheduler) -> Pipeline:
    return Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))


def nbytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_weights_gradients_moments_and_average_are_those_of_a_real_run(pipeline):
    teacher = pipeline.denoiser
    method = LADD.from_config(METHOD, teacher, teacher.copy())
    seen: dict[str, int] = {}

    def stream(number: int) -> Batch:
        index = torch.arange(3 * number, 3 * number + 3)
        noise = Draws(0, 0, index).normal("noise", pipeline.latent_shape)
        text = teacher.adapter.example_condition(noise[:1], 5)
        return Batch(index, noise, noise, text.index([0, 0, 0]))

    trainer = Trainer(method, stream, STAGE.trainer)
    for _ in trainer.fit():
        pass
    for name, role in method.trainable().items():
        weights = [p for p in role.module.parameters() if p.requires_grad]
        moments = trainer._trained[name].optimizer.state.values()
        seen[name] = nbytes(value for state in moments for value in state.values())
        seen[f"{name}.weights"] = nbytes(weights)
    assert trainer.ema is not None
    average = nbytes(trainer.ema.state_dict().values())

    found = estimate(pipeline, STAGE, text_length=5).roles
    for name in ("student", "discriminator"):
        assert found[name].weights == found[name].gradients == seen[f"{name}.weights"]
        assert found[name].optimizer == seen[name]
    assert (found["student"].average, found["discriminator"].average) == (average, 0)
    assert found["teacher"].weights == found["student"].weights
    assert found["vae"].parameters == sum(p.numel() for p in pipeline.diffusers.vae.parameters())


def test_the_largest_batch_is_the_last_that_fits(pipeline):
    memory = estimate(pipeline, STAGE, text_length=5)
    capacity = 2 * memory.peak()
    largest = memory.largest_batch(capacity)
    assert memory.peak(largest) <= capacity < memory.peak(largest + 1)
    assert memory.largest_batch(memory.resident) == 0
    assert memory.peak() == memory.peak(3)


def test_gradients_that_stay_add_to_the_activations(pipeline):
    longer = replace(STAGE, trainer=replace(STAGE.trainer, accumulation=2))
    once, twice = (estimate(pipeline, stage, text_length=5) for stage in (STAGE, longer))
    gradients = sum(role.gradients for role in once.roles.values())
    ((fixed, each),) = (once.activations[turn] for turn in ("student and discriminator",))
    assert once.peak() == once.resident + max(gradients, fixed + 3 * each)
    assert twice.peak() == twice.resident + gradients + fixed + 3 * each


def test_each_switch_lowers_what_it_should(pipeline):
    found = what_helps(pipeline, STAGE, text_length=5, lora_rank=2)
    plain = found["as it is"]
    assert all(memory.peak() < plain.peak() for name, memory in found.items() if name != "as it is")
    assert found["gradient checkpointing"].resident == plain.resident
    turn = "student and discriminator"
    assert found["gradient checkpointing"].activations[turn][1] < plain.activations[turn][1]
    student = found["8-bit AdamW"].roles["student"]
    assert student.optimizer < plain.roles["student"].optimizer
    assert found["CPU offload"].roles["student"].optimizer == 0
    bf16 = found["bf16"].roles
    assert bf16["backbone"].weights * 2 == bf16["teacher"].weights


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
    config = replace(METHOD, updates="alternating", warmup_steps=2)
    memory = estimate(pipeline, replace(STAGE, method=config), text_length=5)
    assert set(memory.activations) == {"student", "discriminator"}
    assert memory.activations["discriminator"][1] < memory.activations["student"][1]


def test_what_the_recipe_has_already_is_counted_and_not_offered(pipeline):
    """Each setting in the recipe is what its switch promised, and leaves the list."""
    switched = what_helps(pipeline, STAGE, text_length=5, lora_rank=2)
    small = {name: replace(config, eight_bit=True) for name, config in ROLES.items()}
    for switch, stage in {
        "8-bit AdamW": replace(STAGE, trainer=replace(STAGE.trainer, optimizers=small)),
        "CPU offload": replace(
            STAGE, trainer=replace(STAGE.trainer, parallel="fsdp", cpu_offload=True)
        ),
        "LoRA student, rank 2": replace(STAGE, lora=LoRAConfig(2)),
    }.items():
        found = what_helps(pipeline, stage, text_length=5, lora_rank=2)
        assert found["as it is"] == switched[switch]
        assert switch not in found
        assert not any("_lora" in name for name, _ in pipeline.denoiser.module.named_parameters())


def test_a_lora_student_in_bf16_shares_the_backbones_copy(pipeline):
    half = replace(
        STAGE, trainer=replace(STAGE.trainer, mixed_precision="bf16"), lora=LoRAConfig(2)
    )
    roles = estimate(pipeline, half, text_length=5).roles
    full = estimate(pipeline, replace(STAGE, lora=LoRAConfig(2)), text_length=5).roles
    assert roles["backbone"].weights * 2 == roles["teacher"].weights
    assert roles["student"] == full["student"], "the role itself stays in float32"
