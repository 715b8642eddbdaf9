"""Methods small enough to work out by hand, and functions that run in several processes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from nitrodistill.data import GenerateConfig, generate
from nitrodistill.method import Cast, DistillationMethod, Draws, Role, frozen_within
from nitrodistill.methods import LADDConfig
from nitrodistill.models import LoRAConfig, Pipeline
from nitrodistill.sampling import StepPlan
from nitrodistill.schedules import RectifiedFlow
from nitrodistill.training import OptimizerConfig, Recipe, Stage, Trainer, TrainerConfig
from nitrodistill.types import Batch, Condition, Pairs, Terms


class HandMade(DistillationMethod):
    """Makes its networks itself; no recipe builds it."""

    plan = StepPlan.from_schedule(RectifiedFlow())

    @classmethod
    def build(cls, config: Any, cast: Cast) -> HandMade:
        raise NotImplementedError


class TinyMethod(HandMade):
    """student: least squares on the pairs plus a critic's opinion; critic: separates x0 from the student's."""

    def __init__(
        self, turns: Sequence[Sequence[str]] = (("student", "critic"),), seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.student_network = _network(generator, 4, 4)
        self.critic_network = _network(generator, 4, 1)
        self.turns = turns
        self.poison: Mapping[int, str] = {}

    def trainable(self) -> Mapping[str, Role]:
        return {"student": Role(self, "student_network"), "critic": Role(self, "critic_network")}

    def active(self, step: int) -> Sequence[str]:
        return self.turns[step % len(self.turns)]

    def losses(
        self, batch: Batch, active: Sequence[str], draws: Draws
    ) -> Iterator[tuple[str, Terms]]:
        assert batch.pairs is not None
        noise = batch.pairs.noise + 0.1 * draws.normal("jitter", batch.pairs.noise.shape[1:])
        fake = self.student_network(noise.flatten(1))
        real = batch.pairs.x0.flatten(1)
        if "student" in active:
            self.critic_network.requires_grad_(False)
            fit = (fake - real).square().mean(1)
            opinion = -self.critic_network(fake).squeeze(1)
            if self.poison.get(draws.step) == "student":
                fit = fit.where(batch.index % 3 != 0, torch.nan)
            yield "student", Terms((fit + 0.1 * opinion).mean(), {"fit": fit.detach()})
            self.critic_network.requires_grad_(True)
        if "critic" in active:
            gap = self.critic_network(fake.detach()) - self.critic_network(real)
            loss = (gap.squeeze(1) + 0.1 * gap.squeeze(1).square()).mean()
            yield "critic", Terms(loss, {"gap": gap.detach().mean()})


class ThreeRoles(HandMade):
    """Three roles on one student sample, as in DMD2: the student learns every third step, the others always.

    fake_score: predicts what the student draws; critic: separates x0 from it; student: follows both.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.student_network = _network(generator, 4, 4)
        self.fake_network = _network(generator, 4, 4)
        self.critic_network = _network(generator, 4, 1)

    def trainable(self) -> Mapping[str, Role]:
        names = ("student", "fake_score", "critic")
        places = ("student_network", "fake_network", "critic_network")
        return {name: Role(self, place) for name, place in zip(names, places, strict=True)}

    def active(self, step: int) -> Sequence[str]:
        others = ("fake_score", "critic")
        return ("student", *others) if step % 3 == 0 else others

    def losses(
        self, batch: Batch, active: Sequence[str], draws: Draws
    ) -> Iterator[tuple[str, Terms]]:
        assert batch.pairs is not None
        noise, real = batch.pairs.noise.flatten(1), batch.pairs.x0.flatten(1)
        jitter = 0.1 * draws.normal("jitter", (4,))
        with contextlib.nullcontext() if "student" in active else torch.no_grad():
            fake = self.student_network(noise)
        if "student" in active:
            with frozen_within(self.fake_network), frozen_within(self.critic_network):
                gap = (self.fake_network(fake + jitter) - real).square().mean(1)
                opinion = self.critic_network(fake).squeeze(1)
                yield "student", Terms((gap - 0.1 * opinion).mean(), {"gap": gap.detach()})
        error = (self.fake_network(fake.detach() + jitter) - fake.detach()).square().mean(1)
        yield "fake_score", Terms(error.mean(), {"error": error.detach()})
        sides = self.critic_network(fake.detach()) - self.critic_network(real)
        yield "critic", Terms((sides + 0.1 * sides.square()).mean(), {})


def _network(generator: torch.Generator, inputs: int, outputs: int) -> nn.Module:
    network = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))
    for weight in network.parameters():
        weight.data.normal_(0, 0.5, generator=generator)
    return network


class TinyStream:
    """Sample n is a function of n alone, so micro-batches of any size cut the same stream."""

    def __init__(self, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.batch_size = batch_size
        self.part = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.asked: list[int] = []

    def __call__(self, number: int) -> Batch:
        self.asked.append(number)
        index = torch.arange(number * self.batch_size, (number + 1) * self.batch_size)[self.part]
        noise = Draws(1, 0, index).normal("noise", (1, 2, 2))
        condition = Condition({"text": noise.flatten(1)})
        return Batch(index, Pairs(noise.flip(3).sin(), noise, condition))


def weights(module: nn.Module) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def in_processes(act: Callable[[int, int], Any], world: int = 2, seconds: float = 300) -> list[Any]:
    """What `act(rank, world)` returns in each of `world` forked processes that meet through gloo."""
    for name in ("torch._dynamo", "torch.distributed.fsdp", "diffusers.models.modeling_utils"):
        importlib.import_module(name)  # seconds of work: once, and not in every child
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    children = [
        context.Process(target=_one_process, args=(act, rank, world, port, pipe[1]))
        for rank, pipe in enumerate(pipes)
    ]
    for child in children:
        child.start()
    try:
        found = []
        for rank, (pipe, _) in enumerate(pipes):
            assert pipe.poll(seconds), f"process {rank} said nothing for {seconds} s"
            error, result = pipe.recv()
            assert not error, f"process {rank}: {error}"
            found.append(result)
        return found
    finally:
        for child in children:
            child.join(5)
            child.kill()
            child.join()


def _one_process(
    act: Callable[[int, int], Any], rank: int, world: int, port: int, pipe: Any
) -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)  # of the process that this is a fork of
    GradientState._reset_state()
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({n: str(v) for n, v in names.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    try:
        pipe.send(("", act(rank, world)))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
    finally:
        os._exit(0)  # no goodbyes to processes that may have failed


class Tiny(NamedTuple):
    """What the tests of this folder share; a fixture, so that no test module imports another."""

    Method: type[TinyMethod]
    ThreeRoles: type[ThreeRoles]
    Stream: type[TinyStream]
    weights: Callable[[nn.Module], Tensor]
    config: Callable[..., TrainerConfig]
    train: Callable[..., Trainer]
    in_processes: Callable[..., list[Any]]
    changed: Callable[..., Recipe]
    prompts: Sequence[str]


def tiny_config(**changes: Any) -> TrainerConfig:
    """Six steps on batches of 4, with unequal optimizers; the student has an average."""
    optimizers = {
        "student": OptimizerConfig(1e-2, (0.5, 0.9), weight_decay=0.01, ema_decay=0.999),
        "critic": OptimizerConfig(3e-2, (0.0, 0.99)),
    }
    return TrainerConfig(**({"steps": 6, "batch_size": 4, "optimizers": optimizers} | changes))


def tiny_train(config: TrainerConfig, method: TinyMethod | None = None, **options: Any) -> Trainer:
    """Trains to the end and returns the trainer."""
    trainer = Trainer(method or TinyMethod(), TinyStream(config.batch_size), config, **options)
    for _ in trainer.fit():
        pass
    return trainer


PROMPTS = ("a small red circle on a black background", "a large blue ring on a gray background")


@pytest.fixture(scope="session")
def pairs(tiny_diffusers: Any, tiny_scheduler: Any, tmp_path_factory: Any) -> Path:
    """Six pairs of two prompts, made by the tiny pipeline."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    teacher = Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))
    config = GenerateConfig(num_pairs=6, num_inference_steps=2, guidance=2.0)
    generate(teacher, PROMPTS, folder, config, teacher_name="tiny", progress=False)
    return folder


@pytest.fixture
def make_recipe(pairs: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """`make_recipe(settings, student_rate, lora, **trainer)`: LADD on the pairs, one stage, into tmp_path."""

    def make(
        settings: LADDConfig,
        student_rate: float = 1e-3,
        lora: LoRAConfig | None = None,
        **trainer: Any,
    ) -> Recipe:
        optimizers = {
            "student": OptimizerConfig(student_rate, ema_decay=0.5),
            "discriminator": OptimizerConfig(1e-3),
        }
        if settings.adversarial_weight == 0:
            del optimizers["discriminator"]
        config = TrainerConfig(batch_size=4, optimizers=optimizers, **trainer)
        stage = Stage("ladd", config, settings, lora=lora)
        return Recipe("tiny", str(tmp_path / "run"), [stage], pairs=str(pairs))

    return make


@pytest.fixture
def make_matching(tmp_path: Path) -> Callable[..., Recipe]:
    """`make_matching(*teachers, **trainer)`: the second method on prompts alone, a stage each."""

    def make(*teachers: Literal["recipe", "previous"], **trainer: Any) -> Recipe:
        (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
        # a large eps: where a gradient is 0 but for rounding, AdamW's quotient would be noise
        optimizers = {n: OptimizerConfig(1e-2, eps=1e-2) for n in ("student", "critic", "heads")}
        optimizers["student"] = OptimizerConfig(1e-2, eps=1e-2, ema_decay=0.5)
        config = TrainerConfig(batch_size=4, optimizers=optimizers, **trainer)
        name = "tests.training.matching:Matching"
        stages = [Stage(name, config, teacher=teacher) for teacher in teachers]
        output, prompts = str(tmp_path / "run"), str(tmp_path / "prompts.txt")
        return Recipe("tiny", output, stages, prompts=prompts)

    return make


def changed(recipe: Recipe, output: Path | str | None = None, **trainer: Any) -> Recipe:
    """The recipe with other settings of the trainer in every stage, and perhaps another folder."""
    stages = [
        dataclasses.replace(s, trainer=dataclasses.replace(s.trainer, **trainer))
        for s in recipe.stages
    ]
    return dataclasses.replace(recipe, stages=stages, output=str(output or recipe.output))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny() -> Tiny:
    return Tiny(
        TinyMethod, ThreeRoles, TinyStream, weights, tiny_config, tiny_train, in_processes, changed,
        PROMPTS,
    )  # fmt: skip
