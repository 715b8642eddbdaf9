"""Each way to fail is flagged by the metric meant for it, on the embedded teacher.

A student here is the teacher itself, sampled in as many steps from the same noise, with one defect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from nitrodistill import toy
from nitrodistill.evaluation import EvaluateConfig, Evaluation, Extractor, evaluate
from nitrodistill.evaluation.drawing import noise_draws
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.types import Condition, NoiseSchedule, PredictionType

STEPS = 4
CONFIG = EvaluateConfig(
    num_samples=48, num_inference_steps=STEPS, cost_repeats=0, bootstrap=60, num_pictures=2
)
PROMPTS = toy.scenes.captions()[::28]

Defect = Callable[[Tensor], Tensor]
DRAWN: dict[float, Tensor] = {}  # most defects share the teacher's latents


class Repeats:
    """The teacher in one call, with something done to its noise and to its latents."""

    prediction_type: PredictionType = "sample"

    def __init__(self, teacher: Pipeline, noise: Defect, latents: Defect) -> None:
        self.module: nn.Module = teacher.denoiser.module
        self.schedule: NoiseSchedule = teacher.denoiser.schedule
        self._guided = teacher.guided(CONFIG.guidance)
        self._plan = StepPlan.from_schedule(self.schedule, STEPS)
        self._noise, self._latents = noise, latents

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        noise = self._noise(x_t)
        key = noise.sum().item()
        if key not in DRAWN:
            DRAWN[key] = sample(self._guided, self._plan, noise, condition)
        return self._latents(DRAWN[key])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Evaluation]:
    pipe, oracle = toy.load_pipeline(), toy.load_oracle()
    teacher = Pipeline.from_diffusers(pipe, toy.check_prompt)
    with torch.no_grad():
        scenes = toy.scenes.render([PROMPTS[i % len(PROMPTS)] for i in range(200)], 5)
        training = teacher.encode_image(scenes)

    def same(x: Tensor) -> Tensor:
        return x

    def one_noise(noise: Tensor) -> Tensor:
        return noise_draws(9, "one", torch.zeros(1).long(), teacher.latent_shape).expand_as(noise)

    def remembered(x0: Tensor) -> Tensor:
        return training[torch.cdist(x0.flatten(1), training.flatten(1)).argmin(1)]

    def blurred(images: Tensor) -> Tensor:
        return avg_pool2d(pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)

    def tinted(images: Tensor) -> Tensor:
        return images + torch.tensor([0.2, 0.0, -0.2])[:, None, None]

    def measured(noise: Defect, latents: Defect, pictures: Defect) -> Evaluation:
        student = Pipeline.from_diffusers(pipe, toy.check_prompt)
        student.denoiser = cast("DiffusersDenoiser", Repeats(teacher, noise, latents))
        student.decode = lambda latents, batch_size=64: pictures(teacher.decode(latents))
        return evaluate(
            teacher,
            student,
            StepPlan.from_schedule(teacher.denoiser.schedule),
            PROMPTS,
            Extractor("oracle", oracle.features),
            alignment=oracle.alignment,
            training_latents=training,
            config=CONFIG,
            cache=cache,
            progress=False,
        )

    cache = tmp_path_factory.mktemp("teacher")
    return {
        "faithful": measured(same, same, same),
        "collapsed": measured(one_noise, same, same),
        "blurred": measured(same, same, blurred),
        "tinted": measured(same, same, tinted),
        "memorising": measured(same, remembered, same),
    }


def fine(found: Evaluation, metric: str) -> bool:
    """Whether a ratio to the teacher is near 1, or a distance to it near the teacher's to itself."""
    value, floor = found.student[metric].value, found.floor(metric)
    if metric.endswith("ratio") or metric == "diversity":
        return abs(value - 1) < 0.15
    assert floor is not None
    return value < 2 * floor


def test_a_faithful_student_has_none_in_every_interval(found: Mapping[str, Evaluation]) -> None:
    """Equal sets: distances of 0, ratios of 1, and intervals that hold them."""
    student = found["faithful"].student
    none = {"latent_distance": 0, "pixel_distance": 0, "ssim": 1, "precision": 1, "recall": 1}
    none |= dict.fromkeys(("fd_teacher", "fd_latents", "fd_texture", "fd_colour", "kid_teacher"), 0)
    ratios = ("edge_ratio", "gradient_energy_ratio", "high_frequency_ratio", "nearest_ratio")
    none |= dict.fromkeys((*ratios, "diversity"), 1)
    for name, expected in none.items():
        metric = student[name]
        assert metric.low is not None
        assert metric.high is not None
        assert metric.value == pytest.approx(expected, abs=1e-5), name
        assert metric.low - 1e-5 <= expected <= metric.high + 1e-5, name


@pytest.mark.parametrize(
    ("name", "flagged", "blind"),
    [
        ("collapsed", "diversity", ("edge_ratio", "gradient_energy_ratio")),
        ("blurred", "edge_ratio", ("diversity",)),
        ("blurred", "gradient_energy_ratio", ("nearest_ratio",)),
        ("blurred", "fd_texture", ("fd_latents",)),
        ("tinted", "fd_colour", ("edge_ratio", "diversity", "fd_texture")),
        ("memorising", "nearest_ratio", ("edge_ratio", "diversity", "fd_latents")),
    ],
)
def test_the_metric_meant_for_it_flags_a_defect(
    found: Mapping[str, Evaluation], name: str, flagged: str, blind: tuple[str, ...]
) -> None:
    """Far off, its interval too; metrics that are meant for something else stay fine."""
    metric = found[name].student[flagged]
    assert not fine(found[name], flagged)
    assert metric.low is not None
    assert metric.high is not None
    floor = found[name].floor(flagged)
    assert metric.low > 2 * (floor or 0) if flagged.startswith("fd") else metric.high < 0.8
    for other in blind:
        assert fine(found[name], other), other


def test_copies_are_counted(found: Mapping[str, Evaluation]) -> None:
    assert found["memorising"].student["copied"].value > 0.9
    assert found["faithful"].student["copied"].value < 0.05
    assert found["memorising"].floor("copied") == 0.01


def test_samples_are_measured_one_by_one(found: Mapping[str, Evaluation]) -> None:
    evaluation = found["memorising"]
    assert [sample.index for sample in evaluation.samples] == list(range(48))
    assert {sample.prompt for sample in evaluation.samples} == set(PROMPTS)
    distances = [sample.distances["pixel_distance"] for sample in evaluation.samples]
    mean = evaluation.student["pixel_distance"].value
    assert sum(distances) / 48 == pytest.approx(mean, rel=1e-6)
    worst, examples = evaluation.worst, evaluation.examples
    assert worst is not None
    assert examples is not None
    order = sorted(range(48), key=lambda i: -distances[i])
    assert list(worst.indices) == order[:2]
    assert examples.indices == (0, 1)
    for row, index in enumerate(worst.indices):
        difference = worst.images["student"][row] - worst.images["teacher"][row]
        rms = difference.square().mean().sqrt().item()
        assert rms == pytest.approx(distances[index], rel=1e-5)
        assert worst.prompts[row] == evaluation.samples[index].prompt
