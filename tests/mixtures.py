"""Gaussian mixtures: data of which the best denoiser and the score are known at every noise level."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nitrodistill.schedules import (
    DiscreteSchedule,
    KarrasSchedule,
    RectifiedFlow,
    ZeroTerminalSNR,
)
from nitrodistill.types import Condition, NoiseSchedule, PredictionType, Scales, expand

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
VP = DiscreteSchedule((1 - BETAS).cumprod(0))
SCHEDULES: dict[str, tuple[NoiseSchedule, PredictionType]] = {
    "vp_epsilon": (VP, "epsilon"),
    "vp_v": (VP, "v_prediction"),
    "zero_snr_v": (ZeroTerminalSNR()(VP), "v_prediction"),
    "edm": (KarrasSchedule(), "sample"),
    "flow": (RectifiedFlow(), "flow_prediction"),
}
"""Kinds of schedules, each with what networks on it predict."""


@dataclass
class Mixture:
    """sum_k w_k N(mean_k, std_k^2 I), on data of shape `(B, D)` or `(B, D, 1, 1)`.

    Attributes:
        weights: `(K,)`.
        means: `(K, D)`.
        stds: `(K,)`.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def log_density(self, x_t: Tensor, scales: Scales) -> Tensor:
        """log p(x_t) of noised data `(B, D)`, up to a constant; differentiable."""
        distance, spread = self._spread(x_t, scales)
        dims = x_t.shape[1]
        logs = self.weights.log() - distance.square().sum(2) / spread / 2 - dims * spread.log() / 2
        return torch.logsumexp(logs, 1)

    def score(self, x_t: Tensor, scales: Scales) -> Tensor:
        """The gradient of `log_density`, by autograd: it knows nothing of x0."""
        x_t = x_t.detach().requires_grad_()
        return torch.autograd.grad(self.log_density(x_t, scales).sum(), x_t)[0]

    def x0(self, x_t: Tensor, scales: Scales) -> Tensor:
        """E[x0 | x_t], `(B, D)`: the posterior means of the components, by their responsibilities."""
        distance, spread = self._spread(x_t, scales)
        dims = x_t.shape[1]
        logs = self.weights.log() - distance.square().sum(2) / spread / 2 - dims * spread.log() / 2
        gain = (scales.alpha.reshape(-1, 1) * self.stds.square() / spread)[..., None]
        posterior = self.means + gain * distance
        return (logs.softmax(1)[..., None] * posterior).sum(1)

    def _spread(self, x_t: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
        """x_t - alpha mean_k `(B, K, D)`, and the variances of the components `(B, K)`."""
        alpha, sigma = (s.reshape(-1, 1) for s in scales)
        distance = x_t[:, None] - alpha[..., None] * self.means
        return distance, alpha.square() * self.stds.square() + sigma.square()


@dataclass
class ExactDenoiser:
    """The best denoiser of a mixture, saying it in any prediction type."""

    mixture: Mixture
    schedule: NoiseSchedule
    prediction_type: PredictionType
    module: nn.Module = field(default_factory=nn.Identity)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        scales = Scales(*(s.expand(len(x_t)) for s in self.schedule(t)))
        x0 = self.mixture.x0(x_t.flatten(1), scales).reshape(x_t.shape)
        alpha, sigma = (expand(s, x_t) for s in scales)
        eps = (x_t - alpha * x0) / sigma  # sigma is above 0 where this is used
        told = {"sample": x0, "epsilon": eps, "v_prediction": alpha * eps - sigma * x0}
        return told.get(self.prediction_type, eps - x0)
