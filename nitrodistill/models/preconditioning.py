"""EDM's preconditioning: a denoiser D around a raw network F (Karras et al. 2022, section 5, table 1).

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)
    c_skip = s^2 / (sigma^2 + s^2)         c_in    = 1 / sqrt(sigma^2 + s^2)
    c_out  = +-sigma s / sqrt(sigma^2 + s^2)   c_noise = log(sigma) / 4

with s the data's standard deviation. D is x0, so the denoiser's prediction type is "sample".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nitrodistill.checks import check_positive
from nitrodistill.types import expand


@dataclass(frozen=True)
class EDMPreconditioning:
    """The four coefficients, in float32 or wider.

    Args:
        sigma_data: standard deviation of the data.
        network_type: the sign of c_out in diffusers' words: "epsilon" is +, as published, "v_prediction" -.

    Raises:
        ValueError: if `sigma_data` is not positive, or the type is another.
    """

    sigma_data: float = 0.5
    network_type: Literal["epsilon", "v_prediction"] = "epsilon"

    def __post_init__(self) -> None:
        check_positive("sigma_data", self.sigma_data)
        if self.network_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"network_type is {self.network_type!r}; EDM's networks are 'epsilon' or 'v_prediction'."
            )

    def input(self, x_t: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """What F is shown: `(c_in x_t, c_noise)` for `x_t` `(B, *)` and `sigma` `(B,)`."""
        scaled = x_t / expand((sigma.square() + self.sigma_data**2).sqrt(), x_t)
        return scaled, torch.log(sigma) / 4

    def denoised(self, output: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
        """D: the x0 that F's `output` `(B, *)` stands for."""
        total = sigma.square() + self.sigma_data**2
        sign = 1 if self.network_type == "epsilon" else -1
        c_out = sign * sigma * self.sigma_data / total.sqrt()
        return expand(self.sigma_data**2 / total, x_t) * x_t + expand(c_out, x_t) * output
