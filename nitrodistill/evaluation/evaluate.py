"""Evaluation: teacher, naive one-step teacher and student side by side, on the same noise and prompts.

Sample i of every model has the same noise, from a stream of its own that no training pair comes from, and prompt
`i mod P` of P prompts drawn from those given. The naive model is the teacher itself in one step without guidance:
what distillation has to beat. Floors say how far two sets of one distribution are apart at this number of
samples, as no distance of finite sets is 0.

Pictures are streamed: of each a few numbers are kept, and a bounded number of features. The teacher's latents,
which cost most, and the student's can be kept on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nitrodistill.checks import check_kind
from nitrodistill.evaluation.alignment import Alignment
from nitrodistill.evaluation.config import EvaluateConfig, SamplePlan
from nitrodistill.evaluation.cost import cost_of, machine
from nitrodistill.evaluation.drawing import Drawing, draw_teacher
from nitrodistill.evaluation.features import Extractor, Features, named_extractors
from nitrodistill.evaluation.measurement import Measurement
from nitrodistill.evaluation.meters import latent_features
from nitrodistill.evaluation.models import Model, make_models
from nitrodistill.evaluation.nearest import NearestPair
from nitrodistill.evaluation.paired import PerceptualDistance
from nitrodistill.evaluation.real import ImageFolder, RealImages, check_resolution, measure_folder
from nitrodistill.evaluation.result import Evaluation
from nitrodistill.evaluation.text import TextScore
from nitrodistill.models import Pipeline
from nitrodistill.models.denoiser import evaluating
from nitrodistill.models.pipeline import fingerprint
from nitrodistill.sampling import StepPlan
from nitrodistill.types import Denoiser


def evaluate(
    teacher: Pipeline,
    student: Denoiser | Pipeline,
    plan: StepPlan,
    prompts: Sequence[str],
    features: Features | Extractor | Sequence[Extractor],
    *,
    alignment: Alignment | None = None,
    text_score: TextScore | None = None,
    perceptual: PerceptualDistance | None = None,
    real_images: RealImages | Tensor | ImageFolder | None = None,
    training_latents: Tensor | None = None,
    config: EvaluateConfig | None = None,
    cache: str | Path | None = None,
    keep_student: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Measures a student against its teacher.

    Args:
        teacher: the teacher's pipeline.
        student: the student's denoiser, which then uses the teacher's text encoder and VAE, or its pipeline.
        plan: how the student samples.
        prompts: what may be drawn, P >= 1 of them; duplicates count once.
        features: images `(B, 3, H, W)` in [-1, 1] -> `(B, F)`, for distances between distributions; or
            extractors with names, of which the first one's metrics have no suffix.
        alignment: the oracle, see `evaluation.alignment`; None leaves alignment out.
        text_score: how well pictures and prompts agree, see `evaluation.clip.ClipScore`.
        perceptual: a paired distance of pictures, such as `nitrodistill.LPIPSLoss(reduction="none")`.
        real_images: a function of prompts and sample numbers; or `(M, 3, H, W)` with M >= 2 num_samples,
            of which 0..n-1 are the reference and n..2n-1 give the floor; or a folder, all of whose
            pictures are the reference, with a floor from its halves. None leaves it out.
        training_latents: x0 `(M, C, H, W)` of the pairs that the student was trained on, for memorisation.
        config: how; by default `EvaluateConfig()`.
        cache: a folder for latents and for what was measured of an `ImageFolder`, or None.
        keep_student: keep the student's latents there too, so that an interrupted evaluation goes on; not
            worth its room for a student that is measured once and in a minute, as while training.
        progress: show progress bars.

    Raises:
        ValueError: without prompts, with too few real images, if features or resolutions do not fit each
            other, if the plan does not fit the student, or if a model's latents are not finite.

    Example:
        >>> plan = nd.StepPlan.from_schedule(teacher.denoiser.schedule)
        >>> config = nd.evaluation.EvaluateConfig(8, num_inference_steps=1, bootstrap=2, cost_repeats=1)
        >>> textures, student = nd.evaluation.TextureFeatures(), teacher.denoiser
        >>> found = nd.evaluate(teacher, student, plan, prompts, textures, config=config, progress=False)
        >>> sorted(found.models)
        ['naive', 'student', 'teacher']
    """
    config = config or EvaluateConfig()
    check_kind("teacher", teacher, Pipeline, ", such as Pipeline.from_diffusers(pipe)")
    check_kind(
        "plan", plan, StepPlan, ", such as StepPlan.from_schedule(teacher.denoiser.schedule, 1)"
    )
    check_kind("config", config, EvaluateConfig)
    extractors = named_extractors(features)
    samples = SamplePlan.of(prompts, config)
    models = make_models(teacher, student, plan, config)
    plan.check(models["student"].denoiser.prediction_type)
    place = None if cache is None else Path(cache)
    drawing = Drawing(models, samples, place, progress, keep_student)
    nearest = None
    if training_latents is not None:
        nearest = NearestPair(latent_features(training_latents))
    real = _real_source(real_images, config.num_samples)
    with torch.no_grad(), evaluating(models["student"].denoiser.module):
        folder = None
        if isinstance(real, ImageFolder):
            check_resolution(real[0], teacher.decode(torch.zeros(1, *teacher.latent_shape)))
            folder = measure_folder(
                real,
                extractors,
                batch_size=config.batch_size,
                device=teacher.device,
                cache=place,
                progress=progress,
            )
        source = None if isinstance(real, ImageFolder) else real
        measurement = Measurement(
            models,
            samples,
            drawing,
            extractors,
            alignment,
            text_score,
            perceptual,
            source,
            folder,
            nearest,
        )
        drawing.prepare()
        for number, rows in enumerate(_batches(config, progress)):
            measurement.add(number, rows)
        cost = cost_of(models, samples) if config.cost_repeats else {}
        settings = _settings(teacher, models["student"], plan, samples, drawing.key, extractors)
        if nearest is not None:
            settings["num_training_latents"] = len(nearest)
        return measurement.result(cost, settings)


def help_draw(
    teacher: Pipeline,
    prompts: Sequence[str],
    config: EvaluateConfig,
    cache: str | Path,
    *,
    rank: int,
    world_size: int,
    student: Denoiser | Pipeline | None = None,
    plan: StepPlan | None = None,
    progress: bool = True,
) -> None:
    """Draws latents into the cache together with other processes; then one of them calls `evaluate`.

    All processes return when all is drawn. What is there already is not drawn again.

    Args:
        teacher: the teacher's pipeline.
        prompts: as for `evaluate`.
        config: as for `evaluate`.
        cache: as for `evaluate`; a folder that all processes see.
        rank: number of this process.
        world_size: how many there are.
        student: as for `evaluate`: then the naive model's and the student's latents are drawn too, if the
            cache keeps them; None draws the teacher's alone.
        plan: how the student samples; needed with one.
        progress: show bars.

    Raises:
        ValueError: if there is a student without a plan, or the plan does not fit it.

    Example:
        >>> config = nd.evaluation.EvaluateConfig(num_samples=8, num_inference_steps=1, batch_size=8)
        >>> nd.evaluation.help_draw(teacher, prompts, config, "cache", rank=0, world_size=1, progress=False)
    """
    samples, place = SamplePlan.of(prompts, config), Path(cache)
    draw_teacher(teacher, samples, place, rank=rank, world_size=world_size, progress=progress)
    if student is None:
        return
    if plan is None:
        raise ValueError("there is a student and no plan; give the plan by which it samples.")
    models = make_models(teacher, student, plan, config)
    plan.check(models["student"].denoiser.prediction_type)
    with torch.no_grad(), evaluating(models["student"].denoiser.module):
        Drawing(models, samples, place, progress).draw_others(rank, world_size)


def _batches(config: EvaluateConfig, progress: bool) -> Iterator[Tensor]:
    from nitrodistill.progress import progress_bar

    index = torch.arange(config.num_samples)
    with progress_bar(total=len(index), desc="evaluate", unit="image", show=progress) as bar:
        for rows in index.split(config.batch_size):
            yield rows
            bar.update(len(rows))


def _real_source(
    given: RealImages | Tensor | ImageFolder | None, num_samples: int
) -> RealImages | ImageFolder | None:
    if not isinstance(given, Tensor):
        return given
    if len(given) < 2 * num_samples:
        raise ValueError(
            f"there are {len(given)} real images; {num_samples} samples need at least {2 * num_samples}: as "
            "many for the reference, and as many for its floor."
        )
    return lambda prompts, index: given[index.to(given.device)]


def _settings(
    teacher: Pipeline,
    student: Model,
    plan: StepPlan,
    samples: SamplePlan,
    key: str,
    extractors: Sequence[Extractor],
) -> dict[str, Any]:
    return {
        **asdict(samples.config),
        "num_prompts": len(samples.prompts),
        "student_timesteps": plan.timesteps().tolist(),
        "teacher_fingerprint": fingerprint(teacher.denoiser.module),
        "student_fingerprint": fingerprint(student.denoiser.module),
        "teacher_latents": key,
        "negative_prompt": teacher.negative_prompt,
        "other_vae": None if teacher.other_vae is None else teacher.vae_fingerprint(),
        "extractors": {extractor.name: extractor.fingerprint for extractor in extractors},
        "device": str(teacher.device),
        "machine": machine(teacher.device),
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
