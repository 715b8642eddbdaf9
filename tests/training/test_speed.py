from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nitrodistill.method import Cast, Draws
from nitrodistill.methods import LADD, LADDConfig
from nitrodistill.models import Pipeline
from nitrodistill.training import OptimizerConfig, TrainerConfig
from nitrodistill.training.estimate import Counts
from nitrodistill.training.recipe import Stage
from nitrodistill.training.speed import GPUS, UTILISATION, stage_seconds
from nitrodistill.types import Batch, Pairs

SETTINGS = LADDConfig(taps=("down_blocks.0", "mid_block"), updates="alternating")
TRAINER = TrainerConfig(
    steps=6,
    batch_size=4,
    optimizers={"student": OptimizerConfig(), "discriminator": OptimizerConfig()},
)
STAGE = Stage("ladd", TRAINER, SETTINGS)


@pytest.fixture
def pipeline(tiny_diffusers, tiny_scheduler) -> Pipeline:
    return Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))


def test_operations_are_those_of_real_losses_and_backward_passes(pipeline):
    """Counted once more, on tensors that hold numbers; every kind of step."""
    teacher = pipeline.denoiser
    teacher.module.requires_grad_(False)
    method = LADD.build(SETTINGS, Cast.of(teacher, teacher.copy()))
    for entry in method.frozen().values():
        entry.module.requires_grad_(False)
    index = torch.arange(4)
    noise = Draws(0, 0, index).normal("noise", pipeline.latent_shape)
    text = teacher.adapter.example_condition(noise[:1], 5).index([0] * 4)
    batch = Batch(index, Pairs(noise, noise, text))
    with FlopCounterMode(display=False) as counter:
        for step in range(TRAINER.steps):
            for _, terms in method.losses(batch, method.active(step), Draws(0, step, index)):
                terms.total.backward()
    counts = Counts(pipeline, text_length=5)
    counted = counts.flops(STAGE)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)
    more = replace(TRAINER, steps=12, batch_size=8, accumulation=3)
    longer = Counts(pipeline, text_length=5).flops(replace(STAGE, trainer=more))
    assert longer == pytest.approx(12 * counted)
    again = replace(STAGE, trainer=replace(TRAINER, gradient_checkpointing=True))
    assert 1.1 < counts.flops(again) / counted < 1.34


def test_a_peak_is_shared_out_by_the_utilisation():
    gpu = GPUS["A100"]
    assert gpu.seconds(312e12, half=True) == pytest.approx(1 / UTILISATION)
    assert gpu.seconds(19.5e12, half=False) == pytest.approx(1 / UTILISATION)


def test_real_steps_of_each_kind_count_as_often_as_they_come(pipeline, monkeypatch):
    """Steps of the student alone take 1 s and the others 3 s here; each kind's first is slow."""
    from nitrodistill.training import Trainer

    step, seen = Trainer._train_step, []

    def timed(self, stream):
        state = step(self, stream)
        seconds = 3.0 if "discriminator" in state.active else 1.0
        seen.append(state.step)
        return replace(state, seconds=seconds if seen.count(state.step) else 100.0)

    monkeypatch.setattr(Trainer, "_train_step", timed)
    stage = replace(STAGE, settings=replace(SETTINGS, updates="shared", warmup_steps=4))
    seconds, count = stage_seconds(pipeline, stage, text_length=5, patience=0.0)
    assert count == 4, "two of each kind"
    assert seconds == pytest.approx(4 * 1.0 + 2 * 3.0)


def test_a_student_of_an_earlier_stage_is_not_there_to_measure(pipeline):
    with pytest.raises(ValueError, match="not trained yet; measure stage 0"):
        stage_seconds(pipeline, replace(STAGE, student="previous"), text_length=5)
