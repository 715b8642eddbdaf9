"""Laws of the timestep, in `u` in [0, 1], the fraction of the way from data to noise.

A law is a function from a uniform draw to `u` (the inverse of its cumulative distribution), so that it
holds no randomness of its own: `u = law(draws.uniform("t"))`, then `t = schedule.timestep(u)`.

On a discrete schedule of T timesteps, `t = floor(u T)`: `Uniform()` draws each of them equally often, as `randint`
does, and `Uniform(((0, 0.75),))` each of 0 to 0.75 T - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from nitrodistill.checks import check_finite, check_fraction, check_numbers, check_positive
from nitrodistill.named import build, check_settings, one_name, pick_class


@runtime_checkable
class TimestepLaw(Protocol):
    """Maps uniform draws in [0, 1) to fractions `u` in [0, 1], element by element.

    Example:
        >>> law = nd.named_law({"logit_normal": {"std": 0.5}})
        >>> law(torch.tensor([0.5]))
        tensor([0.5000])
    """

    def __call__(self, r: Tensor) -> Tensor:
        """The fractions `u` for uniform draws `r`, of the same shape."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Uniform on one range of `u`, or on the union of several.

    Args:
        ranges: pairs (low, high) with 0 <= low <= high <= 1, in rising order; each is drawn in proportion to its
            length (a range of length 0 is a single point, allowed only alone).

    Raises:
        ValueError: if a range leaves [0, 1] or the ranges overlap.

    Example:
        >>> nd.Uniform(((0.0, 0.2), (0.8, 1.0)))(torch.tensor([0.25, 0.75]))
        tensor([0.1000, 0.9000])
    """

    ranges: tuple[tuple[float, float], ...] = ((0.0, 1.0),)

    def __post_init__(self) -> None:
        pairs = isinstance(self.ranges, tuple | list) and all(
            isinstance(pair, tuple | list) and len(pair) == 2 for pair in self.ranges
        )
        if not pairs:
            raise ValueError(f"ranges is {self.ranges!r}; give pairs (low, high).")
        edges = [check_finite("an edge of ranges", edge) for pair in self.ranges for edge in pair]
        if not edges or edges != sorted(edges) or edges[0] < 0 or edges[-1] > 1:
            raise ValueError(
                f"ranges is {self.ranges}; give pairs (low, high) with 0 <= low <= high <= 1 that "
                "rise and do not overlap."
            )

    def __call__(self, r: Tensor | float) -> Tensor:
        """Walks the union of the ranges: `r` of its total length."""
        r = check_fraction("r", r)
        left = r * sum(high - low for low, high in self.ranges)
        u = torch.full_like(left, self.ranges[0][0])
        for low, high in self.ranges:
            u = torch.where(left < 0, u, low + left.clamp(max=high - low))
            left = left - (high - low)
        return u


@dataclass(frozen=True)
class LogitNormal:
    """`u = sigmoid(mean + std z)` with z normal (Esser et al. 2024, section 3.1).

    Args:
        mean: location in logits; positive favours noise.
        std: spread in logits.

    Raises:
        ValueError: if `std` is not positive.

    Example:
        >>> nd.LogitNormal(mean=0.0, std=1.0)(0.5)
        tensor(0.5000, dtype=torch.float64)
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_finite("mean", self.mean)
        check_positive("std", self.std)

    def __call__(self, r: Tensor | float) -> Tensor:
        """The quantile function at `r`."""
        r = check_fraction("r", r)
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(r))


@dataclass(frozen=True)
class Shifted:
    """Another law, shifted towards noise: `u = shift v / (1 + (shift - 1) v)`, v from `law`.

    Args:
        shift: larger than 1 favours noise, as higher resolutions want; 1 changes nothing.
        law: the law that is shifted.

    Raises:
        ValueError: if `shift` is not positive.

    Example:
        >>> nd.Shifted(3.0)(0.5)
        tensor(0.7500, dtype=torch.float64)
    """

    shift: float
    law: TimestepLaw = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        check_positive("shift", self.shift)

    def __call__(self, r: Tensor | float) -> Tensor:
        """The shifted quantile at `r`."""
        v = self.law(check_fraction("r", r))
        return self.shift * v / (1 + (self.shift - 1) * v)


@dataclass(frozen=True)
class Karras:
    """The ratio of noise to signal on the grid of Karras et al. 2022, eq. 5, for flows.

    `u = ratio / (1 + ratio)`, and `ratio = (low + r (high - low))^rho` with `low = ratio_min^(1 / rho)` and
    `high = ratio_max^(1 / rho)`. Under `RectifiedFlow()`, where sigma / alpha is `u / (1 - u)`, the ratio is EDM's
    sigma. A `KarrasSchedule` is this grid itself: its law is `Uniform()`. EDM's law of training, ln sigma normal,
    is `LogitNormal` here, with the same mean and std.

    Args:
        ratio_min: smallest sigma / alpha.
        ratio_max: largest one.
        rho: larger values favour little noise.

    Raises:
        ValueError: unless 0 < ratio_min < ratio_max and rho > 0.

    Example:
        >>> nd.Karras()(0.5)
        tensor(0.7155, dtype=torch.float64)
    """

    ratio_min: float = 0.002
    ratio_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        for name in ("ratio_min", "ratio_max", "rho"):
            check_positive(name, getattr(self, name))
        if not self.ratio_min < self.ratio_max:
            raise ValueError(
                f"ratio_min is {self.ratio_min} and ratio_max {self.ratio_max}; ratio_min must be the smaller."
            )

    def __call__(self, r: Tensor | float) -> Tensor:
        """The quantile function at `r`."""
        r = check_fraction("r", r)
        low, high = self.ratio_min ** (1 / self.rho), self.ratio_max ** (1 / self.rho)
        ratio = (low + r * (high - low)) ** self.rho
        return ratio / (1 + ratio)


@dataclass(frozen=True)
class Histogram:
    """Bins of equal width over [0, 1], each drawn with its probability, evenly inside.

    `plan.at(Histogram(p)(u))` chooses the steps of a plan with given probabilities, the noisiest first.

    Args:
        weights: one number >= 0 a bin, in proportion to its probability; not all of them 0.

    Raises:
        ValueError: for a negative weight, or none above 0.

    Example:
        >>> nd.Histogram((0.0, 1.0))(torch.tensor([0.0, 0.5]))
        tensor([0.5000, 0.7500])
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not sum(check_numbers("weights", self.weights, zero=True)) > 0:
            raise ValueError(f"weights are {self.weights}; at least one must be above 0.")

    def __call__(self, r: Tensor | float) -> Tensor:
        """The quantile function at `r`."""
        r = check_fraction("r", r)
        weights = torch.tensor(self.weights, dtype=torch.float64, device=r.device)
        share = weights / weights.sum()
        edges = share.cumsum(0)
        wide = r.to(torch.float64)
        last = max(i for i, weight in enumerate(self.weights) if weight > 0)
        # right: a bin of probability 0 is never drawn, and r = 1 falls in the last one that can be
        bins = torch.searchsorted(edges, wide, right=True).clamp(max=last)
        inside = (wide - (edges - share)[bins]) / share[bins]
        return ((bins + inside.clamp(0, 1 - 1e-6)) / len(weights)).to(r.dtype)


def named_law(spec: str | Mapping[str, Any]) -> TimestepLaw:
    """The law that a recipe names.

    Example:
        >>> named_law({"shifted": {"shift": 3, "law": {"uniform": {"ranges": [[0, 0.75]]}}}})
        Shifted(shift=3.0, law=Uniform(ranges=((0.0, 0.75),)))

    Args:
        spec: a law's name, or its name with its settings: `uniform`, `logit_normal`, `shifted`, `karras`,
            `histogram`, or `package.module:Class`.

    Raises:
        ValueError: for an unknown name or setting (shows the nearest), or a wrong value.
    """
    name, settings = one_name(spec, "timestep law")
    laws = (Uniform, LogitNormal, Shifted, Karras, Histogram)
    kind = pick_class(name, laws, TimestepLaw, "timestep law")
    arguments = check_settings(kind, settings, name, nested={TimestepLaw: named_law})
    return build(kind, arguments, name)
