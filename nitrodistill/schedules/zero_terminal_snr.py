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

import inspect
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from nitrodistill.schedules.discrete import DiscreteSchedule, check_alphas_cumprod

Schedule = TypeVar("Schedule")

_SUPPORTED = "DDIM, DDPM, LCM, DPM++ Multistep, UniPC, Euler and Euler ancestral"

_TOLERANCE = 1e-3
"""Of x0, for noise of +-1: what stores zero SNR as abar = 2^-24 keeps 2.4e-4 of its noise."""

_CHANGES: dict[str, Any] = {
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "final_sigmas_type": "zero",
    "clip_sample": False,
    "thresholding": False,
    "lambda_min_clipped": -math.inf,
    "timestep_type": "discrete",
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_dynamic_shifting": False,
}
"""Options with which one step visits the last timestep, is x0 there, and all of it."""

_HARMLESS = ("beta_start", "beta_end", "beta_schedule", "prediction_type")


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

        A diffusers scheduler is rebuilt by `from_config` with `rescale_betas_zero_snr=True` and, where it has
        them: `timestep_spacing="trailing"`, `timestep_type="discrete"` and sigmas from the betas (no Karras,
        exponential, beta, Lu or log-linear grid, no dynamic shift, no `lambda_min_clipped`), else one step
        does not visit the last timestep; `set_alpha_to_one=True` and `final_sigmas_type="zero"`, else it
        is not x0; `clip_sample=False` and `thresholding=False`, else x0 is cut at +-1. One step of the result
        is then run, and whatever else keeps it from being x0 is refused: inverse schedulers, TCD, options.

        Raises:
            TypeError: if it is neither a DiscreteSchedule nor a diffusers scheduler.
            ValueError: if its class or options cannot do that, or it predicts `epsilon` and `allow_epsilon`
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
        takes = inspect.signature(type(scheduler).__init__).parameters
        if (
            name.startswith("FlowMatch")
            or config.get("prediction_type") == "flow_prediction"
            or ("use_flow_sigmas" in takes and config.use_flow_sigmas)
        ):
            raise ValueError(
                f"{name} is a flow-matching scheduler: its last timestep is pure noise already, so "
                "leave it as it is."
            )
        if "rescale_betas_zero_snr" not in takes:  # the config also keeps other classes' options
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
        changes = {key: value for key, value in _CHANGES.items() if key in takes}
        others = [
            key
            for key, option in takes.items()
            if key in config and key not in {*changes, *_HARMLESS} and config[key] != option.default
        ]
        try:
            reason = _not_x0(type(scheduler).from_config(config, **changes, **_convertible(config)))
        except Exception as error:  # diffusers' classes fail in many ways where they do not fit
            reason = f"fails: {' '.join(str(error).split()) or type(error).__name__}"
        if reason is not None:
            raise ValueError(
                f"{name} cannot sample at zero terminal SNR: its one step {reason}. If that is due to one of its "
                f"options ({', '.join(others) or 'all at their defaults'}), leave it out; else replace it by "
                f"one that can: {_SUPPORTED}."
            )
        return type(scheduler).from_config(config, **changes)


def _convertible(config: Any) -> dict[str, str]:
    """What a probe predicts instead of epsilon, which has no x0 at zero SNR."""
    return {"prediction_type": "v_prediction"} if config.prediction_type == "epsilon" else {}


def _not_x0(scheduler: Any) -> str | None:
    """Runs one step as a pipeline would; None if it visits the last timestep and is x0."""
    scheduler.set_timesteps(1)
    last = len(scheduler.alphas_cumprod) - 1
    if scheduler.timesteps.tolist() != [last]:
        return f"visits t={scheduler.timesteps.tolist()}, not {last}"
    i = torch.arange(48.0).reshape(1, 3, 4, 4)
    noise, prediction = i.cos(), 3 * i.sin()
    x0 = -prediction if scheduler.config.prediction_type == "v_prediction" else prediction
    t, x_t = scheduler.timesteps[0], noise * scheduler.init_noise_sigma
    scheduler.scale_model_input(x_t, t)
    takes_draws = "generator" in inspect.signature(scheduler.step).parameters
    draws = {"generator": torch.Generator().manual_seed(0)} if takes_draws else {}
    found = scheduler.step(prediction, t, x_t, return_dict=False, **draws)[0]
    error = float((found - x0).abs().max())
    return None if error <= _TOLERANCE else f"is off x0 by {error:.2g}"
