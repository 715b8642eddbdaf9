"""A teacher that the processes share out gives what the whole one gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.fsdp import FSDPModule

from nitrodistill.losses import LatentLPIPSLoss, Loss, WeightedSum
from nitrodistill.method import Cast, Frozen
from nitrodistill.methods import LADD, LADDConfig
from nitrodistill.models import LoRAConfig, Pipeline
from nitrodistill.models.denoiser import frozen
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.models.taps import FeatureTaps
from nitrodistill.sampling import StepPlan
from nitrodistill.training import (
    OptimizerConfig,
    Stage,
    Trainer,
    TrainerConfig,
    load_student,
    make_accelerator,
    run_recipe,
)
from nitrodistill.training.networks import check_cast, place_frozen, stage_cast
from nitrodistill.training.parallel import local, prepare_frozen
from nitrodistill.training.roles import checkpoint_gradients
from tests.training.matching import Matching, MatchingConfig

# a container, a shared-out unit, and a module inside of one: the pass is left in the middle of it
TAPS = (
    "down_blocks.0",
    "mid_block.resnets.0",
    "up_blocks.0.attentions.0.transformer_blocks.0.attn1",
)


def _features_and_gradients(denoiser, condition) -> list[np.ndarray]:
    """Two backward passes, each through two forward passes with one more between that keeps no graph."""
    draws = torch.Generator().manual_seed(0)
    found = []
    for taps in (TAPS, TAPS[:1], TAPS):
        reader = FeatureTaps(denoiser, taps)
        one, two = (torch.randn(3, 4, 8, 8, generator=draws, requires_grad=True) for _ in range(2))
        features = [
            *reader.features(one, torch.tensor(300), condition),
            *reader.features(two, torch.tensor(700), condition),
        ]
        with torch.no_grad():
            found.append(denoiser(two, torch.tensor(500), condition))
        torch.stack([value.square().mean() for value in features]).sum().backward()
        found += [*features, one.grad, two.grad]
    return [value.detach().numpy() for value in found]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_features_and_gradients_through_a_shared_out_network(
    tiny, tiny_denoiser, tiny_condition, checkpointed
):
    network = frozen(tiny_denoiser.module)
    total = sum(p.numel() for p in network.parameters())
    expected = _features_and_gradients(tiny_denoiser, tiny_condition)

    def act(rank, world):
        if checkpointed:
            checkpoint_gradients(network)
        prepare_frozen(network, make_accelerator(), "fsdp", TAPS)
        assert sum(isinstance(part, FSDPModule) for part in network.modules()) > 5
        found = _features_and_gradients(tiny_denoiser, tiny_condition)
        return found, sum(local(p).numel() for p in network.parameters())

    both = tiny.in_processes(act)
    assert sum(held for _, held in both) == total
    assert max(held for _, held in both) < 0.6 * total
    for found, _ in both:
        for value, known in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, known, rtol=0, atol=1e-6)


@pytest.fixture
def pipeline(tiny_diffusers, tiny_scheduler):
    return Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))


def test_a_recipe_shares_its_teacher_out_and_gives_it_back(tiny, make_recipe, pipeline, tmp_path):
    """Trained, drawn and measured with it, in two processes: as one process with the whole."""
    own = pipeline.denoiser
    total = sum(p.numel() for p in own.module.parameters())
    known = fingerprint(own.module)
    method = LADDConfig(updates="shared", fresh_fraction=0.5)
    recipe = make_recipe(method, steps=2, preview_every=2, evaluate_every=2)
    # a large eps: where a gradient is 0 but for rounding, AdamW's quotient would be noise
    optimizers = {
        "student": OptimizerConfig(1e-2, eps=1e-2, ema_decay=0.5),
        "discriminator": OptimizerConfig(1e-2, eps=1e-2),
    }
    recipe = tiny.changed(recipe, optimizers=optimizers)
    held: list[int] = []

    def evaluate(student, plan):
        networks = (pipeline.denoiser.module, pipeline.diffusers.unet, student.module)
        assert fingerprint(pipeline.denoiser.module) == known, "of the whole"
        held[:] = [sum(local(p).numel() for p in network.parameters()) for network in networks]
        return {"x": 0.0}

    def act(rank, world):
        shared = tiny.changed(recipe, tmp_path / "shared", parallel="fsdp")
        list(run_recipe(shared, pipeline, evaluate=evaluate))
        assert pipeline.denoiser is own
        assert pipeline.diffusers.unet is own.module
        return held

    one, other = tiny.in_processes(act)
    assert [a + b for a, b in zip(one, other, strict=True)] == [total] * 3
    assert max(*one, *other) < 0.6 * total
    list(run_recipe(recipe, pipeline, evaluate=evaluate))
    assert held == [total] * 3
    alone, shared = (
        tiny.weights(load_student(tmp_path / run, pipeline).denoiser.module)
        for run in ("run", "shared")
    )
    torch.testing.assert_close(shared, alone, rtol=0, atol=1e-6)
    previews = [
        np.asarray(Image.open(tmp_path / run / "previews" / "stage-0-step-00000002.png"), int)
        for run in ("run", "shared")
    ]
    assert np.abs(previews[0] - previews[1]).max() <= 1, "a rounding, of 255"


def test_stages_change_how_they_share_and_a_mistake_gives_the_teacher_back(
    tiny, make_recipe, pipeline
):
    own = pipeline.denoiser
    recipe = make_recipe(LADDConfig(updates="shared"), steps=1, mixed_precision="bf16")
    (plain,) = recipe.stages
    (sharded,) = tiny.changed(recipe, parallel="fsdp", gradient_checkpointing=True).stages
    kinds: list[tuple[bool, torch.dtype]] = []

    def act(rank, world):
        wrong = dataclasses.replace(sharded, settings=LADDConfig(taps=("mid_blok",)))
        with pytest.raises(ValueError, match="no submodule 'mid_blok'"):
            run_recipe(dataclasses.replace(recipe, stages=[sharded, wrong]), pipeline)
        assert pipeline.denoiser is own
        stages = [sharded, dataclasses.replace(plain, student="previous")]
        for _ in run_recipe(dataclasses.replace(recipe, stages=stages), pipeline):
            network = pipeline.denoiser.module
            kinds.append((isinstance(network, FSDPModule), next(network.parameters()).dtype))
        return kinds

    assert tiny.in_processes(act) == [[(True, torch.float32), (False, torch.float32)]] * 2


class Careless(Matching):
    """Leaves out what `_left` names."""

    _left: str = ""

    @classmethod
    def build(cls, config, cast):
        return cls(config, cast)

    def trainable(self):
        return {n: r for n, r in super().trainable().items() if n != self._left}

    def frozen(self):
        found = {n: f for n, f in super().frozen().items() if n != self._left}
        return found | {"critic": Frozen(self.critic.module)} if self._left == "twice" else found


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ("critic", r"Careless took 'critic' from its cast, but neither trains nor freezes it"),
        ("target", r"Careless took 'target' from its cast, but neither trains nor freezes it"),
        ("teacher", r"Careless took 'teacher' from its cast, but neither trains nor freezes it"),
        ("plan", r"Careless has no plan; a StepPlan says how its student samples"),
        ("twice", r"Careless names 'critic' in trainable\(\) and in frozen\(\); choose one"),
    ],
)
def test_a_method_must_train_or_freeze_all_that_it_took(tiny_denoiser, left, words):
    copies = {n: tiny_denoiser.copy() for n in ("teacher", "student", "critic", "target")}
    cast = Cast(copies.__getitem__)
    method = Careless.build(MatchingConfig(), cast)
    check_cast(method, cast)
    method._left = left
    if left == "plan":
        del method.plan
    with pytest.raises(ValueError, match=words) as caught:
        check_cast(method, cast)
    assert "\n" not in str(caught.value)


def test_a_network_that_follows_what_is_not_trained_is_named(tiny, tiny_denoiser):
    class Lost(Careless):
        def frozen(self):
            return {**super().frozen(), "target": Frozen(self.target.module, follows="studnt")}

    copies = {n: tiny_denoiser.copy() for n in ("teacher", "student", "critic", "target")}
    method = Lost.build(MatchingConfig(), Cast(copies.__getitem__))
    config = tiny.config(optimizers={n: OptimizerConfig() for n in method.trainable()})
    with pytest.raises(
        ValueError, match=r"'target' follows 'studnt', which is not trained; did you mean"
    ):
        Trainer(method, tiny.Stream(4), config)


def test_a_placed_loss_augments_and_the_networks_in_it_are_in_eval_mode(tiny_denoiser):
    class Dropping(Loss):
        def __init__(self):
            super().__init__()
            self.network = torch.nn.Dropout(0.5)

        def per_sample(self, pred, target, mask=None):
            return self.network(pred - target).flatten(1).mean(1)

    augmenting, still = (LatentLPIPSLoss(weights="toy", augment="bg") for _ in range(2))
    losses = {"one": (1.0, augmenting), "two": (1.0, still.eval()), "three": (1.0, Dropping())}
    config = LADDConfig(adversarial_weight=0.0)
    plan = StepPlan.from_schedule(tiny_denoiser.schedule)
    student = tiny_denoiser.copy()
    method = LADD(student, None, plan, config, reconstruction=WeightedSum(losses))
    place_frozen(method, make_accelerator(cpu=True), Stage("ladd", TrainerConfig()))
    modes = {kind: part.training for kind, (_, part) in losses.items()}
    assert modes == {"one": True, "two": False, "three": True}
    assert not any(part.training for part in (augmenting.trunk, losses["three"][1].network))


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)])
def test_a_stages_cast(pipeline, lora):
    """The teacher is frozen; student and others are float32, trainable, of their own; each is made once."""
    stage = Stage("ladd", TrainerConfig(), lora=lora)
    own = pipeline.denoiser
    empty = pipeline.null_condition()
    cast = stage_cast(stage, lambda: own, own, empty, pipeline)
    assert cast.taken == {}
    assert cast.empty is empty
    student, critic = cast.student, cast.another("critic")
    assert cast.another("critic") is critic
    assert list(cast.taken) == ["student", "critic"]
    learned = [{id(p) for p in d.module.parameters() if p.requires_grad} for d in (student, critic)]
    assert all(learned)
    assert not learned[0] & learned[1]
    assert {p.dtype for d in (student, critic) for p in d.module.parameters()} == {torch.float32}
    assert cast.teacher is own
    shared = [d.network is own.network for d in (student, critic)]
    assert shared == [lora is not None] * 2
    for name in ("student", "teacher"):
        with pytest.raises(ValueError, match=rf"write cast\.{name} instead"):
            cast.another(name)
