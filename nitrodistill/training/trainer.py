"""The trainer: a small generator loop on Accelerate.

    for state in Trainer(method, stream, config, output=folder).fit():
        ...                                          # log, preview, stop early: there are no callbacks

One step, in spirit:

    for micro in range(accumulation):
        with accumulate(all roles):
            batch = stream(step * accumulation + micro)
            for role, terms in method.losses(batch, active, Draws(seed, step, batch.index)):
                backward(terms.total)
    for role in active: clip; optimizer step; move its average and what follows it

Data, draws and learning rates are functions of the step, so a checkpoint holds weights, averages,
optimizer states and the step, and on a CPU a run that was killed and resumed ends bit for bit like one that
was not. The modules' train or eval mode is left as the method has it.

In several processes the stream gives each its part of a micro-batch, and all take the same steps: what one of
them finds (a number that is not finite, a signal to stop) counts for all. Checkpoints hold whole tensors, so
that any number of processes, sharded or not, can go on from them.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from nitrodistill.data.prefetch import Prefetch
from nitrodistill.method import DistillationMethod, Draws
from nitrodistill.settings import differences, to_plain
from nitrodistill.training.alarms import Alarms
from nitrodistill.training.averages import Averages
from nitrodistill.training.best import Best
from nitrodistill.training.checkpoint import Checkpoint
from nitrodistill.training.config import TrainerConfig, check_optimizers, learning_rate_factor
from nitrodistill.training.ema import EMA
from nitrodistill.training.log import RunLog, make_accelerator
from nitrodistill.training.optimizers import group_numbers
from nitrodistill.training.parallel import (
    any_process,
    check_launch,
    gather_rows,
    gather_text,
)
from nitrodistill.training.probe import Probe, Reference
from nitrodistill.training.records import (
    Record,
    causes,
    gradient_shares,
    mean_parts,
    non_finite,
)
from nitrodistill.training.roles import TrainedRole
from nitrodistill.training.saving import RunCheckpoints, last_good, to_resume
from nitrodistill.training.state import State
from nitrodistill.training.watch import Watch, check_disjoint
from nitrodistill.types import Batch, Terms

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger(__name__)


class Trainer:
    """Trains a method's roles; `fit` yields after every step.

    Args:
        method: what is trained; its roles are rebound to prepared modules.
        stream: number of a micro-batch -> Batch; a pure function. In several processes it gives each its
            part, `batch_size / num_processes` samples, in the order of the processes. It is read one
            ahead, in a thread.
        config: the settings.
        output: folder for checkpoints and `log.jsonl`; None writes nothing. It is made by `fit`.
        resume: "auto" goes on from the newest whole checkpoint in `output`, if there is one;
            "never" refuses a folder that has any.
        stage: number of the stage in a recipe.
        record: what else a checkpoint's `state.json` keeps, for example the recipe.
        fixed: what must not change when a run is resumed, kept there too: the method's settings, the data.
        stop: asked after every step; the name of a reason, such as a signal's, saves and ends the run. See
            `StopSignals`.
        evaluate: called in every process after each `config.evaluate_every` steps and after the last, with the
            State; what it returns in the main process is logged, and decides on the best checkpoint.
        reference: draws latents of the teacher, with which the student's are compared where batches have none.
        accelerator: by default one on the fastest device.

    Attributes:
        step: optimizer steps done.
        accelerator: in use.
        best: the best evaluation so far.

    Raises:
        ValueError: if the roles and `config.optimizers` differ, a role has nothing to train or shares a weight
            with another one, the processes cannot share a batch, or a checkpoint is damaged or of other settings.
        FileExistsError: if `resume` is "never" and there is a checkpoint.

    Example:
        >>> config = nd.TrainerConfig(steps=2, batch_size=2, optimizers={"student": nd.OptimizerConfig()})
        >>> [state.step for state in nd.Trainer(method, nd.BatchStream(store, 0, 2), config).fit()]
        [1, 2]
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
        fixed: Mapping[str, object] | None = None,
        stop: Callable[[], str] | None = None,
        evaluate: Callable[[State], Mapping[str, float]] | None = None,
        reference: Reference | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.method = method
        self.stream = stream
        self.config = config
        self.output: Path | None = None if output is None else Path(output)
        self.stage = stage
        self.step: int = 0
        self.record: dict[str, object] = dict(record or {})
        self.fixed: dict[str, object] = dict(fixed or {})
        self.best: Best | None = None
        self._evaluated_at = 0
        self._stop = stop
        self._evaluate = evaluate
        check_optimizers(config.optimizers, list(method.trainable()))
        config.check_evaluates(evaluate is not None)
        self.accelerator: Accelerator = accelerator or make_accelerator(
            config.mixed_precision, self.output, cpu_offload=config.cpu_offload
        )
        check_launch(self.accelerator, config.batch_size)
        self._scaler = torch.amp.GradScaler(
            self.accelerator.device.type, enabled=config.mixed_precision == "fp16"
        )
        self._overflowed = False
        checkpoint = to_resume(self.accelerator, self.output, stage, resume)
        roles = method.trainable()
        check_disjoint({n: _learning(role.module) for n, role in roles.items()})
        self._trained = {
            name: TrainedRole.prepare(name, role, config, self.accelerator)
            for name, role in roles.items()
        }
        self._weights = {n: tuple(t.weights.values()) for n, t in self._trained.items()}
        self._averages = Averages(self._trained, method.frozen())
        self._totals: dict[str, Tensor] = {}
        self._probe = Probe.of(method, config.seed, stage, reference)
        self._alarms = Alarms(config.alarm_window)
        self._log: RunLog | None = None
        self._log_state: Mapping[str, Any] | None = None
        self._checkpoints: RunCheckpoints | None = None
        if self.output is not None:
            self._checkpoints = RunCheckpoints(
                self.output, stage, config, self.accelerator, self._trained, self._averages
            )
            if checkpoint is not None:
                self._load(self._checkpoints, checkpoint)
                if self.accelerator.is_main_process and self.step < config.steps:
                    _log.info("stage %d goes on from %s", stage, checkpoint.path)
        self._updates = self._count_updates(self.step)
        self._all_updates = self._count_updates(config.steps)
        if self.accelerator.is_main_process:
            self._averages.warn_of_start(self._all_updates)

    @property
    def averages(self) -> Mapping[str, EMA]:
        """Role -> the moving average of its weights, of those whose `ema_decay` is above 0."""
        return self._averages.roles

    def averaged(self, role: str) -> AbstractContextManager[None]:
        """Puts the moving average of a role's weights in their place, where there is one, for a `with` block."""
        return self._averages.applied(role)

    def fit(self) -> Iterator[State]:
        """Trains to `config.steps`, writing logs and checkpoints on the way.

        Yields:
            the State after each step; stop iterating to stop training (and call `save` to keep it).

        Raises:
            FloatingPointError: after `config.max_skips` non-finite steps in a row, if the last step is one, or if
                weights are not finite when a checkpoint is due. Nothing is saved in such a row of steps.
            ValueError: if the method's losses are not those of its active roles, each of its own weights alone.
        """
        owed = self.step > 0 and self._evaluated_at != self.step and self._evaluation_is_due()
        if self.step >= self.config.steps and not owed:
            return
        log, skips = self._log or self._open_log(), 0
        self._log = log
        if owed:  # the run was stopped between a checkpoint and its evaluation, or that failed
            stand = State(self.stage, self.step, self.config.steps, (), "", {}, {}, 0, 0.0, 0.0, {})
            self._evaluated(stand, log)
            self.save()
        with Prefetch(self.stream, self.config.steps * self.config.accumulation) as stream:
            if self.accelerator.num_processes > 1:
                self._check_parts(stream)
            while self.step < self.config.steps:
                state = self._train_step(stream)
                self.step += 1
                state = self._alarmed(state, log)
                failed = bool(state.skipped) and not self._overflowed
                if failed and self.accelerator.is_main_process:
                    warnings.warn(f"skipped {state.skipped}", RuntimeWarning, stacklevel=2)
                best_before = self.best
                skips = skips + 1 if failed else 0
                if not skips:
                    state = self._evaluated(state, log)
                    due = self._is_due(self.config.checkpoint_every) or bool(state.stopped)
                    if (due and state.stopped != "alarm") or self.best != best_before:
                        self.save()
                elif skips >= self.config.max_skips or self.step == self.config.steps:
                    raise FloatingPointError(
                        f"stopped after {skips} non-finite steps in a row ({state.skipped}); "
                        f"{last_good(self.output, self.stage)}."
                    )
                yield state
                if state.stopped:
                    return

    def save(self) -> Checkpoint | None:
        """Writes a checkpoint now and removes the oldest; does nothing without an `output`.

        All processes must call it; the main one writes.

        Raises:
            OSError: if it cannot be written.
            FloatingPointError: if a weight is not finite; then nothing is written.
            RuntimeError: if the processes' copies of a network have come apart.
        """
        if self._checkpoints is None:
            return None
        best = None if self.best is None else self.best.step
        log_state = None if self._log is None else self._log.to_plain()
        calm = self._alarms.calm(self.step) if self.config.stop_on == "alarm" else None
        return self._checkpoints.write(self.step, {**self._state(), "log": log_state}, best, calm)

    def _state(self) -> dict[str, object]:
        return {
            "stage": self.stage,
            "step": self.step,
            "trainer": to_plain(self.config),
            "best": None if self.best is None else self.best.to_plain(),
            "alarms": self._alarms.to_plain(),
            "evaluated": self._evaluated_at,
            "scaler": self._scaler.state_dict(),
            "optimizers": {n: group_numbers(t.optimizer) for n, t in self._trained.items()},
            **self.record,
            "fixed": self.fixed,
        }

    def _train_step(self, stream: Callable[[int], Batch]) -> State:
        started = time.perf_counter()
        # set anew for each step: Accelerate keeps the number in a singleton that trainers share
        self.accelerator.gradient_accumulation_steps = self.config.accumulation
        self.accelerator.step = 0
        active = tuple(self.method.active(self.step))
        records: list[Record] = []
        num_samples, data_seconds = 0, 0.0
        for micro in range(self.config.accumulation):
            asked = time.perf_counter()
            batch = self._batch(stream, self.step * self.config.accumulation + micro)
            data_seconds += time.perf_counter() - asked
            num_samples += len(batch) * self.accelerator.num_processes
            records += self._backward(batch, active)
        for name in active:
            self._scaler.unscale_(self._trained[name].optimizer)
        norms = {name: self._trained[name].clip() for name in active}
        skipped, stopped = self._verdict(records, norms)
        parts = mean_parts(records) | {f"{n}/grad_norm": norm for n, norm in norms.items()}
        rates, changed = self._update(active, bool(skipped))
        self._scaler.update()
        parts |= {f"{name}/changed": share for name, share in changed.items()}
        if self._probe is not None and not skipped and self._is_shown(self.config.diagnose_every):
            parts |= self._probe(records[-1].batch, self.step + 1)
        self._totals |= {name: parts[f"{name}/total"] for name in active}
        seconds = time.perf_counter() - started
        return State(
            self.stage,
            self.step + 1,
            self.config.steps,
            active,
            skipped,
            parts,
            rates,
            num_samples,
            seconds,
            data_seconds,
            dict(self._totals),
            stopped=stopped,
        )

    def _verdict(self, records: list[Record], norms: Mapping[str, Tensor]) -> tuple[str, str]:
        """Why the step must be skipped and why the run must stop, the same in all processes."""
        reason = self._stop() if self._stop is not None else ""
        flags = [non_finite(records, norms), bool(reason), non_finite(records, {})]
        broken, stop, loss_broken = any_process(self.accelerator, flags)
        scale = self._scaler.get_scale()
        self._overflowed = broken and not loss_broken and scale > 1
        skipped = stopped = ""
        if self._overflowed:
            skipped = (
                f"step {self.step + 1}: the gradients overflow float16 at a loss scale of {scale:g}"
            )
        elif broken:
            texts = gather_text(self.accelerator, "; ".join(causes(records, norms)))
            named = dict.fromkeys(text for text in texts if text)
            skipped = f"step {self.step + 1}: not finite: {'; '.join(named)}"
        if stop and not broken:  # after a skipped step nothing is saved: the next good one stops
            stopped = next(text for text in gather_text(self.accelerator, reason) if text)
        return skipped, stopped

    def _alarmed(self, state: State, log: RunLog) -> State:
        """The state with the alarms that a line of the log sets off; the line is the same in all processes."""
        line = log.record(state)
        found = tuple(self._alarms.read(line)) if line is not None else ()
        for alarm in found:
            log.alarm(state, alarm)
            if self.accelerator.is_main_process:
                warnings.warn(alarm.message, RuntimeWarning, stacklevel=3)
        ends = bool(found) and self.config.stop_on == "alarm"
        return replace(state, alarms=found, stopped=state.stopped or ("alarm" if ends else ""))

    def _evaluated(self, state: State, log: RunLog) -> State:
        """The state with what an evaluation finds, if one is due; compares it with the best."""
        if self._evaluate is None or not self._evaluation_is_due():
            return state
        if self.accelerator.num_processes > 1 and self.config.parallel == "fsdp":
            self.save()  # now: one process that fails in a network's pass leaves the others in the middle of it
        failure: Exception | None = None
        mine: dict[str, object] = {}
        try:
            mine["found"] = {name: float(value) for name, value in self._evaluate(state).items()}
        except Exception as error:  # raised below, when all processes know and the steps are saved
            failure, mine = error, {"error": str(error) or type(error).__name__}
        everybody = [json.loads(text) for text in gather_text(self.accelerator, json.dumps(mine))]
        for rank, one in enumerate(everybody):
            if "error" in one:
                self.save()
                raise failure or RuntimeError(
                    f"the evaluation failed in process {rank}: {one['error']}"
                )
        # the numbers of the main process count, so that all take the same decision
        found: dict[str, float] = everybody[0]["found"]
        self._evaluated_at = self.step
        log.evaluation(state, found)
        if metric := self.config.best_metric:
            best_is = self.config.best_is
            self.best = Best.after(self.best, metric, best_is, self.step, found)
        return replace(state, evaluation=found)

    def _evaluation_is_due(self) -> bool:
        every = self.config.evaluate_every
        return self._evaluate is not None and every > 0 and self._is_due(every)

    def _is_due(self, every: int, step: int | None = None) -> bool:
        """What happens every so many steps, and after the last; 0 is after the last only."""
        step = self.step if step is None else step
        return step == self.config.steps or bool(every and step % every == 0)

    def _is_shown(self, lines: int) -> bool:
        """Whether the step at hand ends every so many lines of the log; 0 is never."""
        return lines > 0 and self._is_due(self.config.log_every * lines, self.step + 1)

    def _batch(self, stream: Callable[[int], Batch], number: int) -> Batch:
        batch = stream(number)
        world = self.accelerator.num_processes
        if len(batch) * world != self.config.batch_size:
            shared = f" over {world} processes" if world > 1 else ""
            raise ValueError(
                f"the stream gave a batch of {len(batch)} samples, but batch_size is "
                f"{self.config.batch_size}{shared}; give both the same."
            )
        return batch.to(self.accelerator.device)

    def _check_parts(self, stream: Callable[[int], Batch]) -> None:
        """Each process must have samples of its own."""
        batch = self._batch(stream, self.step * self.config.accumulation)
        index = gather_rows(self.accelerator, batch.index)
        if len(index.unique()) != len(index):
            raise ValueError(
                f"the processes' streams give the same samples ({sorted(index.tolist())[:4]} ...); give each "
                "its part of the micro-batch, by its rank and the world size."
            )

    def _backward(self, batch: Batch, active: tuple[str, ...]) -> list[Record]:
        records = []
        gather = partial(gather_rows, self.accelerator)
        split = self._is_shown(self.config.term_gradients_every)
        watch = Watch(type(self.method).__name__, self._weights, active)
        with self.accelerator.accumulate(*(t.role.module for t in self._trained.values())):
            draws = Draws(self.config.seed, self.step, batch.index, gather, self.stage)
            for role, terms in self.method.losses(batch, active, draws):
                watch.before(role)
                shares = gradient_shares(terms, self._weights[role]) if split else {}
                self.accelerator.backward(self._scaler.scale(terms.total))
                watch.after(role)
                done = Terms(terms.total.detach(), terms.parts)
                records.append(Record(role, done, batch, shares))
        watch.end()
        return records

    def _update(
        self, active: tuple[str, ...], skip: bool
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Updates the active roles; their learning rates, and now and then the share of weights that changed."""
        rates, changed = {}, {}
        shown = self._is_shown(1)
        for name in active:
            trained, update = self._trained[name], self._updates[name]
            factor = learning_rate_factor(trained.config, update, self._all_updates[name])
            rates[name] = trained.config.learning_rate * factor
            self._updates[name] += 1
            if skip:
                continue
            before = trained.sample() if shown else None
            trained.update(rates[name])
            if before is not None:
                changed[name] = trained.changed_since(before)
        if not skip:  # after all updates: a role that is drawn to another has made its own
            for name in active:
                self._averages.update(name)
        for trained in self._trained.values():
            trained.optimizer.zero_grad()
        return rates, changed

    def _count_updates(self, steps: int) -> dict[str, int]:
        """How often each role is active in so many steps."""
        counts = dict.fromkeys(self._trained, 0)
        for step in range(steps):
            for name in self.method.active(step):
                counts[name] = counts.get(name, 0) + 1
        return counts

    def _load(self, checkpoints: RunCheckpoints, checkpoint: Checkpoint) -> None:
        state = checkpoint.state()
        self.config.check_resumes(state.get("trainer"), checkpoint.path)
        before, now = state.get("fixed"), json.loads(json.dumps(self.fixed))
        changed = differences(before, now)
        if changed:
            raise ValueError(
                f"checkpoint {checkpoint.path} was made with other settings ({'; '.join(changed[:3])}); resume "
                "with the same, or choose another output."
            )
        checkpoints.read(checkpoint)
        scaler: Any = state.get("scaler")
        if scaler:
            self._scaler.load_state_dict(scaler)
        optimizers: Any = state.get("optimizers") or {}
        for name, groups in optimizers.items():
            for group, numbers in zip(
                self._trained[name].optimizer.param_groups, groups, strict=True
            ):
                group.update(numbers)
        self.step = checkpoint.step
        self.best = Best.from_plain(state.get("best"), self.config.best_metric)
        self._alarms = Alarms(self.config.alarm_window, state.get("alarms"))
        log_state = state.get("log")
        self._log_state = log_state if isinstance(log_state, Mapping) else None
        evaluated = state.get("evaluated")
        self._evaluated_at = evaluated if isinstance(evaluated, int) else 0

    def _open_log(self) -> RunLog:
        file = None if self.output is None else self.output / "log.jsonl"
        every, before = self.config.log_every, self._log_state
        return RunLog(file, self.accelerator, every, self.stage, self.step, before)


def _learning(module: nn.Module) -> Sequence[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]
