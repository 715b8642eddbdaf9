"""The run's log: a line of JSON every few steps, Accelerate's trackers, and how far it is."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor

from nitrodistill.files import read_lines, write_text
from nitrodistill.processes import PATIENCE, meeting, place
from nitrodistill.settings import nearest
from nitrodistill.training.parallel import gather_text

if TYPE_CHECKING:
    from nitrodistill.training.alarms import Alarm
    from nitrodistill.training.state import State


def make_accelerator(
    mixed_precision: str = "no",
    output: Path | None = None,
    cpu: bool = False,
    trackers: Sequence[str] | None = None,
    cpu_offload: bool = False,
) -> Accelerator:
    """An Accelerator for the trainer, alone or one of several processes, that tracks where `output` is given.

    Args:
        mixed_precision: "no" or "bf16"; "fp16" is the trainer's own work.
        output: the run's folder; the trackers write into its `logs`, if they write files.
        cpu: stay on the CPU.
        trackers: Accelerate's names of them; None is tensorboard, where that is installed.
        cpu_offload: the processes also talk about tensors in the CPU's memory.

    Raises:
        ValueError: if a tracker is unknown or not installed.
        RuntimeError: if not all processes come within `PATIENCE`, because one failed before.

    Example:
        >>> nd.training.make_accelerator(cpu=True).num_processes
        1
    """
    has_gpu = torch.cuda.is_available() or torch.xpu.is_available()
    launched = place().world_size > 1
    mixed_precision = "no" if mixed_precision == "fp16" else mixed_precision
    _forget_precision(mixed_precision)
    if trackers is None:
        trackers = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    known = _known_trackers(trackers) if output is not None else None
    both = launched and has_gpu and not cpu and cpu_offload
    with meeting(PATIENCE) if launched else nullcontext():
        if both and not torch.distributed.is_initialized():  # NCCL for the GPU and gloo for the CPU
            torch.distributed.init_process_group(None, timeout=PATIENCE)
        return Accelerator(
            mixed_precision=mixed_precision,
            # without it Accelerate takes the processes on a machine without a GPU for strangers
            cpu=cpu or (launched and not has_gpu),
            log_with=known,
            project_dir=None if output is None else str(output),
            # no collective operation in a forward pass, of which there may be several before a backward one
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )


def _forget_precision(mixed_precision: str) -> None:
    """Lets a process that has trained in one precision train in another one: Accelerate remembers the first."""
    known = AcceleratorState._shared_state.get("_mixed_precision")
    if known is not None and known != mixed_precision and place().world_size == 1:
        AcceleratorState._reset_state()  # it has no public way


def _known_trackers(names: Sequence[str]) -> list[Any]:
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = [str(tracker) for tracker in LOGGER_TYPE_TO_CLASS]
            raise ValueError(f"there is no tracker {name!r}; {nearest(name, known)}")
        if name not in available:
            raise ValueError(
                f"the tracker {name!r} is not installed; `pip install {name.replace('_', '-')}`, or leave it "
                "out of the recipe's trackers."
            )
    return list(names)


class RunLog:
    """Averages the terms between two lines on their device, and fetches them only for a line.

    All processes record; the main one writes, and averages their means.

    Args:
        file: `log.jsonl`; lines of steps after `step` (of a run that was killed) are dropped. None writes nothing.
        accelerator: whose trackers get the same numbers; they are started here.
        every: steps between lines.
        stage: number of the stage.
        step: steps that are done.
        state: `to_plain` of the log that goes on here.
    """

    def __init__(
        self,
        file: Path | None,
        accelerator: Accelerator,
        every: int,
        stage: int,
        step: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._file = file
        self._accelerator = accelerator
        self._every = every
        state = state or {"sums": {}, "counts": {}, "last": {}}
        self._sums: dict[str, Tensor] = {
            name: torch.tensor(value, device=accelerator.device)
            for name, value in state["sums"].items()
        }
        self._counts: dict[str, int] = dict(state["counts"])
        self._last: dict[str, float] = dict(state["last"])
        self._samples = 0
        self._since = time.perf_counter()
        if file is not None and accelerator.is_main_process:
            file.parent.mkdir(parents=True, exist_ok=True)
            _keep_until(file, stage, step)
        if accelerator.log_with and not accelerator.trackers:
            accelerator.init_trackers("logs")

    def to_plain(self) -> dict[str, object]:
        """What is not written yet, the mean over the processes, for a checkpoint; all processes must call it."""
        sums = _mean(
            [json.loads(t) for t in gather_text(self._accelerator, json.dumps(fetch(self._sums)))]
        )
        return {"sums": sums, "counts": dict(self._counts), "last": dict(self._last)}

    def record(self, state: State) -> dict[str, object] | None:
        """Takes a step in; writes and returns a line every so often, at the last step and at a skipped one."""
        self._samples += state.num_samples
        if not state.skipped:
            for name, value in state.parts.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
                self._counts[name] = self._counts.get(name, 0) + 1
        if state.step % self._every == 0 or state.step == state.steps or state.skipped:
            return self._write(state)
        return None

    def _write(self, state: State) -> dict[str, object]:
        now = time.perf_counter()
        mine = fetch({n: v / self._counts[n] for n, v in self._sums.items()})
        values = _mean([json.loads(t) for t in gather_text(self._accelerator, json.dumps(mine))])
        values |= {f"{role}/learning_rate": rate for role, rate in state.learning_rates.items()}
        values = self._last = self._last | values  # of a role that was not active: what it was last
        values["samples_per_second"] = self._samples / max(now - self._since, 1e-9)
        line: dict[str, object] = {"stage": state.stage, "step": state.step, **values}
        if state.skipped:
            line["skipped"] = state.skipped
        self._append(line)
        self._track(state, values)
        self._sums, self._counts, self._samples, self._since = {}, {}, 0, now
        return line

    def alarm(self, state: State, alarm: Alarm) -> None:
        """Writes a line with an alarm."""
        line = {"alarm": alarm.kind, "message": alarm.message}
        self._append({"stage": state.stage, "step": state.step, **line})

    def evaluation(self, state: State, found: Mapping[str, float]) -> None:
        """Writes a line with what an evaluation after a step has found."""
        values = {f"evaluation/{name}": value for name, value in found.items()}
        self._append({"stage": state.stage, "step": state.step, **values})
        self._track(state, values)

    def _append(self, line: Mapping[str, object]) -> None:
        if self._file is not None and self._accelerator.is_main_process:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")

    def _track(self, state: State, values: Mapping[str, float]) -> None:
        self._accelerator.log(
            {f"stage-{state.stage}/{k}": v for k, v in values.items()}, step=state.step
        )


def _mean(found: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each number over the processes that have it."""
    names = dict.fromkeys(name for numbers in found for name in numbers)
    having = {name: [numbers[name] for numbers in found if name in numbers] for name in names}
    return {name: sum(values) / len(values) for name, values in having.items()}


def fetch(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars on a device -> numbers, in one transfer."""
    if not values:
        return {}
    stacked = torch.stack([value.float() for value in values.values()])
    return dict(zip(values, stacked.tolist(), strict=True))


def with_progress(states: Iterator[State], show: bool | None = None) -> Iterator[State]:
    """Passes states on and shows them as a progress bar: losses, samples a second, time left.

    Args:
        states: from `Trainer.fit()`.
        show: a bar on a terminal, else a line now and then (`nitrodistill.progress`); None is what the first of
            several processes does.

    Example:
        >>> recipe = nd.demo.toy_recipe("pairs", "runs/progress", steps=1, batch_size=2)
        >>> len(list(nd.training.with_progress(nd.training.run_recipe(recipe, teacher), show=False)))
        1
    """
    from nitrodistill.progress import progress_bar

    show = place().rank == 0 if show is None else show
    for stage, group in groupby(states, key=lambda state: state.stage):
        with progress_bar(desc=f"stage {stage}", unit="step", show=show) as bar:
            shown = 0.0
            for state in group:
                if bar.total is None:
                    bar.total = state.steps
                    bar.initial = bar.n = bar.last_print_n = state.step - 1
                if show and time.monotonic() - shown > 1:
                    shown = time.monotonic()
                    losses = {role: f"{loss:.3g}" for role, loss in state.totals().items()}
                    rate = {"samples/s": f"{state.num_samples / state.seconds:.0f}"}
                    bar.set_postfix(losses | rate, refresh=False)
                bar.update()
                yield state


def _keep_until(file: Path, stage: int, step: int) -> None:
    """Drops the lines after (stage, step), and those that are torn, with a warning."""
    if not file.is_file():
        return
    lines = read_lines(file, "stage", "step")
    kept = [json.dumps(line) for line in lines if (line["stage"], line["step"]) <= (stage, step)]
    write_text(file, "".join(f"{text}\n" for text in kept))
