"""Progressive distillation: a student that goes in one step where its teacher goes in two, again and again.

A stage's student starts as its teacher and samples in N steps of DDIM (Euler, for flows) on the schedule's
trailing grid; the teacher goes 2N. With z the data, x = alpha_t z + sigma_t eps at a random t of the student's
grid and s the next one of it, the teacher's two steps end in x_s, and

    x~ = (x_s - (sigma_s / sigma_t) x) / (alpha_s - (sigma_s / sigma_t) alpha_t)     `ddim_target`; last: x_s
    L  = w(SNR_t) |x0(student) - x~|^2

with w = max(SNR, 1), the paper's truncated SNR, SNR + 1 or 1. The next stage's teacher is this one's student.
Grids of N steps are always part of those of 2N, whether N is a power of two or not.

A guided teacher is distilled at a fixed scale in the first stage. Or guidance is distilled before anything else: a
stage with `teacher_steps: 1` and a `guidance_range` teaches the student what the guided teacher sees in as many
steps, at any scale of the range, which is an input; the stages after it draw a scale a sample.

Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models", Algorithm 2; Meng et al.
2023, "On Distillation of Guided Diffusion Models". Departures: Meng et al. draw t between the steps of the sampler
while guidance is distilled, here it is drawn on the grid that the next stage samples on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nitrodistill.checks import check_fields
from nitrodistill.losses.few_step import ddim_target
from nitrodistill.method import Cast, DistillationMethod, Draws, Frozen, Role, check_build
from nitrodistill.models.guidance import Guidance, check_guidance
from nitrodistill.sampling import StepPlan, ode_step, predict_x0
from nitrodistill.types import Batch, Denoiser, Scales, Terms
from nitrodistill.weighting import snr_plus_one_weight, truncated_snr_weight

Weight = Literal["truncated_snr", "snr_plus_one", "plain"]


@dataclass(frozen=True)
class ProgressiveConfig:
    """Settings of a stage of progressive distillation.

    Attributes:
        num_inference_steps: steps of the student. (16 cannot be exported at zero terminal SNR: diffusers' table of
            timesteps needs a divisor of its 1000 there.)
        teacher_steps: the teacher's steps to one of the student's: 2 halves; 1 distils guidance alone.
        weight: of the error of x0: truncated_snr is max(SNR, 1), snr_plus_one SNR + 1, plain 1.
        guidance: the teacher's scale, 1 is none; with a guidance_range the scale at which the student samples
            unless it is given another.
        guidance_range: lowest and highest scale, of which one is drawn a sample, an input of the student. null
            keeps one scale, of which the student knows nothing.

    Example:
        >>> nd.ProgressiveConfig(num_inference_steps=8).halved().num_inference_steps
        4
    """

    num_inference_steps: int = 8
    teacher_steps: int = 2
    weight: Weight = "truncated_snr"
    guidance: float = 1.0
    guidance_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_fields(self, num_inference_steps=1, teacher_steps=1)
        check_guidance(self.guidance, self.guidance_range)
        if self.teacher_steps == 1 and self.guidance == 1 and self.guidance_range is None:
            raise ValueError(
                "teacher_steps is 1 and the teacher is not guided, so the student is its teacher already; set "
                "teacher_steps to 2, or give guidance."
            )

    def halved(self) -> ProgressiveConfig:
        """The settings of the next stage, whose teacher is this one's student: guided by itself, half the steps.

        Raises:
            ValueError: if the number of steps is odd.
        """
        if self.num_inference_steps % 2:
            raise ValueError(
                f"num_inference_steps is {self.num_inference_steps}, which has no half; start with a number that "
                "is divisible by 2 as often as `halvings` says, or write the stages out."
            )
        scale = 1.0 if self.guidance_range is None else self.guidance
        steps = self.num_inference_steps // 2
        return replace(self, num_inference_steps=steps, teacher_steps=2, guidance=scale)


class Progressive(DistillationMethod):
    """One stage: the student and its teacher.

    Args:
        config: steps, weight, guidance.
        cast: the networks; with a `guidance_range` the student's gets an input for the scale.

    Raises:
        ValueError: if a network cannot follow its grid, the student's is no part of the teacher's, or guidance is
            asked for and cannot be had.

    Example:
        >>> cast = nd.Cast.of(teacher.denoiser, teacher.denoiser.copy())
        >>> nd.Progressive.build(nd.ProgressiveConfig(num_inference_steps=4), cast).plan
        StepPlan(4 steps, ode, t = 999, 749, 499, 249)
    """

    Config: ClassVar[type[ProgressiveConfig]] = ProgressiveConfig

    def __init__(self, config: ProgressiveConfig, cast: Cast) -> None:
        check_build(config, ProgressiveConfig, cast)
        self.config: ProgressiveConfig = config
        self.teacher: Denoiser = cast.teacher
        self.student: Denoiser = cast.student
        schedule, kind = self.student.schedule, self.student.prediction_type
        steps, ratio = config.num_inference_steps, config.teacher_steps
        self.plan: StepPlan = StepPlan.from_schedule(schedule, steps).check(kind)
        fine = StepPlan.from_schedule(schedule, steps * ratio).check(kind)
        if not torch.equal(fine.timesteps()[::ratio], self.plan.timesteps()):
            raise ValueError(
                f"the {steps} timesteps of the student are no part of its teacher's {steps * ratio} on a "
                f"{type(schedule).__name__}; progressive distillation needs a grid that can be halved: discrete, "
                "or a flow's."
            )
        self._grids: list[StepPlan] = [StepPlan(fine.steps[i::ratio]) for i in range(ratio)] + [
            self.plan.after(schedule)
        ]
        self._guidance: Guidance = Guidance(
            self.teacher, self.student, cast.empty, config.guidance, config.guidance_range
        )
        if kind == "epsilon" and config.weight == "truncated_snr":
            warnings.warn(
                "the student predicts epsilon and weight is truncated_snr, which diverges in the paper's ablation "
                "(Salimans & Ho 2022, table 1); use snr_plus_one, or a teacher that predicts v.",
                UserWarning,
                stacklevel=3,
            )

    @classmethod
    def build(cls, config: ProgressiveConfig, cast: Cast) -> Progressive:
        """The stage on these networks."""
        return cls(config, cast)

    def trainable(self) -> Mapping[str, Role]:
        """The student."""
        return {"student": Role(self.student)}

    def frozen(self) -> Mapping[str, Frozen]:
        """The teacher."""
        return {"teacher": Frozen(self.teacher.module)}

    def losses(
        self, batch: Batch, active: Sequence[str], draws: Draws
    ) -> Iterator[tuple[str, Terms]]:
        """Yields the student's term; see `DistillationMethod.losses`."""
        pairs = batch.pairs
        assert pairs is not None, "progressive distillation reads pairs"
        u, z = draws.uniform("step"), pairs.x0
        path = [grid.at(u) for grid in self._grids]
        teacher, condition = self._guidance.at(pairs.condition, draws.uniform("guidance"))
        x = path[0].input.mix(z, draws.normal("noise", z.shape[1:], z.device).to(z.dtype))
        with torch.no_grad():
            x_s = x
            for here, there in pairwise(path):
                x_s = ode_step(teacher, here, there, x_s, pairs.condition)
            now, after = path[0].output, path[-1].input
            target = ddim_target(x.to(x_s.dtype), x_s, now, after)
        error = (
            (predict_x0(self.student, path[0], x, condition) - target).square().flatten(1).mean(1)
        )
        per_sample = self._weights(now).to(error) * error
        yield "student", Terms(per_sample.mean(), {"progressive": per_sample.detach()})

    def _weights(self, scales: Scales) -> Tensor:
        """Of the squared error of x0, `(B,)`."""
        if self.config.weight == "truncated_snr":
            return truncated_snr_weight(scales, "sample")
        if self.config.weight == "snr_plus_one":
            return snr_plus_one_weight(scales, "sample")
        return torch.ones_like(scales.alpha)
