"""Which checkpoint is the best so far, by one number of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

from nitrodistill.settings import nearest

BestIs = Literal["lowest", "highest"]


@dataclass(frozen=True)
class Best:
    """The best evaluation of a stage.

    Attributes:
        metric: what was compared.
        value: of it.
        step: after which.

    Example:
        >>> nd.training.Best("fd", 12.5, 400).value
        12.5
    """

    metric: str
    value: float
    step: int

    @classmethod
    def after(
        cls,
        before: Best | None,
        metric: str,
        best_is: BestIs,
        step: int,
        found: Mapping[str, float],
    ) -> Best | None:
        """The better of `before` and what was found at `step`; the earlier if equal; what is not finite never.

        Raises:
            ValueError: if the evaluation has no such metric; the nearest name is shown.
        """
        if metric not in found:
            raise ValueError(
                f"best_metric is {metric!r}, which the evaluation does not return; {nearest(metric, found)}"
            )
        value = float(found[metric])
        sign = 1 if best_is == "lowest" else -1
        if not math.isfinite(value) or (before is not None and sign * value >= sign * before.value):
            return before
        return cls(metric, value, step)

    def to_plain(self) -> dict[str, object]:
        """What JSON can hold."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: object, metric: str) -> Best | None:
        """The reverse; None if nothing was compared, or another metric."""
        if not isinstance(data, Mapping) or data.get("metric") != metric:
            return None
        return cls(**{f.name: data[f.name] for f in fields(cls)})
