"""The whole road on the embedded teacher.

    teacher -> data -> distillation -> evaluation -> diffusers pipelines -> pictures

A killed demo goes on where it stopped. The steps are the library's own, in the order in which a user would call
them; `examples/plain_loop.py` does LADD's without the trainer.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from nitrodistill import toy
from nitrodistill.checks import check_fields
from nitrodistill.data import EncodeConfig, GenerateConfig, encode, generate
from nitrodistill.data.images import open_images
from nitrodistill.demo.expected import Length, outside, stated
from nitrodistill.demo.recipes import matching_recipe, toy_recipe
from nitrodistill.demo.workers import cores, other_processes
from nitrodistill.evaluation import EvaluateConfig, Evaluation, Pictures, draw_grid, help_draw
from nitrodistill.evaluation.report import compare, verdict, write_comparison
from nitrodistill.evaluation.results import (
    GRID,
    RESULTS,
    background,
    card_facts,
    check_output,
    write_results,
)
from nitrodistill.evaluation.student import measure_student
from nitrodistill.export import Measured, export
from nitrodistill.export.folder import check_target
from nitrodistill.method import Draws
from nitrodistill.models import Pipeline
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.teachers import load_teacher
from nitrodistill.toy.manifest import STUDENT_WEIGHTS
from nitrodistill.training import with_progress
from nitrodistill.training.recipe import Recipe
from nitrodistill.training.run import load_student, training_latents
from nitrodistill.training.stages import run_recipe

FIRST = "first.png"
COMPARISON = "comparison.html"
ONE_STEP = "one-step"
PIPELINES = ("pipeline", "pipeline-one-step")
FILES = (
    *("pairs", "scenes", "scenes.tar", "student", "student-one-step", "teacher"),
    *(ONE_STEP, FIRST, COMPARISON, *RESULTS, *PIPELINES),
)
"""What a demo's folder may hold."""

DATA_PER_FILE = 128
"""A multiple of the teacher's batch, small enough that a few processes end together."""

BATCH_SIZE = 64
"""Of LADD."""

SCENES = 4096
"""Rendered scenes, for the discriminator's real side."""

# left by a demo that was killed while it wrote
_TEMPORARY = re.compile(
    rf"\.({'|'.join(map(re.escape, (*RESULTS, FIRST, COMPARISON, 'scenes.tar')))})\..*\.tmp"
    r"|\.pipeline(-one-step)?(\.old)?\.\w+"
)

TITLES = {
    "teacher": "teacher, 25 steps",
    "naive": "teacher, 1 step",
    "student": "student, 1 step",
}


@dataclass(frozen=True)
class DemoConfig:
    """How large a demo.

    Attributes:
        output: folder of the results.
        method: dmd2 needs no pairs, and trains a student of four steps and one of one step; ladd trains one of
            one step on pairs that the teacher makes.
        steps: optimizer steps of the distillation; null is 800 of dmd2, or 900 of ladd. dmd2's one-step student
            takes a quarter more.
        pairs: how many pairs of noise and latent the teacher makes, of ladd alone; null is 2600.
        samples: pictures of each model in the evaluation.
        seed: of everything.

    Example:
        >>> from nitrodistill.demo import DemoConfig
        >>> DemoConfig(method="ladd", pairs=600, steps=100).steps
        100
    """

    output: str = "runs/demo"
    method: Literal["dmd2", "ladd"] = "dmd2"
    steps: int | None = None
    pairs: int | None = None
    samples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, pairs=1, steps=1, samples=4, seed=0)
        if self.pairs is not None and self.method != "ladd":
            raise ValueError(
                f"pairs is {self.pairs}, but {self.method} needs no pairs; leave it out, or take the method ladd."
            )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the first student."""
        return self.steps or {"dmd2": 800, "ladd": 900}[self.method]

    @property
    def num_pairs(self) -> int:
        """Pairs that the teacher makes."""
        return (self.pairs or 2600) if self.method == "ladd" else 0


class _Student(NamedTuple):
    """A student of the demo: its recipe, and where its results and its pipeline go."""

    recipe: Recipe
    results: Path
    pipeline: Path


def students(config: DemoConfig) -> list[_Student]:
    """Who is trained; the first is the demo's result."""
    root, steps = Path(config.output), config.num_steps
    folder = str(root / "student")
    if config.method == "ladd":
        recipe = toy_recipe(str(root / "pairs"), folder, steps, config.seed, BATCH_SIZE)
        return [_Student(recipe, root, root / PIPELINES[0])]
    scenes = str(root / "scenes")
    return [
        _Student(matching_recipe(scenes, folder, steps, 4, config.seed), root, root / PIPELINES[0]),
        _Student(
            matching_recipe(scenes, f"{folder}-one-step", steps + steps // 4, 1, config.seed),
            root / ONE_STEP,
            root / PIPELINES[1],
        ),
    ]


def shuffled_captions(seed: int = 0) -> list[str]:
    """The embedded teacher's captions in a random order, so that any number of them is a fair sample.

    Example:
        >>> from nitrodistill.demo import shuffled_captions
        >>> len(set(shuffled_captions()))
        330
    """
    captions = toy.scenes.captions()
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed))
    return [captions[i] for i in order.tolist()]


def run_demo(
    config: DemoConfig, say: Callable[[str], None] = print, *, progress: bool = True
) -> list[Evaluation]:
    """Runs the demo, or what is left of it, and writes its folder.

    Args:
        config: how large.
        say: takes what is said.
        progress: say and show how far it is; else the result alone is said.

    Returns:
        The evaluation of each student; the first is the demo's result.

    Raises:
        FileExistsError: if the folder holds something else.
        ValueError: if it holds a demo with other settings.
        RuntimeError: if another process of the demo fails.

    Example:
        >>> from nitrodistill.demo import DemoConfig, run_demo
        >>> found = run_demo(DemoConfig(output="runs/demo"))  # doctest: +SKIP
    """
    torch.set_num_threads(1)  # networks this small get slower when threads share them
    start, root = time.perf_counter(), Path(config.output)
    _check_folder(root, config.method)
    note = say if progress else _silent
    files = -(-max(config.num_pairs or SCENES, config.samples) // DATA_PER_FILE)
    pipeline, done = load_teacher("toy"), students(config)
    _draw_first(pipeline, root / FIRST, note)
    if config.method == "dmd2":
        captions = shuffled_captions()
        texts = [captions[i % len(captions)] for i in range(SCENES)]
        toy.scenes.save(texts, root / "scenes.tar", config.seed)
    count = min(cores(), max(files, len(done)))
    with other_processes(_share, config, progress, count=count):
        _share(config, progress, 0, count, note)
    found = [_measured(config, pipeline, student, progress) for student in done]
    _show_together(root, found)
    note("4/4  export: diffusers pipelines, tested in a fresh process")
    for student, numbers in zip(done, found, strict=True):
        _export(pipeline, student, numbers)
    say(_closing(found, config, root / "report.html", time.perf_counter() - start))
    return found


def _silent(text: str) -> None:
    """Says nothing."""


def _share(
    config: DemoConfig,
    progress: bool,
    rank: int,
    count: int,
    say: Callable[[str], None] = _silent,
) -> None:
    """A process's part of the work; those that train no student draw the teacher's pictures meanwhile."""
    pipeline, root = load_teacher("toy"), Path(config.output)
    part: dict[str, Any] = {"rank": rank, "world_size": count, "progress": progress}
    size: dict[str, Any] = {"seed": config.seed, "batch_size": 64, "shard_size": DATA_PER_FILE}
    if config.method == "ladd":
        say(f"1/4  pairs: the teacher draws {config.num_pairs} latents in 25 steps")
        pairs = GenerateConfig(num_pairs=config.num_pairs, **size)
        generate(pipeline, shuffled_captions(), root / "pairs", pairs, teacher_name="toy", **part)
    else:
        say(f"1/4  scenes: {SCENES} are rendered, and encoded by the VAE; no pairs are needed")
        images, settings = open_images(root / "scenes.tar"), EncodeConfig(**size)
        encode(pipeline, images, root / "scenes", settings, teacher_name="toy", **part)
    taught = students(config)
    names = "students in 4 steps and in 1" if len(taught) > 1 else "a student in 1 step"
    say(f"2/4  distillation by {config.method}: {names}, {config.num_steps} steps of training")
    for student in taught[rank::count]:
        for _ in with_progress(run_recipe(student.recipe, pipeline), progress and rank == 0):
            pass
    say(
        f"3/4  evaluation: {config.samples} pictures of teacher, naive one-step teacher and student"
    )
    help_draw(pipeline, shuffled_captions(), _evaluation(config), root / "teacher", **part)


def _measured(
    config: DemoConfig, pipeline: Pipeline, student: _Student, progress: bool
) -> Evaluation:
    """What a student is measured to be; its report is written."""
    run = Path(student.recipe.output)
    loaded, made = load_student(run, pipeline), background(run)
    found = measure_student(
        "toy",
        pipeline,
        loaded.denoiser,
        loaded.plan,
        shuffled_captions(),
        _evaluation(config),
        training_latents=training_latents(loaded.recipe),
        cache=Path(config.output) / "teacher",
        progress=progress,
    )
    steps = f"{len(loaded.plan)} step{'s' if len(loaded.plan) > 1 else ''}"
    title = f"{config.method.upper()} on the embedded teacher, {steps}"
    student.results.mkdir(parents=True, exist_ok=True)
    write_results(found, student.results, made, title, TITLES | {"student": f"student, {steps}"})
    return found


def _evaluation(config: DemoConfig) -> EvaluateConfig:
    return EvaluateConfig(num_samples=config.samples, seed=config.seed, cost_repeats=3)


def _draw_first(pipeline: Pipeline, path: Path, say: Callable[[str], None]) -> None:
    """Pictures to look at before anything is trained, by the student that ships with the package."""
    if path.exists():
        return
    say(
        "0/4  first pictures: teacher, naive one-step teacher, and the one-step student in this package"
    )
    shipped = Pipeline.from_diffusers(toy.load_student_pipeline()).denoiser
    prompts = shuffled_captions(1)[:4]
    draws = Draws(0, 0, torch.arange(len(prompts)), purpose="first pictures")
    noise, c = draws.normal("noise", pipeline.latent_shape), pipeline.encode_prompt(prompts)
    one_step = StepPlan.from_schedule(pipeline.denoiser.schedule, 1)
    guided = pipeline.guided(toy.GUIDANCE_SCALE)
    many = StepPlan.from_schedule(guided.schedule, toy.NUM_INFERENCE_STEPS)
    models = {
        "teacher": (guided, many),
        "naive": (pipeline.denoiser, one_step),
        "student": (shipped, one_step),
    }
    with torch.no_grad():
        images = {
            name: pipeline.decode(sample(denoiser, plan, noise, c))
            for name, (denoiser, plan) in models.items()
        }
    titles = TITLES | {"student": "shipped student, 1 step"}
    draw_grid(Pictures(tuple(prompts), images), path, titles)
    say(f"     {_shipped()}")
    say(f"     look at {path}; a new student is distilled now")


def _shipped() -> str:
    """What the student in the package was measured to be."""
    found = json.loads((STUDENT_WEIGHTS / "metrics.json").read_text(encoding="utf-8"))
    mine, teachers = found["student"], found["teacher"]
    return (
        f"it shows {mine['alignment']:.1%} of its prompts (the teacher {teachers['alignment']:.1%}), "
        f"FD to real {mine['fd_real']:.2f} (the teacher {teachers['fd_real']:.2f}), {found['samples']} pictures"
    )


def _show_together(root: Path, found: Sequence[Evaluation]) -> None:
    """All students in one picture, and on a page that compares them."""
    if len(found) == 1:
        return
    first, second = (one.examples for one in found)
    if first is None or second is None:
        return
    names = ("student in 4 steps", "student in 1 step")
    images = {**first.images, "student, 1 step": second.images["student"]}
    draw_grid(replace(first, images=images), root / GRID, TITLES | {"student": "student, 4 steps"})
    compared = compare(dict(zip(names, found, strict=True)))
    write_comparison(compared, root / COMPARISON, dict(zip(names, (first, second), strict=True)))


def _export(pipeline: Pipeline, student: _Student, found: Evaluation) -> None:
    loaded = load_student(student.recipe.output, pipeline)
    export(
        pipeline,
        loaded.denoiser,
        loaded.plan,
        student.pipeline,
        base_model="toy",
        metrics=Measured(**card_facts(found, student.results)),
        licence="apache-2.0",
        prompts=shuffled_captions()[:4],
    )


def _closing(found: Sequence[Evaluation], config: DemoConfig, report: Path, seconds: float) -> str:
    steps = [len(one.settings["student_timesteps"]) for one in found]
    lines = []
    for one, number in zip(found, steps, strict=True):
        title = f"The student in {number} step{'s' if number > 1 else ''}:"
        lines += ["", title, "", one.text(), "", *_speed(one), verdict(one).headline]
        lines += _reproduced(one, config, number)
    best = Path(config.output) / PIPELINES[0]
    return "\n".join(
        [
            *lines,
            f"Done in {seconds:.0f} s. Open {report} in a browser, then draw with the student:",
            "",
            "    from diffusers import DiffusionPipeline",
            f'    pipe = DiffusionPipeline.from_pretrained("{best}")',
            '    pipe("a large red ring on a blue background", '
            f"num_inference_steps={steps[0]}, guidance_scale=0).images[0]",
        ]
    )


def _speed(found: Evaluation) -> list[str]:
    times = [
        found.value(name, key)
        for key in ("denoise_ms", "pipeline_ms")
        for name in ("teacher", "student")
    ]
    known = [time for time in times if time]
    if len(known) < 4:
        return []
    return [
        f"It denoises {known[0] / known[1]:.0f} times faster than its teacher; the whole pipeline is "
        f"{known[2] / known[3]:.1f} times faster."
    ]


def _reproduced(found: Evaluation, config: DemoConfig, num_inference_steps: int) -> list[str]:
    """Whether the numbers are those stated for a demo of this length; nothing for other lengths."""
    expected = stated(length_of(config), num_inference_steps)
    if expected is None:
        return []
    other = outside(found, expected)
    if not other:
        return [
            f"All {len(expected)} numbers lie where they are expected of a demo of this length."
        ]
    return [f"Not where a demo of this length is expected: {'; '.join(other)}."]


def length_of(config: DemoConfig) -> Length:
    """What makes this demo long."""
    return Length(config.method, config.num_pairs, config.num_steps, config.samples)


def _check_folder(root: Path, method: str) -> None:
    """Refuses a folder of something else, or of a demo by the other method, before any work."""
    check_output(root)
    names = sorted(path.name for path in root.iterdir()) if root.exists() else []
    strangers = [n for n in names if n not in FILES and not _TEMPORARY.fullmatch(n)]
    if strangers:
        raise FileExistsError(
            f"{str(root)!r} holds something else ({strangers[0]}); choose another folder with --output."
        )
    data, other = {"dmd2": ("pairs", "ladd"), "ladd": ("scenes.tar", "dmd2")}[method]
    if data in names:
        raise ValueError(
            f"{str(root)!r} holds a demo by {other} ({data}); go on with --method {other}, or choose another "
            "folder with --output."
        )
    for name in PIPELINES:
        check_target(root / name)
