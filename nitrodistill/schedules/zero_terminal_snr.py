"""Zero terminal SNR: make the last timestep pure noise.

Common schedules stop short of pure noise (Stable Diffusion keeps alpha = 0.068 at t = 999), so a student
that starts from pure noise sees an input it was never trained on. Lin et al. 2023, "Common Diffusion
Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), Algorithm 1: with r_t = sqrt(abar_t),

    r_t  <-  (r_t - r_T) r_1 / (r_1 - r_T)

keeps the first value and makes the last one 0. We compute it in float64 whatever the input's dtype:
in bfloat16 it is NaN and in float16 off by 1e-2.

At zero SNR the noise says nothing of x0, so `epsilon` prediction has no x0 there: such schedulers are
refused unless asked for by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from nitrodistill.schedules.discrete import DiscreteSchedule, check_alphas_cumprod

__all__ = ["ZeroTerminalSNR"]

Schedule = TypeVar("Schedule")

_SUPPORTED = "DDIM, DDPM, LCM, DPM++ Multistep, UniPC, Euler, Euler ancestral and TCD"


@dataclass(frozen=True)
class ZeroTerminalSNR:
    """Rescales betas, alphas_cumprod, a DiscreteSchedule or a diffusers scheduler to zero SNR.

    Calling it returns a new object and never changes its argument. Rescaling twice changes nothing.

    Args:
        allow_epsilon: accept schedulers with `prediction_type="epsilon"`, whose x0 does not exist at
            the last timestep: for training that never converts there.

    Example:
        >>> import torch, nitrodistill as nd
        >>> betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        >>> (1 - nd.ZeroTerminalSNR().rescale_betas(betas)).cumprod(0)[-1].item()
        0.0
    """

    allow_epsilon: bool = False

    def rescale_betas(self, betas: Tensor) -> Tensor:
        """Rescales betas `(T,)` in (0, 1]; returns `(T,)` float64, the last one exactly 1.

        Raises:
            ValueError: if `betas` is not one-dimensional with T >= 2, or leaves (0, 1].
        """
        betas = torch.as_tensor(betas)
        if betas.ndim != 1 or betas.shape[0] < 2:
            raise ValueError(f"betas has shape {tuple(betas.shape)}; it must be (T,) with T >= 2.")
        wide = betas.detach().to("cpu", torch.float64)
        if not bool((wide > 0).all() and (wide <= 1).all()):
            raise ValueError(
                f"betas run from {float(wide.min()):.4g} to {float(wide.max()):.4g}; every beta "
                "must be in (0, 1]."
            )
        if bool((wide[:-1] == 1).any()):
            raise ValueError(
                "a beta before the last one is 1: the schedule is pure noise there already; cut it off "
                "behind its first beta of 1."
            )
        alphas_cumprod = self.rescale_alphas_cumprod((1 - wide).cumprod(0))
        alphas = alphas_cumprod.clone()
        alphas[1:] = alphas_cumprod[1:] / alphas_cumprod[:-1]
        return (1 - alphas).to(betas.device)

    def rescale_alphas_cumprod(self, alphas_cumprod: Tensor) -> Tensor:
        """Rescales alphas_cumprod `(T,)`; returns `(T,)` float64, first value kept, last exactly 0.

        Raises:
            ValueError: if it is not a strictly decreasing `(T,)` table in [0, 1] with T >= 2.
        """
        given = torch.as_tensor(alphas_cumprod)
        wide = given.detach().to("cpu", torch.float64)
        check_alphas_cumprod(wide)
        if wide[-1] == 0:
            return wide.clone().to(given.device)
        root = wide.sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        rescaled = root.square()
        rescaled[0] = wide[0]
        return rescaled.to(given.device)

    def __call__(self, scheduler: Schedule) -> Schedule:
        """Returns a new schedule or scheduler of the same class with zero terminal SNR.

        A diffusers scheduler is rebuilt by `from_config` with `rescale_betas_zero_snr=True`,
        `timestep_spacing="trailing"` (any other spacing never visits the last timestep in one
        step), and, where it has them, `set_alpha_to_one=True` and `clip_sample=False` (else the last
        step is not x0, and latents are cut at +-1).

        Raises:
            TypeError: if it is neither a DiscreteSchedule nor a diffusers scheduler.
            ValueError: if its class cannot be rescaled, or it predicts `epsilon` and `allow_epsilon`
                is False.
        """
        if isinstance(scheduler, DiscreteSchedule):
            return DiscreteSchedule(self.rescale_alphas_cumprod(scheduler.alphas_cumprod))  # type: ignore[return-value]
        return self._rebuild(scheduler)

    def _rebuild(self, scheduler: Any) -> Any:
        name = type(scheduler).__name__
        config = getattr(scheduler, "config", None)
        if config is None:
            raise TypeError(
                f"{name} cannot be rescaled: it is neither a DiscreteSchedule nor a diffusers "
                "scheduler. Rectified-flow and EDM schedules have no terminal signal to remove."
            )
        if name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
            raise ValueError(
                f"{name} is a flow-matching scheduler: its last timestep is pure noise already, so "
                "leave it as it is."
            )
        if "rescale_betas_zero_snr" not in config:
            raise ValueError(
                f"{name} cannot sample at zero terminal SNR (it has no rescale_betas_zero_snr, and its "
                f"noise levels would become infinite); replace it by one that can: {_SUPPORTED}, for "
                "example DDIMScheduler.from_config(scheduler.config)."
            )
        if config.get("prediction_type", "epsilon") == "epsilon" and not self.allow_epsilon:
            raise ValueError(
                f"{name} has prediction_type='epsilon', from which x0 cannot be computed at zero "
                "SNR; train the model to 'v_prediction' or 'sample', or pass "
                "ZeroTerminalSNR(allow_epsilon=True) if you never convert at the last timestep."
            )
        changes: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        safe = {"set_alpha_to_one": True, "clip_sample": False}
        changes.update({key: value for key, value in safe.items() if key in config})
        return type(scheduler).from_config(config, **changes)
