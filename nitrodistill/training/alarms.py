"""Alarms: what the lines of a run's log say has gone wrong, and the setting that is likely to mend it.

A pure state machine over those lines: equal lines give equal alarms, in every process and after a resumption. It
reads what any method's log has (`x0/...` of `training.probe`, the student's total) and what a method with a
discriminator or a critic puts into its Terms (`diagnostics.logit_statistics`, `advantage`; `signal`). A symptom
must last for a window of steps, whose mean counts, and where the start of a run looks the same (a student that
draws a constant at first, a discriminator that has not learnt yet) for two. Each alarm goes off once in a run.
docs/when_training_fails.md has the symptoms, and how often they were right.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nitrodistill.checks import check_whole

COLLAPSED = 0.5
"""Of the reference's spread or variety: below is a collapse, if it does not recover."""

RECOVERING = 1.1
"""Growth of the spread, from one window to the next, that is no collapse yet."""

LAGGING, AWAY = 0.35, 0.5
"""Of what a critic says against the teacher, less than this is true, while the student is away from the teacher:
the log of a spread or of the variety, or a mean, is beyond that."""

LOST = 0.5
"""Of its own best so far: below, the effect of noise or of the prompt is lost."""

SATURATED = 0.05
"""Share of values outside of the reference's range; few samples of a faithful student have below 0.01."""

DRIFTED = 0.3
"""Growth of the drift over its lowest; the drift is the largest log std.c or |mean.c| over the channels."""

CHANCE_ADVANTAGE, CHANCE_ACCURACY = 0.02, 0.54
"""A discriminator at chance has less of both: 1 - loss / its value at chance, and the mean accuracy."""

SLIGHT, SURE = 0.005, 4.0
"""An advantage over one window or two that is above the first, and above 0 by so many standard errors of its
lines, is no chance, however small: the student learns from it."""

SWING = 0.08
"""Range of the advantage within two windows, above which a discriminator at chance is unstable and not weak."""

CERTAIN = 0.9
"""Advantage above which a discriminator is certain of everything, and what it says has no slope."""

_ENDINGS = ("/total", "/signal", "/accuracy_real", "/accuracy_fake", "/advantage")
_SAYS = {
    "not_finite": "{name} is not finite; lower the learning rates, or check the data",
    "collapse": "the student has collapsed: the {what} of its latents is {now:.2f} of the teacher's over {window} "
    "steps, and not rising; {gentler}",
    "lagging": "the critic lags behind the student, which is away from the teacher: over {window} steps {now:.2f} "
    "of what it says is true; {gentler}",
    "lost_prompt": "the prompt changes the student's latents by {now:.2f}, where it was {best:.2f}; show the "
    "discriminator misaligned negatives, or keep a reconstruction term",
    "lost_noise": "the noise changes the student's latents by {now:.2f}, where it was {best:.2f}; lower the "
    "reconstruction's weight, or give the adversarial term fresh noise",
    "saturated": "{now:.0%} of the student's values lie outside of the teacher's range over {window} steps; "
    "{gentler}",
    "over_baked": "the student is over-baked: its statistics left the teacher's (drift {lowest:.2f} -> "
    "{drift:.2f}) while its loss did not rise ({then:.3g} -> {total:.3g}); lower the guidance, if there is any, "
    "or {gentler}",
    "diverged": "the student diverges: its statistics leave the teacher's (drift {lowest:.2f} -> {drift:.2f}) and "
    "its loss rises ({then:.3g} -> {total:.3g}); lower optimizers.student.learning_rate, or {gentler}",
    "chance": "{role} is at chance: over two times {window} steps it is right in {right:.0%} and says nothing to "
    "the student; raise optimizers.{role}.learning_rate, let it look at lower noise (its timesteps) or through "
    "other taps, or show it fresh noise and larger batches; if it stays there, train without it "
    "(adversarial_weight 0), or by balanced, which then leaves the student alone",
    "unstable": "{role} is at chance and swings: over two times {window} steps it is right in {right:.0%}, its "
    "advantage lies between {low:.2f} and {high:.2f}; lower optimizers.{role}.learning_rate, add a penalty, or "
    "take larger batches",
    "certain": "{role} is too strong: over two times {window} steps it is right in {right:.0%}; lower "
    "optimizers.{role}.learning_rate, add a penalty, or let it look at higher noise",
}
_Symptoms = Iterator[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Alarm:
    """What has gone wrong.

    Attributes:
        kind: "not_finite", "collapse", "lagging", "lost_prompt", "lost_noise", "saturated", "over_baked",
            "diverged", "chance", "unstable" or "certain".
        step: after which it was found.
        message: one sentence: the numbers, and the settings to change.

    Example:
        >>> nd.training.Alarm("plateau", 300, "the loss has not moved").kind
        'plateau'
    """

    kind: str
    step: int
    message: str


class Alarms:
    """Reads the lines of a stage's log, one after the other.

    Args:
        window: steps over which a symptom must last.
        state: `to_plain` of an earlier one, to go on from.

    Example:
        >>> alarms = nd.training.Alarms(window=50)
    """

    def __init__(self, window: int, state: object = None) -> None:
        plain: Mapping[str, Any] = state if isinstance(state, Mapping) else {}
        self.window: int = check_whole("window", window)
        self._lines: list[dict[str, float]] = list(plain.get("lines", []))
        self._since: dict[str, int] = dict(plain.get("since", {}))  # name -> step of its first line
        self._marks: dict[str, float] = dict(plain.get("marks", {}))  # the best so far
        self._fired: dict[str, int] = dict(plain.get("fired", {}))  # kind -> step

    def to_plain(self) -> dict[str, object]:
        """What JSON can hold, for a checkpoint."""
        names = ("lines", "since", "marks", "fired")
        return {name: getattr(self, f"_{name}") for name in names}

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
        kept = [old for old in self._lines if old["step"] > step - 2 * self.window]
        self._lines = [*kept, {"step": step, **values}]
        self._since = dict.fromkeys(values, step) | self._since
        found = []
        for kind, numbers in (*self._of_student(values), *self._of_discriminators()):
            if kind not in self._fired:
                self._fired[kind] = step
                says = _SAYS[kind].format(**numbers, window=self.window, gentler=self._gentler())
                found.append(Alarm(kind, step, f"step {step}: {says}."))
        return found

    def _of_student(self, values: Mapping[str, float]) -> _Symptoms:
        for name in (name for name, value in values.items() if not math.isfinite(value)):
            yield "not_finite", {"name": name}
        for what, names in (("spread", "x0/std."), ("variety", "x0/variety")):
            now, before = self._lowest(names), self._lowest(names, 1)
            if now < COLLAPSED and now <= RECOVERING * before:
                yield "collapse", {"what": what, "now": now}
        now = self._mean("student/signal")
        if now < LAGGING and self._away() > AWAY:
            yield "lagging", {"now": now}
        for kind, name in (("lost_prompt", "x0/prompt_effect"), ("lost_noise", "x0/diversity")):
            now, best = self._mean(name), self._marks.get(name, math.nan)
            if now >= 0.1 and not now <= best:
                self._marks[name] = now
            if now < LOST * best:
                yield kind, {"now": now, "best": best}
        now, before = self._mean("x0/saturated"), self._mean("x0/saturated", 1)
        if now >= SATURATED and not now < before / RECOVERING:
            yield "saturated", {"now": now}
        yield from self._drift()

    def _away(self) -> float:
        spreads = [*self._means("x0/std."), *self._means("x0/variety")]
        logs = [math.log(max(spread, 1e-9)) for spread in spreads]
        return max((abs(value) for value in (*logs, *self._means("x0/mean."))), default=math.nan)

    def _drift(self) -> _Symptoms:
        spreads, shifts = self._means("x0/std."), self._means("x0/mean.")
        total = self._mean("student/total")
        if not spreads or min(spreads) <= 0 or not math.isfinite(total):
            return
        drift = max(math.log(max(spreads)), *(abs(shift) for shift in shifts))
        if drift <= self._marks.get("drift", math.inf):
            self._marks |= {"drift": drift, "total": total}
        lowest, then = self._marks["drift"], self._marks["total"]
        if drift > lowest + DRIFTED:
            kind = "over_baked" if total <= then else "diverged"
            yield kind, {"drift": drift, "lowest": lowest, "total": total, "then": then}

    def _of_discriminators(self) -> _Symptoms:
        for role in self._roles("accuracy_real"):
            now, before = (
                (
                    self._mean(f"{role}/accuracy_real", ago)
                    + self._mean(f"{role}/accuracy_fake", ago)
                )
                / 2
                for ago in (0, 1)
            )
            known = f"{role}/advantage" in self._since  # a method may not say
            gain = [self._mean(f"{role}/advantage", ago) if known else 0.0 for ago in (0, 1)]
            half = [abs(share - 0.5) <= CHANCE_ACCURACY - 0.5 for share in (now, before)]
            found = {"chance", "unstable"} & self._fired.keys()
            if not found and all(half) and all(value <= CHANCE_ADVANTAGE for value in gain):
                last = self._values(f"{role}/advantage")
                both = [*self._values(f"{role}/advantage", 1), *last]
                low, high = min(both, default=0.0), max(both, default=0.0)
                if not (_surely_slight(last) or _surely_slight(both)):
                    kind = "unstable" if high - low > SWING else "chance"
                    yield kind, {"role": role, "right": now, "low": low, "high": high}
            if all(value > CERTAIN for value in (*gain, now, before)):
                yield "certain", {"role": role, "right": now}

    def _mean(self, name: str, ago: int = 0) -> float:
        """Of the last window, or of the one before (`ago=1`); NaN, of which nothing follows, if not covered."""
        values, end = self._values(name, ago), self._lines[-1]["step"] - ago * self.window
        covered = values and self._since[name] <= end - self.window
        return sum(values) / len(values) if covered else math.nan

    def _values(self, name: str, ago: int = 0) -> list[float]:
        """Those of the last window's lines, or of the one before (`ago=1`)."""
        end = self._lines[-1]["step"] - ago * self.window
        rows = (line for line in self._lines if end - self.window < line["step"] <= end)
        return [line[name] for line in rows if name in line]

    def _means(self, start: str, ago: int = 0) -> list[float]:
        """Of all names that begin so; nothing if one is not covered, or not finite."""
        found = [self._mean(name, ago) for name in self._since if name.startswith(start)]
        return found if all(math.isfinite(value) for value in found) else []

    def _lowest(self, start: str, ago: int = 0) -> float:
        return min(self._means(start, ago), default=math.nan)

    def _roles(self, ending: str) -> list[str]:
        return [n.removesuffix(f"/{ending}") for n in self._since if n.endswith(f"/{ending}")]

    def _gentler(self) -> str:
        """What makes the student's training gentler, by the roles that it trains against."""
        discriminators = self._roles("accuracy_real")
        critics = [r for r in self._roles("total") if r not in (*discriminators, "student")]
        advice = [
            f"give {role} more updates for one of the student's, or lower optimizers.student.learning_rate, or "
            "keep a regression on pairs"
            for role in critics
        ]
        advice += [
            f"lower adversarial_weight or optimizers.{role}.learning_rate, or take larger batches"
            for role in discriminators
        ]
        return "; ".join(advice) or "lower optimizers.student.learning_rate"


def _surely_slight(advantages: Sequence[float]) -> bool:
    """Whether a discriminator knows a little, so that it is not chance."""
    if len(advantages) < 4:
        return False
    mean, error = statistics.mean(advantages), statistics.stdev(advantages) / len(advantages) ** 0.5
    return mean > max(SLIGHT, SURE * error)
