"""State: what a step of the trainer did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from nitrodistill.training.alarms import Alarm
from nitrodistill.training.log import fetch


@dataclass(frozen=True)
class State:
    """What a step did.

    Attributes:
        stage: number of the recipe's stage.
        step: steps done, this one included.
        steps: steps in all.
        active: the roles that were updated.
        skipped: why the step was skipped, else empty.
        parts: "role/term" -> mean over the step's samples in this process, a scalar on the device;
            "role/total" and "role/grad_norm" (before clipping) are among them, and in steps that are logged
            "role/changed", the share of its weights that the update changed at all.
        learning_rates: role -> its learning rate in this step.
        num_samples: samples in this step, over all processes.
        seconds: duration of the step.
        data_seconds: of which was waited for data.
        last_totals: role -> its loss, at the last step at which it was active.
        evaluation: what an evaluation found after this step, empty if there was none.
        alarms: what the log says has gone wrong, found after this step.
        stopped: the signal that ended the run after this step, and all is saved then; "alarm" if an alarm did, and
            nothing is saved on top of what was before; else empty.

    Example:
        >>> recipe = nd.demo.toy_recipe("pairs", "runs/state", steps=2, batch_size=2)
        >>> [state.step for state in nd.training.run_recipe(recipe, teacher)]
        [1, 2]
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
    last_totals: Mapping[str, Tensor] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()
    stopped: str = ""

    def metrics(self) -> dict[str, float]:
        """All `parts` as numbers; waits for the device."""
        return fetch(self.parts)

    def totals(self) -> dict[str, float]:
        """Each role's last loss as a number; waits for the device."""
        return fetch(self.last_totals)
