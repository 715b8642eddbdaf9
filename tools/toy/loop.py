"""The training loop of the toy's own stages: Adam, EMA, atomic checkpoints, exact resume.

The library's trainer distils; these loops make the teacher that it distils, and sit below it. Every draw is a
function of (seed, stage, step, rank), so a stage that was killed and resumed ends with the same weights as one
that was not. Under `torchrun` the batch is split over the processes and gradients are averaged (gloo); a run
resumed with another number of processes goes on, but draws other samples.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from tqdm import tqdm

from nitrodistill.files import atomic

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class LoopConfig:
    """How one stage is trained.

    Attributes:
        stage: name of the stage; also of its checkpoint file.
        steps: optimizer steps in all.
        batch_size: samples a step, over all processes.
        learning_rate: peak, after a linear warm-up of 100 steps (a tenth of the steps if that is less).
        flat: fraction of the steps at the peak before a cosine takes the rate to 0.
        ema_decay: decay of the exponential moving average that the stage returns.
        clip: largest global gradient norm.
        seed: seed of initialisation and data.
        checkpoint_every: steps between checkpoints.
    """

    stage: str
    steps: int
    batch_size: int
    learning_rate: float
    flat: float = 0.0
    ema_decay: float = 0.995
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"stage {self.stage!r} has {self.steps} steps; give at least 1")

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, flat, cosine to 0."""
        warm_up = max(1, min(100, self.steps // 10))
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        done = step / self.steps
        if done < self.flat:
            return self.learning_rate
        return (
            self.learning_rate
            * 0.5
            * (1 + math.cos(math.pi * (done - self.flat) / (1 - self.flat)))
        )


def seeded(*parts: object) -> torch.Generator:
    """Returns a CPU generator whose seed is a hash of the parts, such as `(seed, stage, step, rank)`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def build(
    make: Callable[[], ModuleT], *seed: object, device: torch.device | str = "cpu"
) -> ModuleT:
    """Builds a module whose initial weights depend on the seed alone, and moves it to the device.

    The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(seeded(*seed).get_state())
        return make().to(device)


def rank_and_size() -> tuple[int, int]:
    """Returns this process's rank and the number of processes: (0, 1) outside `torchrun`."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def fit(
    module: ModuleT,
    loss: Callable[[ModuleT, int, torch.Generator], Tensor],
    config: LoopConfig,
    folder: Path,
) -> ModuleT:
    """Trains a module, resuming from `folder` if a checkpoint of the same configuration is there.

    Args:
        module: what to train, on its device; changed in place.
        loss: `(module, batch_size, generator) -> scalar`, with the batch size of this process.
        config: the stage.
        folder: where `<stage>.checkpoint.safetensors` is written.

    Returns:
        The moving average of the module, in evaluation mode.
    """
    rank, size = rank_and_size()
    if config.batch_size % size:
        raise ValueError(
            f"a batch of {config.batch_size} does not split over {size} processes; use a divisor of it"
        )
    average = copy.deepcopy(module).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, foreach=True
    )
    path = folder / f"{config.stage}.checkpoint.safetensors"
    start = _resume(path, config, module, average, optimizer)
    bar = tqdm(
        range(start, config.steps),
        config.stage,
        config.steps,
        initial=start,
        disable=rank > 0,
        mininterval=5.0,
    )
    for step in bar:
        generator = seeded(config.seed, config.stage, step, rank)
        value = loss(module, config.batch_size // size, generator)
        value.backward()
        _average_gradients(module, size)
        nn.utils.clip_grad_norm_(module.parameters(), config.clip, foreach=True)
        optimizer.param_groups[0]["lr"] = config.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        _update_average(average, module, min(config.ema_decay, (1 + step) / (10 + step)))
        done = step + 1
        if done % 50 == 0:
            bar.set_postfix_str(f"loss {value.item():.4f}", refresh=False)
        if rank == 0 and (done % config.checkpoint_every == 0 or done == config.steps):
            _checkpoint(path, config, done, module, average, optimizer)
    return average.eval()


def save_atomic(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file that is either the old one or the new one, never half of either."""
    # Cloned because T5 ties two of its names to one tensor, which safetensors refuses to write.
    copies = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    with atomic(path) as partial:
        save_file(copies, partial, metadata)


def _average_gradients(module: nn.Module, size: int) -> None:
    if size == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= size
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def _update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)


def _checkpoint(
    path: Path,
    config: LoopConfig,
    step: int,
    module: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    save_atomic(tensors, path, {"config": json.dumps(asdict(config)), "step": str(step)})


def _resume(
    path: Path,
    config: LoopConfig,
    module: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Loads a checkpoint into the three and returns the steps it has done; 0 if there is none."""
    if not path.exists():
        return 0
    groups: dict[str, dict[str, Tensor]] = {"module": {}, "average": {}, "optimizer": {}}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118 - not a dict
            owner, name = key.split(".", 1)
            groups[owner][name] = file.get_tensor(key)
    if json.loads(metadata["config"]) != asdict(config):
        raise ValueError(
            f"{path} was written with other settings ({metadata['config']}); repeat them, or choose another folder"
        )
    module.load_state_dict(groups["module"])
    average.load_state_dict(groups["average"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in groups["optimizer"].items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return int(metadata["step"])
