"""The run's log: a line of JSON every few steps, Accelerate's trackers, and a progress bar."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nitrodistill.data.files import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

    from nitrodistill.training.trainer import State

__all__ = ["RunLog", "make_accelerator", "with_progress"]


def make_accelerator(
    mixed_precision: str = "no", output: Path | None = None, cpu: bool = False
) -> Accelerator:
    """An Accelerator that tracks with tensorboard, where that is installed and `output` is given.

    Args:
        mixed_precision: "no" or "bf16".
        output: the run's folder; the tracker writes into its `logs`.
        cpu: stay on the CPU.
    """
    from accelerate import Accelerator

    tracked = output is not None and importlib.util.find_spec("tensorboard") is not None
    return Accelerator(
        mixed_precision=mixed_precision,
        cpu=cpu,
        log_with="tensorboard" if tracked else None,
        project_dir=None if output is None else str(output),
    )


class RunLog:
    """Averages the terms between two lines on their device, and fetches them only for a line.

    Args:
        file: `log.jsonl`; lines of steps after `step` (of a run that was killed) are dropped.
        accelerator: whose trackers get the same numbers; they are started here.
        every: steps between lines.
        stage: number of the stage.
        step: steps that are done.
    """

    def __init__(
        self, file: Path, accelerator: Accelerator, every: int, stage: int, step: int
    ) -> None:
        self._file = file
        self._accelerator = accelerator
        self._every = every
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._samples = 0
        self._since = time.perf_counter()
        _keep_until(file, stage, step)
        if accelerator.log_with and not accelerator.trackers:
            accelerator.init_trackers("logs")

    def record(self, state: State) -> None:
        """Takes a step in, and writes a line every so often, at the last step and at a skipped one."""
        self._samples += state.num_samples
        if not state.skipped:
            for name, value in state.parts.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
                self._counts[name] = self._counts.get(name, 0) + 1
        if state.step % self._every == 0 or state.step == state.steps or state.skipped:
            self._write(state)

    def _write(self, state: State) -> None:
        now = time.perf_counter()
        values = fetch({n: v / self._counts[n] for n, v in self._sums.items()})
        values |= {f"{role}/learning_rate": rate for role, rate in state.learning_rates.items()}
        values["samples_per_second"] = self._samples / max(now - self._since, 1e-9)
        line: dict[str, object] = {"stage": state.stage, "step": state.step, **values}
        if state.skipped:
            line["skipped"] = state.skipped
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self._accelerator.log(
            {f"stage-{state.stage}/{k}": v for k, v in values.items()}, step=state.step
        )
        self._sums, self._counts, self._samples, self._since = {}, {}, 0, now


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
        show: None shows the bar on a terminal only.
    """
    from tqdm import tqdm

    hidden = not sys.stderr.isatty() if show is None else not show
    for stage, group in groupby(states, key=lambda state: state.stage):
        with tqdm(desc=f"stage {stage}", unit="step", disable=hidden) as bar:
            shown = 0.0
            for state in group:
                if bar.total is None:
                    bar.total = state.steps
                    bar.initial = bar.n = bar.last_print_n = state.step - 1
                bar.update()
                if not hidden and time.monotonic() - shown > 1:
                    shown = time.monotonic()
                    losses = {role: f"{loss:.3g}" for role, loss in state.totals().items()}
                    bar.set_postfix(
                        losses | {"samples/s": f"{state.num_samples / state.seconds:.0f}"}
                    )
                yield state


def _keep_until(file: Path, stage: int, step: int) -> None:
    """Drops the lines after (stage, step), and a torn last line."""
    if not file.is_file():
        return
    kept = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if (line["stage"], line["step"]) <= (stage, step):
            kept.append(text + "\n")
    write_text(file, "".join(kept))
