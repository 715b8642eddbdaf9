"""DMD2's critic: its optimum is the student's score, whatever it predicts and however it is weighed."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

from nitrodistill.methods.dmd2 import critic as module
from nitrodistill.methods.dmd2.critic import critic_error
from nitrodistill.sampling import Step, predict_x0
from nitrodistill.types import Condition, NoiseSchedule, PredictionType
from tests.mixtures import SCHEDULES

WEIGHTS = ("auto", "prediction", "sample", "edm", "min_snr", "snr_plus_one")
CASES = [case for case in product(SCHEDULES, WEIGHTS) if case != ("vp_epsilon", "snr_plus_one")]
"""All but the pair that is refused, as it diverges at zero SNR."""
MEAN, STD = 0.7, 1.6


@dataclass
class Affine:
    """Says gain x_t + offset: at one timestep the optimum of any prediction type for Gaussian samples."""

    parameters: Tensor
    schedule: NoiseSchedule
    prediction_type: PredictionType
    module: nn.Module = field(default_factory=nn.Identity)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.parameters[0] * x_t + self.parameters[1]


@pytest.mark.parametrize(("name", "weight"), CASES)
@pytest.mark.parametrize("u", [0.05, 0.5, 0.95])
def test_the_optimum_is_the_students_score(monkeypatch, name, weight, u):
    """The student draws N(MEAN, STD^2); x0 at MEAN -+ STD and noise at -+ 1 have its first two moments.

    The loss is quadratic in both and in the parameters: one step of Newton's ends at its exact optimum.
    """
    schedule, kind = SCHEDULES[name]
    if weight == "edm":
        monkeypatch.setattr(module, "_sigma_data", lambda critic: 0.5)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    x0, noise = (MEAN + STD * signs[:, 0]).reshape(4, 1, 1, 1), signs[:, 1].reshape(4, 1, 1, 1)
    t = schedule.timestep(torch.full((4,), u, dtype=torch.float64))
    step = Step(t, schedule(t), schedule(t))

    def loss(parameters: Tensor) -> Tensor:
        critic = Affine(parameters, schedule, kind)
        return critic_error(critic, weight, step, x0, noise, Condition()).mean()

    start = torch.tensor([0.3, -0.2], dtype=torch.float64)
    curvature, slope = hessian(loss, start), jacobian(loss, start)
    assert isinstance(curvature, Tensor)
    assert torch.linalg.eigvalsh(curvature).min() > 0
    best = Affine(start - torch.linalg.solve(curvature, slope), schedule, kind)

    alpha, sigma = (s.reshape(-1, 1, 1, 1) for s in step.output)
    x_t = torch.linspace(-3, 3, 4).double().reshape(4, 1, 1, 1)
    said = predict_x0(best, step, x_t, Condition())
    score = -(x_t - alpha * MEAN) / (alpha.square() * STD**2 + sigma.square())
    torch.testing.assert_close((alpha * said - x_t) / sigma.square(), score, rtol=1e-6, atol=1e-9)
