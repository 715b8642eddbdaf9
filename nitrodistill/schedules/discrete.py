"""Discrete variance-preserving schedules: `alpha_t = sqrt(abar_t)`, `sigma_t = sqrt(1 - abar_t)`.

`abar_t = prod_{s<=t} (1 - beta_s)` is what diffusers calls `alphas_cumprod` (Ho et al. 2020, eq. 4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nitrodistill.checks import check_fraction, check_whole, check_within
from nitrodistill.types import Scales

__all__ = ["DiscreteSchedule", "double"]


def double(device: torch.device) -> torch.dtype:
    """float64 where the device has it (Apple's MPS has not), else float32."""
    return torch.float32 if device.type == "mps" else torch.float64


class DiscreteSchedule:
    """A table over integer timesteps 0..T-1, as Stable Diffusion, SDXL, PixArt and DiT use.

    Args:
        alphas_cumprod: `(T,)` with values in [0, 1], strictly decreasing; kept in float64.

    Raises:
        ValueError: if the table is not one-dimensional, shorter than 2, outside [0, 1], or does not
            decrease.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        table = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64).clone()
        check_alphas_cumprod(table)
        self._alphas_cumprod = table
        self._tables: dict[torch.device, Scales] = {}

    @classmethod
    def from_scheduler(cls, scheduler: object) -> DiscreteSchedule:
        """Reads the schedule of any diffusers scheduler that has `alphas_cumprod`.

        Raises:
            TypeError: if it has none (flow-matching and EDM schedulers).
        """
        table = getattr(scheduler, "alphas_cumprod", None)
        if not isinstance(table, Tensor):
            raise TypeError(
                f"{type(scheduler).__name__} has no alphas_cumprod, so it is not a discrete "
                "variance-preserving scheduler; use RectifiedFlow for flow matching (SD3, Flux, "
                "Sana) or KarrasSchedule for EDM."
            )
        return cls(table)

    @property
    def alphas_cumprod(self) -> Tensor:
        """`(T,)` float64 on the CPU; a copy."""
        return self._alphas_cumprod.clone()

    @property
    def num_timesteps(self) -> int:
        """T: timesteps run from 0 to T - 1."""
        return self._alphas_cumprod.shape[0]

    @property
    def prior_scale(self) -> float:
        """1: sampling starts from unit noise, as diffusers' pipelines do."""
        return 1.0

    def __call__(self, t: Tensor) -> Scales:
        """Scales at integer timesteps `t` (any shape), in float64, on `t`'s device."""
        check_within("t", t, 0, self.num_timesteps - 1)
        if t.is_floating_point():
            raise TypeError(
                f"timesteps of a DiscreteSchedule are integers 0..{self.num_timesteps - 1}, got "
                f"{t.dtype}; use schedule.timestep(u) to get them from a fraction u."
            )
        if t.device not in self._tables:
            table = self._alphas_cumprod.to(t.device, double(t.device))
            self._tables[t.device] = Scales(table.sqrt(), (1 - table).sqrt())
        alpha, sigma = self._tables[t.device]
        t = t.long()  # bytes would be a mask
        return Scales(alpha[t], sigma[t])

    def timestep(self, u: Tensor) -> Tensor:
        """The nearest integer timestep to fraction `u`: `round(u (T - 1))`, int64."""
        check_fraction("u", u)
        return (u.to(double(u.device)) * (self.num_timesteps - 1)).round().long()

    def fraction(self, t: Tensor) -> Tensor:
        """`t / (T - 1)`."""
        return t.to(double(t.device)) / (self.num_timesteps - 1)

    def timesteps(self, num_steps: int) -> Tensor:
        """The "trailing" grid of diffusers: `round(T - i T / N) - 1`, int64, noisiest first."""
        check_whole("num_steps", num_steps)
        if num_steps > self.num_timesteps:
            raise ValueError(
                f"num_steps is {num_steps}; a schedule of {self.num_timesteps} timesteps can be "
                f"sampled in 1 to {self.num_timesteps} steps."
            )
        i = torch.arange(num_steps, dtype=torch.float64)
        return (self.num_timesteps - i * (self.num_timesteps / num_steps)).round().long() - 1


def check_alphas_cumprod(table: Tensor) -> None:
    """Raises ValueError unless `table` is a valid `(T,)` schedule of alphas_cumprod."""
    if table.ndim != 1 or table.shape[0] < 2:
        raise ValueError(
            f"alphas_cumprod has shape {tuple(table.shape)}; it must be (T,) with T >= 2."
        )
    if not bool((table >= 0).all() and (table <= 1).all()):
        raise ValueError(
            f"alphas_cumprod runs from {float(table.min()):.4g} to {float(table.max()):.4g}; "
            "every value must be finite and in [0, 1]."
        )
    if not bool((table.diff() < 0).all()):
        raise ValueError(
            "alphas_cumprod must decrease strictly with t; give the cumulative product of "
            "1 - beta_t, not the betas."
        )
