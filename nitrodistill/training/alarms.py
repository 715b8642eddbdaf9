"""Alarms: what the lines of a run's log say has gone wrong, and the setting that is likely to mend it.

A pure state machine over those lines: equal lines give equal alarms, in every process and after a resumption. It
reads what any method's log has (`x0/...` of `training.probe`, the student's total) and what a method with a
discriminator puts into its Terms (`diagnostics.logit_statistics`, `advantage`). A symptom must last for a window of
steps, whose mean counts, and where the start of a run looks the same (a student that draws a constant at first, a
discriminator that has not learnt yet) for two. Each alarm goes off once in a run. docs/when_training_fails.md has
the symptoms, and how often they were right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

COLLAPSED = 0.5
"""Of the reference's spread or variety: below is a collapse, if it does not recover."""

RECOVERING = 1.1
"""Growth of the spread, from one window to the next, that is no collapse yet."""

LOST = 0.5
"""Of its own best so far: below, the effect of noise or of the prompt is lost."""

SATURATED = 0.05
"""Share of values outside of the reference's range; few samples of a faithful student have below 0.01."""

DRIFTED = 0.3
"""Growth of the drift over its lowest; the drift is the largest log std.c or |mean.c| over the channels."""

CHANCE_ADVANTAGE, CHANCE_ACCURACY = 0.02, 0.54
"""A discriminator at chance has less of both: 1 - loss / its value at chance, and the mean accuracy."""

CERTAIN = 0.9
"""Advantage above which a discriminator is certain of everything, and what it says has no slope."""

_ENDINGS = ("/total", "/accuracy_real", "/accuracy_fake", "/advantage")


@dataclass(frozen=True)
class Alarm:
    """What has gone wrong.

    Attributes:
        kind: "not_finite", "collapse", "lost_prompt", "lost_noise", "saturated", "over_baked", "diverged",
            "chance" or "certain".
        step: after which it was found.
        message: one sentence: the numbers, and the settings to change.
    """

    kind: str
    step: int
    message: str


class Alarms:
    """Reads the lines of a stage's log, one after the other.

    Args:
        window: steps over which a symptom must last.
        state: `to_plain` of an earlier one, to go on from.
    """

    def __init__(self, window: int, state: object = None) -> None:
        plain: Mapping[str, Any] = state if isinstance(state, Mapping) else {}
        self.window = window
        self._lines: list[dict[str, float]] = [dict(line) for line in plain.get("lines", [])]
        self._since: dict[str, int] = dict(plain.get("since", {}))
        self._marks: dict[str, float] = dict(plain.get("marks", {}))
        self._fired: dict[str, int] = dict(plain.get("fired", {}))

    def to_plain(self) -> dict[str, object]:
        """What JSON can hold, for a checkpoint."""
        return {
            "lines": self._lines,
            "since": self._since,
            "marks": self._marks,
            "fired": self._fired,
        }

    def calm(self, step: int) -> int:
        """The last step before the trouble: a window before the first alarm, or before `step` if none was."""
        return min([step, *self._fired.values()]) - self.window

    def read(self, line: Mapping[str, object]) -> list[Alarm]:
        """The alarms that go off with this line: `step`, and numbers by name. A skipped step says nothing."""
        step = line["step"]
        assert isinstance(step, int)
        if "skipped" in line:
            return []
        values = {
            name: float(value)
            for name, value in line.items()
            if isinstance(value, (int, float))
            and (name.startswith("x0/") or name.endswith(_ENDINGS))
        }
        self._lines = [old for old in self._lines if old["step"] > step - 2 * self.window]
        self._lines.append({"step": step, **values})
        for name in values:
            self._since.setdefault(name, step)
        found = [
            Alarm(kind, step, f"step {step}: {message}")
            for kind, symptom in _SYMPTOMS.items()
            if kind not in self._fired and (message := symptom(self))
        ]
        self._fired |= {alarm.kind: step for alarm in found}
        return found

    def mean(self, name: str, ago: int = 0) -> float | None:
        """Of the last window, or of the one before (`ago=1`); None where the log does not cover it."""
        end = int(self._lines[-1]["step"]) - ago * self.window
        if self._since.get(name, end) > end - self.window:
            return None
        rows = (line for line in self._lines if end - self.window < line["step"] <= end)
        values = [line[name] for line in rows if name in line]
        return sum(values) / len(values) if values else None

    def last(self) -> Mapping[str, float]:
        """The numbers of the last line."""
        return self._lines[-1]

    def means(self, start: str, ago: int = 0) -> list[float]:
        """The means of all names that begin so; an empty list where one is not covered."""
        found = [self.mean(name, ago) for name in self._since if name.startswith(start)]
        known = [value for value in found if value is not None]
        return known if len(known) == len(found) else []

    def roles(self, ending: str) -> list[str]:
        """The roles with a number of that name."""
        return [n.removesuffix(f"/{ending}") for n in self._since if n.endswith(f"/{ending}")]

    def highest(self, name: str, value: float) -> float:
        """The highest value under a name so far, this one included."""
        self._marks[name] = max(value, self._marks.get(name, -math.inf))
        return self._marks[name]

    def at_lowest(self, name: str, value: float, other: float) -> tuple[float, float]:
        """The lowest value under a name so far, and what `other` was then."""
        if value <= self._marks.get(name, math.inf):
            self._marks |= {name: value, f"{name}/other": other}
        return self._marks[name], self._marks[f"{name}/other"]


def _not_finite(log: Alarms) -> str:
    bad = [name for name, value in log.last().items() if not math.isfinite(value)]
    return f"{bad[0]} is not finite; lower the learning rates, or check the data." if bad else ""


def _collapse(log: Alarms) -> str:
    for what, names in (("spread", "x0/std."), ("variety", "x0/variety")):
        now, before = log.means(names), log.means(names, 1)
        if now and before and min(now) < COLLAPSED and min(now) <= RECOVERING * min(before):
            return (
                f"the student has collapsed: the {what} of its latents is {min(now):.2f} of the teacher's over "
                f"{log.window} steps, and not rising; {_gentler(log)}."
            )
    return ""


def _lost(name: str, what: str, remedy: str) -> Callable[[Alarms], str]:
    def symptom(log: Alarms) -> str:
        now = log.mean(name)
        if now is None:
            return ""
        best = log.highest(name, now)
        if best < 0.1 or now >= LOST * best:
            return ""
        return (
            f"{what} changes the student's latents by {now:.2f}, where it was {best:.2f}; {remedy}."
        )

    return symptom


def _saturated(log: Alarms) -> str:
    now, before = log.mean("x0/saturated"), log.mean("x0/saturated", 1)
    if now is None or now < SATURATED or (before is not None and now < before / RECOVERING):
        return ""
    return (
        f"{100 * now:.0f} % of the student's values lie outside of the teacher's range over {log.window} steps; "
        f"{_gentler(log)}."
    )


def _drift(log: Alarms) -> tuple[float, float, float, float] | None:
    """Drift and the student's total now; the lowest drift so far, and the total then."""
    spreads, shifts, total = (
        log.means("x0/std."), log.means("x0/mean."), log.mean("student/total"),
    )  # fmt: skip
    if not spreads or not shifts or total is None or min(spreads) <= 0:
        return None
    drift = max(*(math.log(s) for s in spreads), *(abs(m) for m in shifts))
    lowest, then = log.at_lowest("drift", drift, total)
    return (drift, total, lowest, then) if drift > lowest + DRIFTED else None


def _over_baked(log: Alarms) -> str:
    found = _drift(log)
    if found is None or found[1] > found[3]:
        return ""
    drift, total, lowest, then = found
    return (
        f"the student is over-baked: its statistics left the teacher's (drift {lowest:.2f} -> {drift:.2f}) while "
        f"its loss did not rise ({then:.3g} -> {total:.3g}); {_gentler(log, 'lower the guidance')}."
    )


def _diverged(log: Alarms) -> str:
    found = _drift(log)
    if found is None or found[1] <= found[3]:
        return ""
    drift, total, lowest, then = found
    return (
        f"the student diverges: its statistics leave the teacher's (drift {lowest:.2f} -> {drift:.2f}) and its "
        f"loss rises ({then:.3g} -> {total:.3g}); lower optimizers.student.learning_rate, or {_gentler(log)}."
    )


def _chance(log: Alarms) -> str:
    for role in log.roles("accuracy_real"):
        accuracy = [_accuracy(log, role, ago) for ago in (0, 1)]
        gain = [log.mean(f"{role}/advantage", ago) for ago in (0, 1)]
        if any(a is None or abs(a - 0.5) > CHANCE_ACCURACY - 0.5 for a in accuracy):
            continue
        if any(a is not None and a > CHANCE_ADVANTAGE for a in gain):
            continue
        return (
            f"{role} is at chance: over {2 * log.window} steps it is right in {100 * (accuracy[0] or 0):.0f} % and "
            f"says nothing to the student; raise optimizers.{role}.learning_rate, let it look at lower noise "
            "(its timesteps) or through other taps, or show it fresh noise and larger batches."
        )
    return ""


def _certain(log: Alarms) -> str:
    for role in log.roles("accuracy_real"):
        gain = [log.mean(f"{role}/advantage", ago) for ago in (0, 1)]
        accuracy = [_accuracy(log, role, ago) for ago in (0, 1)]
        if all(a is not None and a > CERTAIN for a in (*gain, *accuracy)):
            return (
                f"{role} is too strong: over {2 * log.window} steps it is right in "
                f"{100 * (accuracy[0] or 0):.0f} %; lower optimizers.{role}.learning_rate, add a penalty, or let it look at higher noise."
            )
    return ""


def _accuracy(log: Alarms, role: str, ago: int) -> float | None:
    sides = [log.mean(f"{role}/accuracy_{side}", ago) for side in ("real", "fake")]
    known = [side for side in sides if side is not None]
    return sum(known) / 2 if len(known) == 2 else None


def _gentler(log: Alarms, first: str = "") -> str:
    """What makes the student's training gentler, by the roles that it trains against."""
    judges = log.roles("accuracy_real")
    critics = [role for role in log.roles("total") if role not in (*judges, "student")]
    advice = [first] if first and critics else []
    for role in critics:
        advice.append(
            f"give {role} more updates for one of the student's and another learning rate "
            f"(optimizers.{role}.learning_rate), and start from a warm-up on pairs or keep a regression on them"
        )
    for role in judges:
        advice.append(
            f"lower adversarial_weight or optimizers.{role}.learning_rate, or take larger batches"
        )
    return "; ".join(advice) or "lower optimizers.student.learning_rate"


_SYMPTOMS: Mapping[str, Callable[[Alarms], str]] = {
    "not_finite": _not_finite,
    "collapse": _collapse,
    "lost_prompt": _lost(
        "x0/prompt_effect",
        "the prompt",
        "show the discriminator misaligned negatives, or keep a reconstruction term",
    ),
    "lost_noise": _lost(
        "x0/diversity",
        "the noise",
        "lower the reconstruction's weight, or give the adversarial term fresh noise",
    ),
    "saturated": _saturated,
    "over_baked": _over_baked,
    "diverged": _diverged,
    "chance": _chance,
    "certain": _certain,
}
