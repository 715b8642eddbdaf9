"""`nitrodistill evaluate`: the numbers of a run's student and of its teacher.

Measure the newest student of a run (the moving average of its weights) with its teacher and with the naive
student, the teacher itself in one step, all on the same noise and prompts. Prints a table and writes
report.html (open it in a browser: pictures side by side, numbers with intervals, curves, cost), metrics.json and
grid.png into the run's folder.

With the embedded teacher an oracle reads the pictures: alignment is the share of pictures that show all that their
prompt says, FD the Frechet distance on the oracle's features. With other teachers give networks that are on this
machine (--inception, --clip, --dino) and a folder of real pictures (--real); without them FD is that of texture
features. All options may stand in a YAML file: examples/recipes/evaluation/coco-30k.yaml is one.

With --cache, a stopped evaluation goes on where it was and the next student of this teacher costs only itself.
Started by torchrun, accelerate launch or srun, all processes draw for teacher and student; the first one measures.
(The two dashes below keep torchrun from taking --run for an option of its own.)

example:
  nitrodistill evaluate runs/student --num_samples 256
  nitrodistill evaluate runs/student --cache runs/teacher --real photos --inception auto --lpips vgg
  nitrodistill evaluate --config examples/recipes/evaluation/coco-30k.yaml --run runs/student
  torchrun --nproc_per_node 8 -m -- nitrodistill evaluate --run runs/student --cache runs/teacher
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from nitrodistill.cli.arguments import (
    DeviceOption,
    Parser,
    RunOptions,
    given_of,
    parse,
    read_config,
    refuse,
)
from nitrodistill.cli.terminal import results, say

if TYPE_CHECKING:
    from nitrodistill.training import Recipe


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        config: a YAML file with these options.
        prompts: text file, table or dataset, or "", as for generate; null takes the prompts of the run's pairs.
        output: folder of the result; null takes the run's.
        cache: folder that keeps latents and the numbers of real pictures.
        num_inference_steps: sampling steps of the teacher; null takes those that it made the pairs in.
        guidance: the teacher's guidance scale, 1 is none; null takes what it made the pairs with.
    """

    config: str | None = None
    prompts: str | None = None
    output: str | None = None
    cache: str | None = None
    num_inference_steps: int | None = None
    guidance: float | None = None


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill evaluate --help`."""
    from nitrodistill.data.prompts import PromptConfig
    from nitrodistill.evaluation import EvaluateConfig
    from nitrodistill.evaluation.student import MetricNetworks
    from nitrodistill.processes import place

    parts = RunOptions, _Options, PromptConfig, DeviceOption, MetricNetworks, EvaluateConfig
    given = parse(Parser("evaluate", __doc__, *parts, words="run"), argv, file=True)
    networks = read_config(given, MetricNetworks)
    if given.prompts is None:
        refuse(given, given_of(given, PromptConfig), "it is of --prompts, which is not given")
    here = place()
    if here.world_size > 1 and given.cache is None:
        raise ValueError("several processes share their work in a folder; give one with --cache.")

    from nitrodistill.cli.runs import open_run, prompts_of, teacher_settings
    from nitrodistill.evaluation import help_draw
    from nitrodistill.evaluation.results import background, check_output, write_results
    from nitrodistill.evaluation.student import measure_student

    output = Path(given.output or given.run)
    check_output(output)
    run = open_run(given.run, given.checkpoint, given.stage, given.teacher)
    made, student, device = background(run.path), run.student, here.device(given.device)
    run.pipeline.to(device)
    student.denoiser.module.to(device)
    prompts = prompts_of(run, given.prompts, read_config(given, PromptConfig))
    steps, guidance = teacher_settings(run)  # as in the run's previews
    config = read_config(
        given,
        EvaluateConfig,
        num_inference_steps=steps
        if given.num_inference_steps is None
        else given.num_inference_steps,
        guidance=guidance if given.guidance is None else given.guidance,
    )
    if here.world_size > 1:
        help_draw(
            run.pipeline,
            prompts,
            config,
            given.cache,
            rank=here.rank,
            world_size=here.world_size,
            student=student.denoiser,
            plan=student.plan,
            progress=not given.quiet,
        )
        if here.rank > 0:
            return 0
    found = measure_student(
        student.recipe.teacher,
        run.pipeline,
        student.denoiser,
        student.plan,
        prompts,
        config,
        networks=networks,
        training_latents=_trained_on(student.recipe),
        cache=given.cache,
        progress=not given.quiet,
    )
    report = write_results(found, output, made, title=run.path.resolve().name)
    results(report=report, models=found.models)
    say(found.text(), lines=True)
    others = "metrics.json and grid.png" if found.examples is not None else "metrics.json"
    say(f"written to {report}, with {others} in the same folder")
    return 0


def _trained_on(recipe: Recipe) -> Tensor | None:
    """What the student was trained on; None, and a line that says so, where that is gone."""
    from nitrodistill.training.run import training_latents

    try:
        return training_latents(recipe)
    except FileNotFoundError as error:
        say(f"memorisation is not measured: {error}", sys.stderr)
        return None
