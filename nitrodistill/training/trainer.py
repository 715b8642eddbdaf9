"""The trainer: a small generator loop on Accelerate.

    for state in Trainer(method, stream, config, output=folder).fit():
        ...                                          # log, preview, stop early: there are no callbacks

One step, in spirit:

    for micro in range(accumulation):
        with accumulate(all roles):
            batch = stream(step * accumulation + micro)
            for role, terms in method.losses(batch, active, Draws(seed, step, batch.index)):
                backward(terms.total)
    for role in active: clip; optimizer step; average if it is the student

Data, draws and learning rates are functions of the step, so a checkpoint holds weights, averages,
optimizer states and the step, and on a CPU a run that was killed and resumed ends bit for bit like one that
was not. The modules' train or eval mode is left as the method has it.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from nitrodistill.method import DistillationMethod, Draws, Role
from nitrodistill.training.checkpoint import (
    Checkpoint,
    find_checkpoints,
    newest_checkpoint,
    prune,
    write_checkpoint,
)
from nitrodistill.training.config import (
    FREE,
    OptimizerConfig,
    TrainerConfig,
    check_optimizers,
    learning_rate_factor,
    to_plain,
)
from nitrodistill.training.ema import EMA
from nitrodistill.training.log import RunLog, fetch, make_accelerator
from nitrodistill.training.records import Record, all_finite, mean_parts, non_finite
from nitrodistill.types import Batch, Terms

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["State", "Trainer"]

STUDENT = "student"


@dataclass(frozen=True)
class State:
    """What a step did.

    Attributes:
        stage: number of the recipe's stage.
        step: steps done, this one included.
        steps: steps in all.
        active: the roles that were updated.
        skipped: why the step was skipped, else empty.
        parts: "role/term" -> mean over the step's samples, a scalar on the device;
            "role/total" and "role/grad_norm" (before clipping) are among them.
        learning_rates: role -> its learning rate in this step.
        num_samples: samples in this step.
        seconds: duration of the step.
        data_seconds: of which was waited for data.
    """

    stage: int
    step: int
    steps: int
    active: tuple[str, ...]
    skipped: str
    parts: Mapping[str, Tensor]
    learning_rates: Mapping[str, float]
    num_samples: int
    seconds: float
    data_seconds: float

    def metrics(self) -> dict[str, float]:
        """All `parts` as numbers; waits for the device."""
        return fetch(self.parts)

    def totals(self) -> dict[str, float]:
        """Each active role's loss as a number; waits for the device."""
        totals = {r: self.parts[f"{r}/total"] for r in self.active if f"{r}/total" in self.parts}
        return fetch(totals)


class Trainer:
    """Trains a method's roles; `fit` yields after every step.

    Args:
        method: what is trained; its roles are rebound to prepared modules.
        stream: number of a micro-batch -> Batch; a pure function.
        config: the settings.
        output: folder for checkpoints and `log.jsonl`; None writes nothing. It is made by `fit`.
        resume: "auto" goes on from the newest whole checkpoint in `output`, if there is one;
            "never" refuses a folder that has any.
        stage: number of the stage in a recipe.
        record: what else a checkpoint's `state.json` keeps, for example the recipe.
        accelerator: by default one on the fastest device.

    Attributes:
        step: optimizer steps done.
        ema: the moving average of the role "student".
        accelerator: in use.

    Raises:
        ValueError: if the roles and `config.optimizers` differ, a role has nothing to train, or
            a checkpoint is damaged or of other settings.
        FileExistsError: if `resume` is "never" and there is a checkpoint.
    """

    def __init__(
        self,
        method: DistillationMethod,
        stream: Callable[[int], Batch],
        config: TrainerConfig,
        *,
        output: str | Path | None = None,
        resume: Literal["auto", "never"] = "auto",
        stage: int = 0,
        record: Mapping[str, object] | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.method = method
        self.stream = stream
        self.config = config
        self.output: Path | None = None if output is None else Path(output)
        self.stage = stage
        self.step: int = 0
        self.record: dict[str, object] = dict(record or {})
        check_optimizers(config.optimizers, list(method.trainable()))
        checkpoint = self._find_checkpoint(resume)
        self.accelerator: Accelerator = accelerator or make_accelerator(
            config.mixed_precision, self.output
        )
        if self.accelerator.num_processes > 1:
            raise ValueError(
                f"the trainer runs in one process, this is one of {self.accelerator.num_processes}; "
                "start it without `accelerate launch` or with --num_processes 1."
            )
        self._trained = {n: self._prepare(n, role) for n, role in method.trainable().items()}
        self.ema: EMA | None = None
        if STUDENT in self._trained:
            self.ema = EMA(self._unwrap(STUDENT), config.ema_decay)
        if checkpoint is not None:
            self._load(checkpoint)

    def fit(self) -> Iterator[State]:
        """Trains to `config.steps`, writing logs and checkpoints on the way.

        Yields:
            the State after each step; stop iterating to stop training (and call `save` to keep it).

        Raises:
            FloatingPointError: after `config.max_skips` non-finite steps in a row, or if weights are
                not finite when a checkpoint is due.
        """
        if self.step >= self.config.steps:
            return
        log, skips = self._open_log(), 0
        while self.step < self.config.steps:
            state = self._train_step()
            self.step += 1
            if log is not None:
                log.record(state)
            if state.skipped:
                warnings.warn(f"skipped {state.skipped}", RuntimeWarning, stacklevel=2)
            every = self.config.checkpoint_every
            if self.step == self.config.steps or (every and self.step % every == 0):
                self.save()
            skips = skips + 1 if state.skipped else 0
            if skips >= self.config.max_skips:
                raise FloatingPointError(
                    f"stopped after {skips} non-finite steps in a row ({state.skipped}); "
                    f"{self._last_good()}."
                )
            yield state

    def save(self) -> Checkpoint | None:
        """Writes a checkpoint now and removes the oldest; does nothing without an `output`.

        Raises:
            OSError: if it cannot be written.
            FloatingPointError: if a weight is not finite; then nothing is written.
        """
        if self.output is None:
            return None
        tensors = {n: self._unwrap(n).state_dict() for n in self._trained}
        for name, values in tensors.items():
            if not all_finite(values):
                raise FloatingPointError(
                    f"weights of {name!r} are not finite after step {self.step}; {self._last_good()}."
                )
        tensors |= {f"{n}.optimizer": t.optimizer_tensors() for n, t in self._trained.items()}
        if self.ema is not None:
            tensors[f"{STUDENT}.ema"] = self.ema.state_dict()
        state = {
            "stage": self.stage,
            "step": self.step,
            "trainer": to_plain(self.config),
            **self.record,
        }
        checkpoint = write_checkpoint(self.output, self.stage, self.step, tensors, state)
        prune(self.output, self.stage, self.config.keep_checkpoints)
        return checkpoint

    def _train_step(self) -> State:
        started = time.perf_counter()
        # set anew for each step: Accelerate keeps the number in a singleton that trainers share
        self.accelerator.gradient_accumulation_steps = self.config.accumulation
        self.accelerator.step = 0
        active = tuple(self.method.active(self.step))
        records: list[Record] = []
        num_samples, data_seconds = 0, 0.0
        for micro in range(self.config.accumulation):
            asked = time.perf_counter()
            batch = self._batch(self.step * self.config.accumulation + micro)
            data_seconds += time.perf_counter() - asked
            num_samples += len(batch)
            records += self._backward(batch, active)
        norms = {n: self._trained[n].clip(self.accelerator, self.config) for n in active}
        skipped = non_finite(self.step, records, norms)
        rates = self._update(active, bool(skipped))
        parts = mean_parts(records) | {f"{n}/grad_norm": norm for n, norm in norms.items()}
        seconds = time.perf_counter() - started
        return State(
            self.stage, self.step + 1, self.config.steps, active, skipped, parts, rates,
            num_samples, seconds, data_seconds,
        )  # fmt: skip

    def _batch(self, number: int) -> Batch:
        batch = self.stream(number)
        if len(batch) != self.config.batch_size:
            raise ValueError(
                f"the stream gave a batch of {len(batch)} samples, but batch_size is "
                f"{self.config.batch_size}; give both the same."
            )
        return batch.to(self.accelerator.device)

    def _backward(self, batch: Batch, active: tuple[str, ...]) -> list[Record]:
        records = []
        with self.accelerator.accumulate(*(t.role.module for t in self._trained.values())):
            draws = Draws(self.config.seed, self.step, batch.index)
            for role, terms in self.method.losses(batch, active, draws):
                self.accelerator.backward(terms.total)
                records.append(Record(role, Terms(terms.total.detach(), terms.parts), batch.index))
        return records

    def _update(self, active: tuple[str, ...], skip: bool) -> dict[str, float]:
        factor = learning_rate_factor(self.config, self.step)
        rates = {}
        for name in active:
            trained = self._trained[name]
            rates[name] = trained.config.learning_rate * factor
            if not skip:
                trained.update(rates[name])
        if self.ema is not None and STUDENT in active and not skip:
            self.ema.update()
        for trained in self._trained.values():
            trained.optimizer.zero_grad()
        return rates

    def _prepare(self, name: str, role: Role) -> _Trained:
        config, module = self.config.optimizers[name], role.module
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError(
                f"role {name!r} has no parameter that requires a gradient; call "
                "requires_grad_(True) on its module before the trainer is made."
            )
        if self.config.gradient_checkpointing:
            _checkpoint_gradients(module)
        optimizer = torch.optim.AdamW(
            [p for _, p in named],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=self.accelerator.device.type in ("cpu", "cuda"),
        )
        module, optimizer = self.accelerator.prepare(module, optimizer)
        role.bind(module)
        return _Trained(role, config, optimizer, dict(named))

    def _load(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state()
        _check_same(checkpoint, state.get("trainer"), to_plain(self.config))
        for name, trained in self._trained.items():
            self._unwrap(name).load_state_dict(checkpoint.tensors(name))
            trained.load_optimizer(checkpoint.tensors(f"{name}.optimizer"))
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint.tensors(f"{STUDENT}.ema"))
        self.step = checkpoint.step

    def _unwrap(self, name: str) -> nn.Module:
        return self.accelerator.unwrap_model(self._trained[name].role.module)

    def _find_checkpoint(self, resume: str) -> Checkpoint | None:
        if self.output is None:
            return None
        if resume == "auto":
            return newest_checkpoint(self.output, self.stage)
        if find_checkpoints(self.output, self.stage):
            raise FileExistsError(
                f"{self.output} holds checkpoints already; resume from them, or choose another output."
            )
        return None

    def _open_log(self) -> RunLog | None:
        if self.output is None:
            return None
        self.output.mkdir(parents=True, exist_ok=True)
        file, every = self.output / "log.jsonl", self.config.log_every
        return RunLog(file, self.accelerator, every, self.stage, self.step)

    def _last_good(self) -> str:
        saved = find_checkpoints(self.output, self.stage) if self.output is not None else []
        return f"the last good checkpoint is {saved[0].path}" if saved else "there is no checkpoint"


@dataclass(frozen=True)
class _Trained:
    """A role with its optimizer; `weights` are those that are trained, by name."""

    role: Role
    config: OptimizerConfig
    optimizer: torch.optim.Optimizer
    weights: dict[str, nn.Parameter]

    def clip(self, accelerator: Accelerator, config: TrainerConfig) -> Tensor:
        limit = math.inf if config.max_grad_norm is None else config.max_grad_norm
        return torch.as_tensor(accelerator.clip_grad_norm_(self.weights.values(), limit))

    def update(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    def optimizer_tensors(self) -> dict[str, Tensor]:
        states = ((name, self.optimizer.state.get(w, {})) for name, w in self.weights.items())
        return {f"{key}:{name}": value for name, state in states for key, value in state.items()}

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        for label, value in tensors.items():
            key, name = label.split(":", 1)
            weight = self.weights[name]
            # in the weight's own layout and fresh memory, so that sums run in the same order as before
            place = torch.empty_like(weight) if value.ndim else torch.empty_like(value)
            self.optimizer.state[weight][key] = place.detach().copy_(value)


def _check_same(checkpoint: Checkpoint, before: object, now: Mapping[str, object]) -> None:
    if not isinstance(before, dict):
        raise ValueError(f"checkpoint {checkpoint.path} has no settings in its state.json.")
    changed = [k for k in now if k not in FREE and before.get(k) != now[k]]
    if changed:
        was = ", ".join(f"{k} {before.get(k)} -> {now[k]}" for k in changed)
        raise ValueError(
            f"checkpoint {checkpoint.path} was made with other settings ({was}); resume with the same, "
            "or choose another output."
        )


def _checkpoint_gradients(module: nn.Module) -> None:
    from diffusers import ModelMixin

    for part in module.modules():
        if isinstance(part, ModelMixin):
            part.enable_gradient_checkpointing()
