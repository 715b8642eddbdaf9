"""A method small enough to work out by hand: a tiny student and critic on the two-role contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from nitrodistill.method import Draws, Role
from nitrodistill.training import OptimizerConfig, Trainer, TrainerConfig
from nitrodistill.types import Batch, Condition, Terms


class TinyMethod:
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
        noise = batch.noise + 0.1 * draws.normal("jitter", batch.noise.shape[1:])
        fake = self.student_network(noise.flatten(1))
        real = batch.x0.flatten(1)
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


def _network(generator: torch.Generator, inputs: int, outputs: int) -> nn.Module:
    network = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))
    for weight in network.parameters():
        weight.data.normal_(0, 0.5, generator=generator)
    return network


class TinyStream:
    """Sample n is a function of n alone, so micro-batches of any size cut the same stream."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.asked: list[int] = []

    def __call__(self, number: int) -> Batch:
        self.asked.append(number)
        index = torch.arange(number * self.batch_size, (number + 1) * self.batch_size)
        noise = Draws(1, 0, index).normal("noise", (1, 2, 2))
        return Batch(index, noise.flip(3).sin(), noise, Condition({"text": noise.flatten(1)}))


def weights(module: nn.Module) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Tiny(NamedTuple):
    """What the tests of this folder share; a fixture, so that no test module imports another."""

    Method: type[TinyMethod]
    Stream: type[TinyStream]
    weights: Callable[[nn.Module], Tensor]
    config: Callable[..., TrainerConfig]
    train: Callable[..., Trainer]


def tiny_config(**changes: Any) -> TrainerConfig:
    """Six steps on batches of 4, with unequal optimizers."""
    optimizers = {
        "student": OptimizerConfig(1e-2, (0.5, 0.9), weight_decay=0.01),
        "critic": OptimizerConfig(3e-2, (0.0, 0.99)),
    }
    return TrainerConfig(**({"steps": 6, "batch_size": 4, "optimizers": optimizers} | changes))


def tiny_train(config: TrainerConfig, method: TinyMethod | None = None, **options: Any) -> Trainer:
    """Trains to the end and returns the trainer."""
    trainer = Trainer(method or TinyMethod(), TinyStream(config.batch_size), config, **options)
    for _ in trainer.fit():
        pass
    return trainer


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny() -> Tiny:
    return Tiny(TinyMethod, TinyStream, weights, tiny_config, tiny_train)
