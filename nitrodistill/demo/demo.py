"""The whole road on the embedded teacher.

    teacher -> pairs -> LADD -> evaluation -> diffusers pipeline -> pictures

A killed demo goes on where it stopped. The steps are the library's own, in the order in which a user would call
them; `examples/plain_loop.py` does the same without the trainer.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nitrodistill import toy
from nitrodistill.checks import check_fields
from nitrodistill.data import GenerateConfig, generate
from nitrodistill.demo.expected import Length, outside, stated
from nitrodistill.demo.workers import can_train_together, cores, other_processes, training_together
from nitrodistill.evaluation import EvaluateConfig, Evaluation, help_draw
from nitrodistill.evaluation.report import model_card_table, verdict
from nitrodistill.evaluation.results import RESULTS, background, check_output, write_results
from nitrodistill.evaluation.student import measure_student
from nitrodistill.export import export
from nitrodistill.export.folder import check_target
from nitrodistill.methods import LADDConfig
from nitrodistill.models import Pipeline
from nitrodistill.teachers import load_teacher
from nitrodistill.training import OptimizerConfig, TrainerConfig, with_progress
from nitrodistill.training.recipe import Recipe, Stage
from nitrodistill.training.run import load_student, training_latents
from nitrodistill.training.stages import run_recipe

PIPELINE = "pipeline"
FILES = ("pairs", "student", "teacher", *RESULTS, PIPELINE)
"""What a demo's folder may hold."""

PAIRS_PER_FILE = 128
"""A multiple of the teacher's batch, small enough that a few processes end together."""

BATCH_SIZE = 64
"""Two processes share it; of smaller ones the step that each takes costs too much."""

# left by a demo that was killed while it wrote
_TEMPORARY = re.compile(
    rf"\.({'|'.join(map(re.escape, RESULTS))})\..*\.tmp|\.pipeline(\.old)?\.\w+"
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
        pairs: how many pairs of noise and latent the teacher makes.
        steps: optimizer steps of the distillation.
        samples: pictures of each model in the evaluation.
        seed: of everything.
    """

    output: str = "runs/demo"
    pairs: int = 2600
    steps: int = 900
    samples: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, pairs=1, steps=1, samples=4, seed=0)


def toy_recipe(pairs: str, output: str, steps: int, seed: int = 0, batch_size: int = 48) -> Recipe:
    """The recipe that is measured in `benchmarks/demo_quality.py`; the demo takes larger batches."""
    settings = LADDConfig(
        taps=("conv_in", "down_blocks.0", "down_blocks.1", "mid_block"),
        head_width=96,
        adversarial="hinge",
        adversarial_weight=0.5,
        fresh_fraction=2 / 3,
        warmup_steps=round(0.15 * steps),
        discriminator_timesteps={"uniform": {"ranges": [[0.0, 0.4]]}},
        updates="shared",
        seed=seed,
    )
    # a short run must forget the teacher that the average starts as
    ema_decay = min(0.99, 1 - 5 / max(steps, 6))
    student = OptimizerConfig(8e-4, (0.5, 0.999), lr_decay_from=0.5, ema_decay=ema_decay)
    discriminator = OptimizerConfig(2e-3, (0.0, 0.999), lr_decay_from=0.5)
    trainer = TrainerConfig(
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        optimizers={"student": student, "discriminator": discriminator},
        checkpoint_every=200,
        log_every=20,
        preview_every=300,
    )
    return Recipe("toy", output, [Stage("ladd", trainer, settings)], pairs=pairs)


def shuffled_captions(seed: int = 0) -> list[str]:
    """The embedded teacher's captions in a random order, so that any number of them is a fair sample."""
    captions = toy.scenes.captions()
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed))
    return [captions[i] for i in order.tolist()]


def run_demo(
    config: DemoConfig, say: Callable[[str], None] = print, *, progress: bool = True
) -> Evaluation:
    """Runs the demo, or what is left of it, and writes its folder.

    Args:
        config: how large.
        say: takes what is said.
        progress: show how far each part is.

    Raises:
        FileExistsError: if the folder holds something else.
        ValueError: if it holds a demo with other settings.
    """
    torch.set_num_threads(1)  # networks this small get slower when threads share them
    start = time.perf_counter()
    root = Path(config.output)
    _check_folder(root)
    trainers = min(2, cores()) if can_train_together() else 1
    files = -(-max(config.pairs, config.samples) // PAIRS_PER_FILE)
    count = max(trainers, min(cores(), files))
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        with other_processes(_share, config, meeting, trainers, count=count):
            pipeline = _share(config, meeting, trainers, 0, count, say, progress)
    student, made = load_student(root / "student", pipeline), background(root / "student")
    found = measure_student(
        "toy",
        pipeline,
        student.denoiser,
        student.plan,
        shuffled_captions(),
        _evaluation(config),
        training_latents=training_latents(student.recipe),
        cache=root / "teacher",
        progress=progress,
    )
    title = "LADD on the embedded teacher"
    report = write_results(found, root, made, title, TITLES)

    say("4/4  export: a diffusers pipeline, tested in a fresh process")
    export(
        pipeline,
        student.denoiser,
        student.plan,
        root / PIPELINE,
        base_model="the toy teacher embedded in nitrodistill",
        metrics=model_card_table(found),
        licence="apache-2.0",
        prompts=shuffled_captions()[:4],
    )
    say(_closing(found, config, report, time.perf_counter() - start))
    return found


def _share(
    config: DemoConfig,
    meeting: Path,
    trainers: int,
    rank: int,
    count: int,
    say: Callable[[str], None] = lambda text: None,
    progress: bool = True,
) -> Pipeline:
    """A process's part of the work; those that do not train draw the teacher's pictures meanwhile."""
    pipeline = load_teacher("toy")
    say(f"1/4  pairs: the teacher draws {config.pairs} latents in 25 steps")
    _make_pairs(config, pipeline, rank, count, progress)
    say(f"2/4  distillation: {config.steps} steps of LADD")
    if rank < trainers:
        _train(config, pipeline, meeting, rank, trainers, progress)
    say(
        f"3/4  evaluation: {config.samples} pictures of teacher, naive one-step teacher and student"
    )
    _draw_teacher(config, pipeline, rank, count, progress)
    return pipeline


def _make_pairs(
    config: DemoConfig, pipeline: Pipeline, rank: int, count: int, progress: bool
) -> None:
    settings = GenerateConfig(
        num_pairs=config.pairs, seed=config.seed, batch_size=64, shard_size=PAIRS_PER_FILE
    )
    generate(
        pipeline,
        shuffled_captions(),
        Path(config.output) / "pairs",
        settings,
        teacher_name="toy",
        rank=rank,
        world_size=count,
        progress=progress,
    )


def _train(
    config: DemoConfig, pipeline: Pipeline, meeting: Path, rank: int, count: int, progress: bool
) -> None:
    root = Path(config.output)
    recipe = toy_recipe(
        str(root / "pairs"), str(root / "student"), config.steps, config.seed, BATCH_SIZE
    )
    with training_together(rank, count, meeting):
        for _ in with_progress(run_recipe(recipe, pipeline), show=progress and rank == 0):
            pass


def _draw_teacher(
    config: DemoConfig, pipeline: Pipeline, rank: int, count: int, progress: bool
) -> None:
    help_draw(
        pipeline,
        shuffled_captions(),
        _evaluation(config),
        Path(config.output) / "teacher",
        rank=rank,
        world_size=count,
        progress=progress,
    )


def _evaluation(config: DemoConfig) -> EvaluateConfig:
    return EvaluateConfig(num_samples=config.samples, seed=config.seed)


def _closing(found: Evaluation, config: DemoConfig, report: Path, seconds: float) -> str:
    times = [
        found.value(name, key)
        for key in ("denoise_ms", "pipeline_ms")
        for name in ("teacher", "student")
    ]
    lines = ["", found.text(), ""]
    known = [time for time in times if time]
    if len(known) == 4:
        lines += [
            f"The student denoises {known[0] / known[1]:.0f} times faster than its teacher; the whole "
            f"pipeline is {known[2] / known[3]:.1f} times faster."
        ]
    lines += [
        verdict(found).headline,
        *_reproduced(found, config),
        f"Done in {seconds:.0f} s. Open {report} in a browser, then draw with the student:",
        "",
        "    from diffusers import DiffusionPipeline",
        f'    pipe = DiffusionPipeline.from_pretrained("{config.output}/pipeline")',
        '    pipe("a large red ring on a blue background", num_inference_steps=1, guidance_scale=0).images[0]',
    ]
    return "\n".join(lines)


def _reproduced(found: Evaluation, config: DemoConfig) -> list[str]:
    """Whether the numbers are those stated for a demo of this length; nothing for other lengths."""
    expected = stated(Length(config.pairs, config.steps, config.samples))
    if expected is None:
        return []
    other = outside(found, expected)
    if not other:
        return [
            f"All {len(expected)} numbers lie where they are expected of a demo of this length."
        ]
    return [f"Not where a demo of this length is expected: {'; '.join(other)}."]


def _check_folder(root: Path) -> None:
    check_output(root)
    names = sorted(path.name for path in root.iterdir()) if root.exists() else []
    strangers = [n for n in names if n not in FILES and not _TEMPORARY.fullmatch(n)]
    if strangers:
        raise FileExistsError(
            f"{str(root)!r} holds something else ({strangers[0]}); choose another folder with --output."
        )
    check_target(root / PIPELINE)
