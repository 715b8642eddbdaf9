"""Two processes that meet through gloo: every trained role changes, agrees, and equals the single-process run."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from nitrodistill.method import Cast, DistillationMethod, Draws
from nitrodistill.methods import (
    DMD2,
    LADD,
    DMD2Config,
    FeatureKD,
    FeatureKDConfig,
    LADDConfig,
    find_method,
)
from nitrodistill.methods.dmd2 import CriticConfig, DecoupledConfig, GANConfig, RegressionConfig
from nitrodistill.models import DiffusersDenoiser, PruneSpec, prune
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.training import (
    OptimizerConfig,
    Stage,
    Trainer,
    TrainerConfig,
    find_checkpoints,
    make_accelerator,
    place_frozen,
)
from nitrodistill.training.parallel import check_launch, gather_text, local, on_main, whole
from nitrodistill.types import Batch, Condition, Pairs
from tests.training.matching import Matching, MatchingConfig

TAPS = ("conv_in", "mid_block")
MATCHING = "tests.training.matching:Matching"
KINDS = {"ddp": DistributedDataParallel, "fsdp": FSDPModule}


class Case(NamedTuple):
    """A method, made anew in each process, and what it trains on."""

    make: Callable[[], DistillationMethod]
    stream: Callable[[int, int, int], Callable[[int], Batch]]
    config: TrainerConfig


class LatentStream:
    """Latents for the tiny UNet; every sample but each third has a prompt of its own."""

    def __init__(self, batch_size: int, rank: int, world: int) -> None:
        self.batch_size, self.rank, self.world = batch_size, rank, world

    def __call__(self, number: int) -> Batch:
        size = self.batch_size // self.world
        start = number * self.batch_size + self.rank * size
        index = torch.arange(start, start + size)
        draws = Draws(5, 0, index)
        condition = Condition(
            {"encoder_hidden_states": draws.normal("text", (5, 16))},
            index - (index % 3 == 2).long(),
        )
        x0, noise = (draws.normal(name, (4, 8, 8)) for name in ("x0", "eps"))
        return Batch(index, Pairs(x0, noise, condition))


def _ladd(denoiser, batch_size: int = 4, heads_rate: float = 1e-2, **settings) -> Case:
    # a large eps: where a gradient is 0 but for rounding, AdamW's quotient would be noise
    optimizers = {
        "student": OptimizerConfig(1e-2, eps=1e-2, ema_decay=0.5),
        "discriminator": OptimizerConfig(heads_rate, eps=1e-2),
    }
    config = TrainerConfig(steps=3, batch_size=batch_size, optimizers=optimizers)
    method = LADDConfig(taps=TAPS, head_width=8, **settings)
    return Case(
        lambda: LADD.build(method, Cast.of(denoiser, denoiser.copy())), LatentStream, config
    )


class PromptStream(LatentStream):
    """The prompts of those, alone."""

    def __call__(self, number: int) -> Batch:
        batch = super().__call__(number)
        assert batch.pairs is not None
        return Batch(batch.index, prompts=batch.pairs.condition)


def _matching(denoiser) -> Case:
    """Three roles on whole networks, a frozen teacher, and a target that follows the student."""
    optimizers = {
        "student": OptimizerConfig(1e-2, eps=1e-2, ema_decay=0.5),
        "critic": OptimizerConfig(2e-2, eps=1e-2),
        "heads": OptimizerConfig(1e-2, eps=1e-2, ema_decay=0.9),
    }
    config = TrainerConfig(steps=4, batch_size=4, optimizers=optimizers)

    def make() -> Matching:
        copies = {n: denoiser.copy() for n in ("teacher", "student", "critic", "target")}
        return Matching.build(MatchingConfig(), Cast(copies.__getitem__))

    return Case(make, PromptStream, config)


def _dmd2(denoiser, **settings: Any) -> Case:
    optimizers = {
        "student": OptimizerConfig(1e-2, eps=1e-2, ema_decay=0.5),
        "critic": OptimizerConfig(2e-2, eps=1e-2),
        "discriminator": OptimizerConfig(1e-2, eps=1e-2),
    }
    config = TrainerConfig(steps=3, batch_size=4, optimizers=optimizers)
    method = DMD2Config(conditions="pairs", num_inference_steps=2, **settings)
    empty = denoiser.adapter.example_condition(torch.zeros(1), 2)

    def make() -> DMD2:
        copies = {n: denoiser.copy() for n in ("teacher", "student", "critic")}
        return DMD2.build(method, Cast(copies.__getitem__, empty))

    return Case(make, LatentStream, config)


def _dmd2_shared(denoiser) -> Case:
    """Heads on the critic's features, augmented regression on a quarter of the rows, two steps, a pull."""
    losses = {"smooth_l1": 1.0, "latent_lpips": {"weights": "toy", "augment": "bg"}}
    return _dmd2(
        denoiser,
        critic=CriticConfig(updates=2, follow=0.9),
        gan=GANConfig(0.1, real="pairs", taps=("mid_block",), head_width=8),
        regression=RegressionConfig(losses, share=0.25),
    )


def _dmd2_alternating(denoiser) -> Case:
    """Heads on the teacher's features, guidance apart, one step or two as it is drawn, in turns."""
    gan = GANConfig(0.1, real="pairs", features="teacher", taps=("mid_block",), head_width=8)
    return _dmd2(
        denoiser,
        updates="alternating",
        critic=CriticConfig(updates=1),
        gan=gan,
        guidance=2.0,
        decoupled=DecoupledConfig(),
        step_range=(1, 2),
        transition="ode",
    )


def _few_steps(denoiser, name: str, **settings: Any) -> Case:
    """A method with one role, by name: a teacher, perhaps guided, and perhaps a target that follows."""
    kind = find_method(name)
    optimizers = {"student": OptimizerConfig(1e-2, eps=1e-2, ema_decay=0.5)}
    config = TrainerConfig(steps=2, batch_size=4, optimizers=optimizers)
    empty = denoiser.adapter.example_condition(torch.zeros(1), 2)

    def make() -> DistillationMethod:
        copies = {n: denoiser.copy() for n in ("teacher", "student", "target")}
        method = kind.build(kind.Config(**settings), Cast(copies.__getitem__, empty))
        for (
            network
        ) in copies.values():  # else the input's weights begin at 0, and so does their gradient
            for path, weight in network.module.named_parameters():
                if path.endswith("cond_proj.weight"):
                    weight.data.fill_(0.01)
        for entry in method.frozen().values():
            entry.module.requires_grad_(False)
        return method

    return Case(make, LatentStream, config)


def _pruned(denoiser) -> Case:
    """A student without its mid block, distilled by its features."""
    optimizers = {"student": OptimizerConfig(1e-2, eps=1e-2, ema_decay=0.5)}
    config = TrainerConfig(steps=2, batch_size=4, optimizers=optimizers)
    settings = FeatureKDConfig(data="pairs", features=(("down_blocks.0", "down_blocks.0"),))

    def make() -> DistillationMethod:
        student = prune(denoiser, PruneSpec.without(denoiser.network, ["mid_block"]))
        return FeatureKD.build(settings, Cast.of(denoiser.copy(), student))

    return Case(make, LatentStream, config)


def _with_unused_weights() -> Case:
    """A whole student of Qwen-Image, whose last block's text goes nowhere."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=1,
            joint_attention_dim=8,
            axes_dims_rope=(4, 2, 2),
        )
    denoiser = DiffusersDenoiser(network, RectifiedFlow(1.0), "flow_prediction")
    text = denoiser.adapter.example_condition(torch.zeros(1), 3)

    def stream(batch_size: int, rank: int, world: int) -> Callable[[int], Batch]:
        latents = LatentStream(batch_size, rank, world)

        def read(number: int) -> Batch:
            batch = latents(number)
            assert batch.pairs is not None
            pairs = dataclasses.replace(batch.pairs, condition=text.index([0] * len(batch)))
            return dataclasses.replace(batch, pairs=pairs)

        return read

    optimizers = {"student": OptimizerConfig(1e-2, eps=1e-2, ema_decay=0.5)}
    config = TrainerConfig(steps=3, batch_size=4, optimizers=optimizers)
    method = LADDConfig(adversarial_weight=0.0)
    return Case(lambda: LADD.build(method, Cast.of(denoiser, denoiser.copy())), stream, config)


@pytest.fixture
def cases(tiny, tiny_denoiser) -> Mapping[str, Case]:
    """Every method joins here."""
    three = {n: OptimizerConfig(1e-2, ema_decay=0.5) for n in ("student", "fake_score", "critic")}
    return {
        "ladd_shared": _ladd(tiny_denoiser, updates="shared", misaligned_negatives=True),
        # 1/4 is fresh: in each micro-batch of 4, one process has no such sample, and there is no pair to misalign
        "ladd_alternating": _ladd(tiny_denoiser, fresh_fraction=0.25),
        # at this rate and these timesteps the gap is surely above 0 from the second step on, and below 1
        "ladd_balanced": _ladd(
            tiny_denoiser,
            batch_size=16,
            heads_rate=0.1,
            balanced=True,
            fresh_fraction=0.5,
            noising="shared",
            updates="shared_pass",
            discriminator_timesteps={"uniform": {"ranges": [[0.0, 0.1]]}},
        ),
        "three_roles": Case(tiny.ThreeRoles, tiny.Stream, tiny.config(optimizers=three)),
        "matching": _matching(tiny_denoiser),
        "dmd2": _dmd2_shared(tiny_denoiser),
        "dmd2_alternating": _dmd2_alternating(tiny_denoiser),
        "progressive": _few_steps(
            tiny_denoiser, "progressive", num_inference_steps=2, guidance=2.0, guidance_range=(1, 4)
        ),
        # not pseudo_huber: near 0, where the student begins, its slope makes rounding a thousand times larger
        "consistency": _few_steps(tiny_denoiser, "consistency", guidance=2.0, distance="l2"),
        "flow_map": _few_steps(tiny_denoiser, "flow_map", diagonal=0.25, robustness=0.5),
        "pruned": _pruned(tiny_denoiser),
        "unused_weights": _with_unused_weights(),
    }


def _look(trainer: Trainer) -> dict[str, np.ndarray]:
    """All trained weights of each role, the averages and the networks that follow a role, whole."""
    found: dict[str, Mapping[str, Tensor]] = {
        name: trained.weights for name, trained in trainer._trained.items()
    }
    found |= {name: average.state_dict() for name, average in trainer._averages.files().items()}
    return {
        name: torch.cat([whole(w.detach()).flatten() for w in weights.values()]).numpy()
        for name, weights in found.items()
    }


def _run(case: Case, rank: int, world: int, parallel: str = "ddp", **changes: Any) -> list[Any]:
    """Weights before and after, whether the roles were prepared, and who learned with which losses."""
    config = dataclasses.replace(case.config, parallel=parallel, **changes)
    method = case.make()
    accelerator = make_accelerator(config.mixed_precision, cpu_offload=config.cpu_offload)
    if any(entry.follows for entry in method.frozen().values()) or isinstance(method, DMD2):
        place_frozen(method, accelerator, Stage(MATCHING, config))
    trainer = Trainer(
        method, case.stream(config.batch_size, rank, world), config, accelerator=accelerator
    )
    before = _look(trainer)
    told = [(state.active, state.totals()) for state in trainer.fit()]
    kinds = [type(role.module).__mro__ for role in method.trainable().values()]
    return [before, _look(trainer), all(KINDS[parallel] in kind for kind in kinds), told]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "name",
    [
        "ladd_shared",
        "ladd_alternating",
        "ladd_balanced",
        "three_roles",
        "matching",
        "dmd2",
        "dmd2_alternating",
        "progressive",
        "consistency",
        "flow_map",
        "pruned",
        "unused_weights",
    ],
)
def test_two_processes_equal_one(cases, tiny, name, parallel):
    before, expected, *_ = _run(cases[name], 0, 1)
    found = tiny.in_processes(lambda rank, world: _run(cases[name], rank, world, parallel))
    for start, end, was_prepared, _ in found:
        assert was_prepared, f"some role is not a {KINDS[parallel].__name__}"
        for role, values in end.items():
            assert not np.array_equal(values, start[role]), f"{role} was not trained"
            np.testing.assert_array_equal(
                values, found[0][1][role], f"{role} differs over processes"
            )
            np.testing.assert_array_equal(start[role], before[role])
            atol = 1e-5 if name == "flow_map" else 1e-6  # a difference over h makes rounding larger
            np.testing.assert_allclose(values, expected[role], rtol=0, atol=atol, err_msg=role)


@pytest.mark.parametrize(
    ("name", "heads", "pause"), [("matching", "heads", 2), ("dmd2", "discriminator", 1)]
)
def test_accumulating_two_batches_of_4_equals_a_batch_of_8_in_loss_and_in_phase(
    cases, name, heads, pause
):
    """Who learns is a matter of the step, and so is what all samples of a step share: one timestep."""
    case = cases[name]
    _, expected, _, large = _run(case, 0, 1, batch_size=8)
    _, found, _, small = _run(case, 0, 1, batch_size=4, accumulation=2)
    all_three, others = ("student", "critic", heads), ("critic", heads)
    assert [active for active, _ in small] == [all_three, *[others] * pause, all_three]
    for (active, totals), (known_active, known) in zip(small, large, strict=True):
        assert active == known_active
        assert totals == pytest.approx(known, rel=1e-5)
    for role, values in found.items():
        np.testing.assert_allclose(values, expected[role], rtol=0, atol=1e-6, err_msg=role)


@pytest.mark.parametrize(
    ("name", "parallel"),
    [
        *itertools.product(["three_roles", "matching"], ["ddp", "fsdp"]),
        ("dmd2", "ddp"),  # what FSDP does with micro-batches, the others say
    ],
)
def test_accumulation_in_two_processes_equals_one_large_batch(cases, tiny, parallel, name):
    case = cases[name]
    _, expected, *_ = _run(case, 0, 1, batch_size=8)

    def act(rank, world):
        return _run(case, rank, world, parallel, batch_size=4, accumulation=2)[1]

    for found in tiny.in_processes(act):
        for role, values in found.items():
            np.testing.assert_allclose(values, expected[role], rtol=0, atol=1e-6, err_msg=role)


def test_fsdp_holds_a_part_of_weights_moments_and_averages(tiny, tiny_denoiser):
    """And it gathers a network of diffusers block by block."""
    case = _ladd(tiny_denoiser, updates="shared")

    def act(rank, world):
        config = dataclasses.replace(case.config, parallel="fsdp", steps=1)
        method = case.make()
        trainer = Trainer(method, case.stream(4, rank, world), config)
        list(trainer.fit())
        role = trainer._trained["student"]
        moments = [role.optimizer.state[w]["exp_avg"] for w in role.weights.values()]
        averages = trainer.averages["student"].state_dict().values()
        sizes = [
            sum(local(value).numel() for value in values)
            for values in (role.weights.values(), moments, averages)
        ]
        units = [part for part in role.module.modules() if isinstance(part, FSDPModule)]
        return sizes, sum(w.numel() for w in role.weights.values()), len(units)

    (first, total, units), (second, _, _) = tiny.in_processes(act)
    assert [a + b for a, b in zip(first, second, strict=True)] == [total] * 3
    assert max(first) < 0.6 * total
    assert units > 5


@pytest.mark.parametrize("save", ["ddp", "fsdp"])
@pytest.mark.parametrize("world", [1, 2])
def test_another_world_size_resumes(cases, tiny, tmp_path, save, world):
    """Saved by 2 processes (1), resumed by 1 (2); the other way of sharing out, too."""
    case, output = cases["three_roles"], tmp_path / "run"
    _, expected, *_ = _run(case, 0, 1)
    resume = {"ddp": "fsdp", "fsdp": "ddp"}[save] if world == 2 else "ddp"

    def train(rank, world, parallel, stop):
        config = dataclasses.replace(case.config, parallel=parallel, checkpoint_every=2)
        stream = case.stream(config.batch_size, rank, world)
        trainer = Trainer(case.make(), stream, config, output=output)
        start = trainer.step
        for state in trainer.fit():
            if state.step == stop:
                break
        return start, _look(trainer)

    tiny.in_processes(lambda rank, of: train(rank, of, save, 5), 3 - world)
    for start, found in tiny.in_processes(lambda rank, of: train(rank, of, resume, 99), world):
        assert start == 4
        for role, values in found.items():
            np.testing.assert_allclose(values, expected[role], rtol=0, atol=1e-6, err_msg=role)


def test_stopped_and_resumed_in_two_processes_ends_bit_equal(cases, tiny, tmp_path):
    case = cases["three_roles"]

    def train(rank, world, parallel, output, stop):
        config = dataclasses.replace(case.config, parallel=parallel, checkpoint_every=2)
        trainer = Trainer(case.make(), case.stream(4, rank, world), config, output=output)
        for state in trainer.fit():
            if state.step == stop:
                break
        return _look(trainer)

    def act(rank, world):
        whole = train(rank, world, "fsdp", tmp_path / "whole", 99)
        train(rank, world, "fsdp", tmp_path / "stopped", 3)
        return whole, train(rank, world, "fsdp", tmp_path / "stopped", 99)

    for one, other in tiny.in_processes(act):
        for role, values in one.items():
            np.testing.assert_array_equal(values, other[role], role)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_bf16_stays_near_float32(cases, tiny, parallel):
    case = cases["ladd_shared"]
    start, expected, *_ = _run(case, 0, 1, steps=2)

    def act(rank, world):
        return _run(case, rank, world, parallel, mixed_precision="bf16", steps=2)[1]

    for found in tiny.in_processes(act):
        for role in ("student", "discriminator"):
            moved = np.linalg.norm(expected[role] - start[role])
            assert found[role].dtype == np.float32
            assert 0 < np.linalg.norm(found[role] - expected[role]) < 0.2 * moved


def test_offloading_to_the_cpu_and_checkpointing_gradients_change_nothing(cases, tiny):
    case = cases["ladd_shared"]
    _, expected, *_ = _run(case, 0, 1, steps=2)
    options = {"cpu_offload": True, "gradient_checkpointing": True, "steps": 2}
    (found,) = tiny.in_processes(lambda rank, of: _run(case, rank, of, "fsdp", **options), 1)
    assert found[2], "one process can shard, too"
    for role, values in found[1].items():
        np.testing.assert_allclose(values, expected[role], rtol=0, atol=1e-6, err_msg=role)


def test_averages_can_be_drawn_with_between_two_steps_under_fsdp(cases, tiny):
    """Weights that a forward pass has gathered must not hide the averages."""
    case = cases["ladd_shared"]

    def inputs() -> tuple[Tensor, Tensor, Condition]:
        pairs = LatentStream(4, 0, 1)(9).pairs
        assert pairs is not None
        return pairs.noise, torch.tensor(999), pairs.condition

    def act(rank, world):
        config = dataclasses.replace(case.config, parallel="fsdp", steps=1)
        method = case.make()
        trainer = Trainer(method, case.stream(4, rank, world), config)
        for _ in trainer.fit():
            pass
        batch = inputs()
        found = []
        with torch.no_grad():
            for _ in range(2):
                found.append(method.student(*batch))
                with trainer.averaged("student"):
                    found.append(method.student(*batch))
        return [value.numpy() for value in found], _look(trainer)

    (first, looked), _ = tiny.in_processes(act)
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(first[1], first[3])
    method = case.make()
    batch = inputs()
    for drawn, name in zip(first, ("student", "student.ema"), strict=False):
        nn.utils.vector_to_parameters(
            torch.tensor(looked[name]), method.student.module.parameters()
        )
        with torch.no_grad():
            expected = method.student(*batch)
        np.testing.assert_allclose(drawn, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_what_one_process_finds_counts_for_all(tiny, parallel):
    """Step 2 has a NaN in samples 9 (process 0 has 8 and 9, process 1 the rest); process 1 is told to stop."""

    def act(rank, world):
        method = tiny.Method()
        method.poison = {2: "student"}
        stop = iter(["", "", "", "SIGTERM" if rank == 1 else "", ""])
        config = tiny.config(parallel=parallel)
        stream = tiny.Stream(4, rank, world)
        trainer = Trainer(method, stream, config, stop=lambda: next(stop))
        return [(s.step, s.skipped, s.stopped, s.num_samples) for s in trainer.fit()], _look(
            trainer
        )

    (first, one), (second, other) = tiny.in_processes(act)
    assert first == second
    assert [step for step, *_ in first] == [1, 2, 3, 4]
    assert [bool(skipped) for _, skipped, *_ in first] == [False, False, True, False]
    assert first[2][1].startswith("step 3: not finite:")
    assert "student/fit (samples [9])" in first[2][1]
    assert first[3][2:] == ("SIGTERM", 4)
    for role, values in one.items():
        np.testing.assert_array_equal(values, other[role])


def test_a_method_that_keeps_the_raw_module_is_caught(tiny, tmp_path):
    class Raw(tiny.Method):
        """Its student is trained behind the back of DDP."""

        def losses(self, batch, active, draws):
            wrapped, self.student_network = self.student_network, self.student_network.module
            yield from super().losses(batch, active, draws)
            self.student_network = wrapped

    def act(rank, world):
        trainer = Trainer(Raw(), tiny.Stream(4, rank, world), tiny.config(), output=tmp_path)
        with pytest.raises(RuntimeError, match=r"copies of 'student' have come apart after step 6"):
            list(trainer.fit())
        return True

    assert tiny.in_processes(act) == [True, True]
    assert find_checkpoints(tmp_path) == []


def test_processes_with_the_same_samples_are_refused(tiny):
    def act(rank, world):
        trainer = Trainer(tiny.Method(), tiny.Stream(2), tiny.config())
        with pytest.raises(ValueError, match=r"streams give the same samples \(\[0, 0, 1, 1\]"):
            list(trainer.fit())
        return True

    assert tiny.in_processes(act) == [True, True]


def test_a_failed_save_ends_all_processes(tiny, tmp_path):
    (tmp_path / "checkpoints").write_text("")

    def act(rank, world):
        config = tiny.config(parallel="fsdp")
        trainer = Trainer(tiny.Method(), tiny.Stream(4, rank, world), config, output=tmp_path)
        list(trainer.fit())

    def told(rank, world):
        with pytest.raises((OSError, RuntimeError)) as error:
            act(rank, world)
        return type(error.value).__name__, "could not be written" in str(error.value)

    assert tiny.in_processes(told) == [("OSError", True), ("RuntimeError", True)]


def test_text_and_errors_travel(tiny):
    def act(rank, world):
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        texts = gather_text(accelerator, "é" * (3 * rank)), gather_text(accelerator, "")
        answer = on_main(accelerator, lambda: {"rank": rank})
        with pytest.raises((KeyError, RuntimeError)) as error:
            on_main(accelerator, lambda: {}["absent"])
        return *texts, answer, str(error.value)

    assert tiny.in_processes(act) == [
        (["", "ééé"], ["", ""], {"rank": 0}, "'absent'"),
        (["", "ééé"], ["", ""], {"rank": 0}, "the main process failed: 'absent'"),
    ]


def test_launches_that_cannot_work_are_refused(monkeypatch):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    check_launch(accelerator, 3)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"launched with FSDP.*`parallel: fsdp`"):
        check_launch(accelerator, 3)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one of 2 launched processes, but Accelerate sees itself"):
        check_launch(accelerator, 3)


def test_a_batch_that_cannot_be_shared_is_refused(tiny):
    def act(rank, world):
        with pytest.raises(ValueError, match="make it a multiple of 2"):
            Trainer(tiny.Method(), tiny.Stream(3), tiny.config(batch_size=3))
        return True

    assert tiny.in_processes(act) == [True, True]


def test_local_and_whole_leave_plain_tensors(generator):
    value: Tensor = torch.randn(3, generator=generator)
    assert local(value) is value
    assert whole(value) is value
