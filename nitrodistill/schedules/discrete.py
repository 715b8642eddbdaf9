"""Discrete variance-preserving schedules: `alpha_t = sqrt(abar_t)`, `sigma_t = sqrt(1 - abar_t)`.

`abar_t = prod_{s<=t} (1 - beta_s)` is what diffusers calls `alphas_cumprod` (Ho et al. 2020, eq. 4).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nitrodistill.checks import check_fraction, check_kind, check_whole, check_within
from nitrodistill.types import Scales


def double(device: torch.device) -> torch.dtype:
    """float64 where the device has it (Apple's MPS has not), else float32."""
    return torch.float32 if device.type == "mps" else torch.float64


_WAY_OUT = " (T,); DiscreteSchedule.from_scheduler reads a diffusers scheduler"


class DiscreteSchedule:
    """A table over integer timesteps 0..T-1, as Stable Diffusion, SDXL, PixArt and DiT use.

    Args:
        alphas_cumprod: `(T,)` with values in [0, 1], strictly decreasing; kept in float64.

    Raises:
        ValueError: if the table is not one-dimensional, shorter than 2, outside [0, 1], or does not
            decrease.

    Example:
        >>> schedule = nd.DiscreteSchedule.from_scheduler(teacher.scheduler)
        >>> schedule, schedule.timesteps(4).tolist()
        (DiscreteSchedule(1000 timesteps, alpha 0.9996 to 0 (zero terminal SNR)), [999, 749, 499, 249])
    """

    def __init__(self, alphas_cumprod: Tensor | Sequence[float]) -> None:
        check_kind("alphas_cumprod", alphas_cumprod, Tensor | np.ndarray | Sequence, _WAY_OUT)
        table = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64).clone()
        check_alphas_cumprod(table)
        self._alphas_cumprod = table
        self._tables: dict[torch.device, Scales] = {}

    @classmethod
    def from_scheduler(cls, scheduler: object) -> DiscreteSchedule:
        """Reads the schedule of any diffusers scheduler that has `alphas_cumprod`.

        Where its last beta is 1 the last value is 0, as the product says: classes that divide by it (Euler, DPM++,
        UniPC) store 2^-24 there, which would make of zero SNR an x0 amplified 4096 times.

        Raises:
            TypeError: if it has none (flow-matching and EDM schedulers), or does not use it (`use_flow_sigmas`).
        """
        table: Any = getattr(scheduler, "alphas_cumprod", None)
        takes = inspect.signature(type(scheduler).__init__).parameters
        flow = "use_flow_sigmas" in takes and scheduler.config.use_flow_sigmas  # type: ignore[attr-defined]
        if flow or not isinstance(table, Tensor):
            raise TypeError(
                f"{type(scheduler).__name__} has no alphas_cumprod{' in use' if flow else ''}, so it is not a "
                "discrete variance-preserving scheduler; use RectifiedFlow for flow matching (SD3, Flux, "
                "Sana) or KarrasSchedule for EDM."
            )
        betas = getattr(scheduler, "betas", None)
        if isinstance(betas, Tensor) and betas[-1] == 1:
            table = torch.cat([table[:-1], torch.zeros_like(table[-1:])])
        return cls(table)

    def __repr__(self) -> str:
        first, last = self._alphas_cumprod[[0, -1]].sqrt().tolist()
        zero = " (zero terminal SNR)" if last == 0 else ""
        return f"DiscreteSchedule({self.num_timesteps} timesteps, alpha {first:.4g} to {last:.4g}{zero})"

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

    def __call__(self, t: Tensor | float) -> Scales:
        """Scales at integer timesteps `t` (any shape), in float64, on `t`'s device."""
        t = check_within("t", t, 0, self.num_timesteps - 1)
        if t.is_floating_point():
            raise TypeError(
                f"timesteps of a DiscreteSchedule are integers 0..{self.num_timesteps - 1}, got "
                f"{t.dtype}; use schedule.timestep(u) to get them from a fraction u."
            )
        if t.device not in self._tables:
            table = self._alphas_cumprod.to(t.device, double(t.device))
            self._tables[t.device] = Scales(table.sqrt(), (1 - table).sqrt())
        alpha, sigma = self._tables[t.device]
        # gathered: an index of -1 would be the last one, on a GPU without a word
        flat = t.long().reshape(-1)
        return Scales(alpha.gather(0, flat).view(t.shape), sigma.gather(0, flat).view(t.shape))

    def timestep(self, u: Tensor | float) -> Tensor:
        """The timestep in whose cell of width 1 / T the fraction `u` in [0, 1] lies: `floor(u T)`, int64.

        At u = 1 it is T - 1. A uniform law then draws every timestep as often as any other, as `randint` does; the
        nearest timestep, `round(u (T - 1))`, would be the first and the last one half as often.
        """
        u = check_fraction("u", u)
        t = (u.to(double(u.device)) * self.num_timesteps).floor().long()
        return t.clamp(max=self.num_timesteps - 1)

    def fraction(self, t: Tensor | float) -> Tensor:
        """`t / (T - 1)`: 0 at the first timestep and 1 at the last; `timestep` takes it back to `t`."""
        t = check_within("t", t, 0, self.num_timesteps - 1)
        return t.to(double(t.device)) / (self.num_timesteps - 1)

    def timesteps(self, num_inference_steps: int) -> Tensor:
        """The "trailing" grid: `round(T (N - i) / N) - 1`, int64, noisiest first, halves rounded to even.

        N steps, always. diffusers adds up T / N in floating point: for T = 1000 its grid is another for 111 of the
        1000 step counts, by one where a half is rounded (48), or one step longer (61).
        """
        check_whole("num_inference_steps", num_inference_steps)
        if num_inference_steps > self.num_timesteps:
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}; a schedule of {self.num_timesteps} timesteps can "
                f"be sampled in 1 to {self.num_timesteps} steps."
            )
        left = torch.arange(num_inference_steps, 0, -1, dtype=torch.float64)
        return (left * self.num_timesteps / num_inference_steps).round().long() - 1


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
