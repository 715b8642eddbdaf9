"""How a student is measured beside its teacher: with the oracle on the toy, else without alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from nitrodistill.cli.teachers import EMBEDDED
from nitrodistill.evaluation import (
    EvaluateConfig,
    Evaluation,
    Extractor,
    TextureFeatures,
    evaluate,
)
from nitrodistill.method import Draws
from nitrodistill.models import Pipeline
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.sampling import StepPlan
from nitrodistill.types import Denoiser

__all__ = ["measure_student"]


def measure_student(
    teacher_name: str,
    teacher: Pipeline,
    student: Denoiser,
    plan: StepPlan,
    prompts: Sequence[str],
    config: EvaluateConfig,
    *,
    training_latents: Tensor | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measures a student. On the toy: the oracle's features, its alignment, and freshly drawn scenes as
    real pictures; on another teacher texture features, and neither alignment nor real pictures.

    Args:
        teacher_name: one of `EMBEDDED` for an embedded one.
        teacher: its pipeline.
        student: the student's denoiser.
        plan: how it samples.
        prompts: what may be drawn.
        config: how much is drawn.
        training_latents: x0 of the pairs that the student was trained on, for memorisation.
        cache: folder for latents.
        progress: show a bar.
    """
    if teacher_name not in EMBEDDED:
        return evaluate(
            teacher,
            student,
            plan,
            prompts,
            Extractor("texture", TextureFeatures()),
            training_latents=training_latents,
            config=config,
            cache=cache,
            progress=progress,
        )
    from nitrodistill import toy

    oracle = toy.load_oracle()

    def aligned(images: Tensor, texts: Sequence[str]) -> Mapping[str, Tensor]:
        return oracle.alignment(images.cpu(), texts).by_attribute

    def real(texts: Sequence[str], index: Tensor) -> Tensor:
        uniforms = Draws(config.seed, 0, index).uniform("scene", (toy.scenes.NUM_UNIFORMS,))
        return toy.scenes.draw(toy.scenes.attribute_indices(texts), uniforms)

    return evaluate(
        teacher,
        student,
        plan,
        prompts,
        Extractor(
            "oracle", lambda images: oracle.features(images.cpu()), fingerprint=fingerprint(oracle)
        ),
        alignment=aligned,
        real_images=real,
        training_latents=training_latents,
        config=config,
        cache=cache,
        progress=progress,
    )
