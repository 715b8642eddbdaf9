"""Latent consistency distillation: a method outside of the package; docs/extending.md tells it line by line.

A student f, which starts as the teacher, learns to see the same x0 from every point of the teacher's path. With z
the data, x = alpha_t z + sigma_t eps, and t' the timestep k before t, nearer to the data:

    x' = alpha_t' x0 + sigma_t' eps,  x0 and eps from the guided teacher at (x, t, c)       a step of DDIM
    L  = d(f(x, t, c), f^-(x', t', c)),  f(x, 0, c) = x                    f^- the moving average of f

Luo et al. 2023, "Latent Consistency Models", equation 14, with k = T / grid_steps; d is pseudo-Huber or L2.
Departures: one guidance scale, which is not an input of f; f is the network's x0 without c_skip and c_out (c_skip
is 7e-6 at the paper's smallest timestep but 0, and less after it); the last step leads to the data, alpha = 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

import nitrodistill as nd


@dataclass(frozen=True)
class LCMConfig:
    """Settings of LCM; num_inference_steps must divide grid_steps: a student samples where it learned."""

    guidance: float = 3.0
    grid_steps: int = 40
    target_decay: float = 0.95
    distance: Literal["pseudo_huber", "l2"] = "pseudo_huber"
    num_inference_steps: int = 4

    def __post_init__(self) -> None:
        steps, grid = self.num_inference_steps, self.grid_steps
        if not 1 <= steps <= grid or grid % steps:
            raise ValueError(f"num_inference_steps is {steps}; it must divide grid_steps, {grid}.")


class LCM(nd.DistillationMethod):
    """The student, its moving average as target, and the guided teacher."""

    Config = LCMConfig
    reads = frozenset({"pairs"})

    def __init__(self, config: LCMConfig, cast: nd.Cast) -> None:
        if cast.empty is None:
            raise ValueError("LCM's teacher is guided, but it has no empty condition.")
        self.config = config
        self.teacher = nd.Guided(cast.teacher, config.guidance, cast.empty)
        self.student, self.target = cast.student, cast.another("target")
        schedule, kind = self.student.schedule, self.student.prediction_type
        self.plan = nd.StepPlan.from_schedule(schedule, config.num_inference_steps, "renoise")
        self.grid = nd.StepPlan.from_schedule(schedule, config.grid_steps).check(kind)
        self.after = self.grid.after(schedule)

    @classmethod
    def build(cls, config: LCMConfig, cast: nd.Cast) -> "LCM":
        return cls(config, cast)

    def trainable(self) -> dict[str, nd.Role]:
        return {"student": nd.Role(self.student)}

    def frozen(self) -> dict[str, nd.Frozen]:
        target = nd.Frozen(self.target.module, follows="student", decay=self.config.target_decay)
        return {"teacher": nd.Frozen(self.teacher.module), "target": target}

    def losses(
        self, batch: nd.Batch, active: Sequence[str], draws: nd.Draws
    ) -> Iterator[tuple[str, nd.Terms]]:
        z, c, u = batch.pairs.x0, batch.pairs.condition, draws.uniform("t")
        step, after = self.grid.at(u), self.after.at(u)
        x = step.input.mix(z, draws.normal("noise", z.shape[1:], z.device))
        with torch.no_grad():
            nearer = nd.ode_step(self.teacher, step, after, x, c)
            target = nd.predict_x0(self.target, after, nearer, c)
            target = torch.where(nd.expand(after.output.sigma, x) == 0, nearer, target)
        distance = getattr(nd.functional, f"{self.config.distance}_loss")
        per_sample = distance(nd.predict_x0(self.student, step, x, c), target)
        yield "student", nd.Terms(per_sample.mean(), {"consistency": per_sample.detach()})
