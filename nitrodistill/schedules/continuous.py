"""Continuous schedules: rectified flow (SD3, Flux, Sana) and EDM.

Rectified flow (Liu et al. 2022; Esser et al. 2024):  x_t = (1 - s) x0 + s eps,  s = t / t_max.
EDM (Karras et al. 2022):                             x_t = x0 + sigma eps,      t = sigma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nitrodistill.checks import check_fraction, check_positive, check_whole, check_within
from nitrodistill.schedules.discrete import double
from nitrodistill.types import Scales


@dataclass(frozen=True)
class RectifiedFlow:
    """`alpha = 1 - s`, `sigma = s` with `s = t / t_max`; `t` is what the network is given.

    Its signal-to-noise ratio is 0 at u = 1 by construction, so it never needs ZeroTerminalSNR.

    Args:
        t_max: the network's timestep at pure noise: 1000 for SD3 and Sana, 1 for Flux.
        shift: resolution shift of the grid, `s = shift u / (1 + (shift - 1) u)` (Esser et al. 2024,
            eq. 23); 1 is none. It changes `timestep`, `fraction` and `timesteps`, not the scales.

    Raises:
        ValueError: if either is not positive.

    Example:
        >>> flow = nd.RectifiedFlow(t_max=1.0, shift=3.0)
        >>> flow.timestep(0.5), flow(0.75).sigma
        (tensor(0.7500, dtype=torch.float64), tensor(0.7500, dtype=torch.float64))
    """

    t_max: float = 1000.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        check_positive("t_max", self.t_max)
        check_positive("shift", self.shift)

    @property
    def prior_scale(self) -> float:
        """1: sampling starts from unit noise."""
        return 1.0

    def __call__(self, t: Tensor | float) -> Scales:
        """Scales at timesteps `t` in [0, t_max] (any shape), in float64."""
        t = check_within("t", t, 0, self.t_max)
        sigma = t.to(double(t.device)) / self.t_max
        return Scales(1 - sigma, sigma)

    def timestep(self, u: Tensor | float) -> Tensor:
        """`t_max s(u)` with the shift applied, float64."""
        u = check_fraction("u", u)
        u = u.to(double(u.device))
        return self.t_max * (self.shift * u / (1 + (self.shift - 1) * u))

    def fraction(self, t: Tensor | float) -> Tensor:
        """The inverse of `timestep`."""
        t = check_within("t", t, 0, self.t_max)
        s = t.to(double(t.device)) / self.t_max
        return s / (self.shift - (self.shift - 1) * s)

    def timesteps(self, num_inference_steps: int) -> Tensor:
        """`timestep(1 - i / N)`: from 1 down to 1/N, then shifted, as Flux's pipeline does."""
        return self.timestep(_trailing(num_inference_steps))


@dataclass(frozen=True)
class KarrasSchedule:
    """EDM's schedule: `alpha = 1`, `sigma = t`; the grid is Karras et al. 2022, eq. 5.

    Args:
        sigma_min: smallest noise level, at u = 0.
        sigma_max: largest noise level, at u = 1.
        rho: exponent of the grid.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max and rho > 0.

    Example:
        >>> nd.KarrasSchedule(sigma_max=80.0).timesteps(3)
        tensor([8.0000e+01, 2.5152e+00, 2.0000e-03], dtype=torch.float64)
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        for name in ("sigma_min", "sigma_max", "rho"):
            check_positive(name, getattr(self, name))
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}; they must satisfy "
                "0 < sigma_min < sigma_max."
            )

    @property
    def prior_scale(self) -> float:
        """`sqrt(sigma_max^2 + 1)`, as diffusers' EDM schedulers start; EDM's own code starts from sigma_max."""
        return math.sqrt(self.sigma_max**2 + 1)

    def __call__(self, t: Tensor | float) -> Scales:
        """Scales at noise levels `t` = sigma (any shape), in float64."""
        t = check_within("t", t, 0, math.inf)
        sigma = t.to(double(t.device))
        return Scales(torch.ones_like(sigma), sigma)

    def timestep(self, u: Tensor | float) -> Tensor:
        """`(sigma_min^(1/rho) + u (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho`."""
        u = check_fraction("u", u)
        low, high = self._roots()
        return (low + u.to(double(u.device)) * (high - low)) ** self.rho

    def fraction(self, t: Tensor | float) -> Tensor:
        """The inverse of `timestep`, for the noise levels that it gives."""
        t = check_within("t", t, self.sigma_min, self.sigma_max)
        low, high = self._roots()
        return (t.to(double(t.device)) ** (1 / self.rho) - low) / (high - low)

    def timesteps(self, num_inference_steps: int) -> Tensor:
        """EDM's grid from sigma_max down to sigma_min (for one step: sigma_max alone)."""
        check_whole("num_inference_steps", num_inference_steps)
        return self.timestep(torch.linspace(1, 0, num_inference_steps, dtype=torch.float64))

    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)


def _trailing(num_inference_steps: int) -> Tensor:
    check_whole("num_inference_steps", num_inference_steps)
    return 1 - torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps
