"""Latent consistency distillation: a student that sees the same x0 from every point of its teacher's path.

With z the data, x = alpha_t z + sigma_t eps, and t' the timestep k before t, nearer to the data:

    x' = alpha_t' x0 + sigma_t' eps,  x0 and eps from the guided teacher at (x, t, c)         a step of DDIM
    (Euler) L  = d(f(x, t, c, w), f^-(x', t', c, w)),  f(x, 0) = x         f^- the moving average of f, or f itself

with k = T / grid_steps timesteps skipped, and w = scale - 1 that of the guidance, an input of the student where
a `guidance_range` is given. The student samples in a few steps, with fresh noise between them.

Luo et al. 2023, "Latent Consistency Models", equations 14 to 16. Departures: f is the network's x0 without c_skip
and c_out (c_skip is 7e-6 at the paper's smallest timestep, and less after it); the last step leads to the data
itself, where alpha = 1. examples/lcm.py is the same for one scale of guidance, written from outside of the
package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from nitrodistill.checks import check_fields
from nitrodistill.losses.functional import l2_loss, pseudo_huber_loss
from nitrodistill.method import Cast, DistillationMethod, Draws, Frozen, Role, check_build
from nitrodistill.models.guidance import Guidance, check_guidance
from nitrodistill.sampling import StepPlan, ode_step, predict_x0
from nitrodistill.types import Batch, Denoiser, Terms, expand

Distance = Literal["pseudo_huber", "l2"]


@dataclass(frozen=True)
class ConsistencyConfig:
    """Settings of latent consistency distillation.

    Attributes:
        num_inference_steps: steps of the student; it must divide grid_steps, so that it samples where it learned.
        grid_steps: steps of the teacher from noise to data; on T timesteps each of them skips T / grid_steps. 40
            skips 25; the paper's 20, a grid of 50, has no trailing grid of 4 in it.
        target_decay: of the moving average of the student that the target comes from, an update; 0 takes the
            student's own weights, which saves a network (LCM-LoRA).
        distance: between the two x0.
        guidance: the teacher's scale, 1 is none; with a guidance_range the scale at which the student samples
            unless it is given another.
        guidance_range: lowest and highest scale, of which one is drawn a sample, an input of the student. null
            keeps one scale, of which the student knows nothing.

    Example:
        >>> nd.ConsistencyConfig(num_inference_steps=2, grid_steps=40).num_inference_steps
        2
    """

    num_inference_steps: int = 4
    grid_steps: int = 40
    target_decay: float = 0.95
    distance: Distance = "pseudo_huber"
    guidance: float = 3.0
    guidance_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_fields(self, num_inference_steps=1, grid_steps=1, target_decay=0)
        check_guidance(self.guidance, self.guidance_range)
        if self.target_decay >= 1:
            raise ValueError(f"target_decay is {self.target_decay}; it must be in [0, 1).")
        if self.grid_steps % self.num_inference_steps:
            raise ValueError(
                f"num_inference_steps is {self.num_inference_steps}; it must divide grid_steps, "
                f"{self.grid_steps}."
            )


class Consistency(DistillationMethod):
    """The student, its moving average as target, and the guided teacher.

    Args:
        config: grid, target, guidance.
        cast: the networks; with a `guidance_range` the student's gets an input for the scale.

    Raises:
        ValueError: if a network cannot follow the grid, or guidance is asked for and cannot be had.

    Example:
        >>> cast = nd.Cast.of(teacher.denoiser, teacher.denoiser.copy(), empty=teacher.null_condition())
        >>> nd.Consistency.build(nd.ConsistencyConfig(target_decay=0), cast).plan
        StepPlan(4 steps, renoise, t = 999, 749, 499, 249)
    """

    Config: ClassVar[type[ConsistencyConfig]] = ConsistencyConfig

    def __init__(self, config: ConsistencyConfig, cast: Cast) -> None:
        check_build(config, ConsistencyConfig, cast)
        self.config: ConsistencyConfig = config
        self.teacher: Denoiser = cast.teacher
        self.student: Denoiser = cast.student
        self.target: Denoiser = cast.another("target") if config.target_decay else self.student
        schedule, kind = self.student.schedule, self.student.prediction_type
        self.plan: StepPlan = StepPlan.from_schedule(
            schedule, config.num_inference_steps, "renoise"
        ).check(kind)
        self._grid: StepPlan = StepPlan.from_schedule(schedule, config.grid_steps).check(kind)
        self._after: StepPlan = self._grid.after(schedule)
        for network in (self.target, self.student):
            self._guidance: Guidance = Guidance(
                self.teacher, network, cast.empty, config.guidance, config.guidance_range
            )

    @classmethod
    def build(cls, config: ConsistencyConfig, cast: Cast) -> Consistency:
        """The method on these networks."""
        return cls(config, cast)

    def trainable(self) -> Mapping[str, Role]:
        """The student."""
        return {"student": Role(self.student)}

    def frozen(self) -> Mapping[str, Frozen]:
        """The teacher, and the student's moving average where there is one."""
        found = {"teacher": Frozen(self.teacher.module)}
        if self.config.target_decay:
            decay = self.config.target_decay
            found["target"] = Frozen(self.target.module, follows="student", decay=decay)
        return found

    def losses(
        self, batch: Batch, active: Sequence[str], draws: Draws
    ) -> Iterator[tuple[str, Terms]]:
        """Yields the student's term; see `DistillationMethod.losses`."""
        pairs = batch.pairs
        assert pairs is not None, "consistency distillation reads pairs"
        u, z = draws.uniform("t"), pairs.x0
        step, after = self._grid.at(u), self._after.at(u)
        teacher, condition = self._guidance.at(pairs.condition, draws.uniform("guidance"))
        x = step.input.mix(z, draws.normal("noise", z.shape[1:], z.device).to(z.dtype))
        with torch.no_grad():
            nearer = ode_step(teacher, step, after, x, pairs.condition)
            target = predict_x0(self.target, after, nearer, condition)
            target = torch.where(expand(after.output.sigma, x) == 0, nearer, target)
        distance = {"pseudo_huber": pseudo_huber_loss, "l2": l2_loss}[self.config.distance]
        per_sample = distance(predict_x0(self.student, step, x, condition), target)
        yield "student", Terms(per_sample.mean(), {"consistency": per_sample.detach()})
