"""The models of an evaluation: teacher, naive one-step teacher, student; how each draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from nitrodistill.evaluation.config import EvaluateConfig
from nitrodistill.method import Draws
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.types import Condition, Denoiser


@dataclass(frozen=True)
class Model:
    """Something that draws.

    Attributes:
        denoiser: the network, guided or not.
        plan: how it samples.
        pipeline: what encodes prompts and decodes latents for it.
        prepare: makes the denoiser anew, as each call of a pipeline does: for timing.
    """

    denoiser: Denoiser
    plan: StepPlan
    pipeline: Pipeline
    prepare: Callable[[], Denoiser]

    def draw(self, noise: Tensor, condition: Condition, draws: Draws) -> Tensor:
        """Latents from noise."""
        return _follow(self.denoiser, self.plan, noise, condition, draws)

    def whole(self, prompts: Sequence[str], noise: Tensor, draws: Draws) -> Tensor:
        """Pictures from prompts, as a user pays for them: guidance's null prompt is encoded too."""
        condition = self.pipeline.encode_prompt(prompts)
        return self.pipeline.decode(_follow(self.prepare(), self.plan, noise, condition, draws))


def _follow(
    denoiser: Denoiser, plan: StepPlan, noise: Tensor, condition: Condition, draws: Draws
) -> Tensor:
    def renoise(step: int) -> Tensor:
        return draws.normal(f"evaluation_renoise_{step}", noise.shape[1:], noise.device)

    return sample(denoiser, plan, noise, condition, renoise)


def make_models(
    teacher: Pipeline, student: Denoiser | Pipeline, plan: StepPlan, config: EvaluateConfig
) -> dict[str, Model]:
    """Teacher, naive and student, by name."""
    pipeline = student if isinstance(student, Pipeline) else teacher
    denoiser = student.denoiser if isinstance(student, Pipeline) else student

    def guide() -> Denoiser:
        return teacher.guided(config.guidance)

    many = StepPlan.from_schedule(teacher.denoiser.schedule, config.num_inference_steps)
    one = StepPlan.from_schedule(teacher.denoiser.schedule)
    return {
        "teacher": Model(guide(), many, teacher, guide),
        "naive": Model(teacher.denoiser, one, teacher, lambda: teacher.denoiser),
        "student": Model(denoiser, plan, pipeline, lambda: denoiser),
    }
