"""`nitrodistill draw`: pictures from prompts, by a student and its teacher.

Draw prompts with the student of a run, with an exported pipeline or an exported LoRA, and with --beside teacher
also with the teacher, from the same noise. Each picture becomes a PNG in the output folder, and sheet.png shows
all of them; files of the same names are replaced. Prints how long a picture takes, from its prompt on. The noise
is a function of the seed alone, and none of training, previews or evaluation.

example:
  nitrodistill draw --model runs/student "a small red circle on a black background" --seed 7
  nitrodistill draw --model runs/pipeline --prompts prompts.txt --num_images 4 --beside teacher
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from nitrodistill.checks import check_whole
from nitrodistill.cli.arguments import DeviceOption, Parser, given_of, parse, read_config, refuse
from nitrodistill.cli.terminal import results, say

_CELL = 384
"""Pixels of a picture on the sheet, at most."""


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        model: folder of a run, of an exported pipeline, or of an exported LoRA.
        prompts: file of prompts, or what else generate takes, next to those that stand in the command.
        output: folder of the pictures.
        beside: who draws too, from the same noise.
        seed: of the first picture of a prompt.
        num_images: of each prompt, with one seed after the other.
        steps: of the student, a flow map alone; null takes those that it was trained for.
        teacher: where the teacher is now; null looks where the run or the export says.
        teacher_steps: of the teacher; null takes those of the run's previews, or 25.
        guidance: the teacher's scale, 1 is none; null takes that of the run's previews, or 3.
    """

    model: str
    prompts: str | None = None
    output: str = "drawings"
    beside: Literal["nobody", "teacher"] = "nobody"
    seed: int = 0
    num_images: int = 1
    steps: int | None = None
    teacher: str | None = None
    teacher_steps: int | None = None
    guidance: float | None = None


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill draw --help`."""
    from nitrodistill.data.prompts import PromptConfig, read_prompts
    from nitrodistill.teachers import TeacherSettings

    parser = Parser("draw", __doc__, _Options, PromptConfig, TeacherSettings, DeviceOption)
    parser.add("prompt", "what to draw; several, each in quotes", list[str], [])
    given = parse(parser, argv)

    from nitrodistill.cli.pictures import draw, load_models
    from nitrodistill.evaluation import Pictures, draw_grid
    from nitrodistill.evaluation.picture import to_pil
    from nitrodistill.processes import place
    from nitrodistill.progress import progress_bar

    check_whole("num_images", given.num_images)
    which, file = read_config(given, PromptConfig), given.prompts
    if file is None:
        refuse(given, given_of(given, PromptConfig), "it is of --prompts, which is not given")
    if given.beside == "nobody":
        refuse(given, ("teacher_steps", "guidance"), "without --beside teacher no teacher draws")
    read = [] if file is None else read_prompts(file, which)
    prompts = list(dict.fromkeys([*given.prompt, *read]))
    if not prompts:
        raise ValueError(
            'there is nothing to draw; give prompts: "a red circle", or --prompts FILE.'
        )
    models = load_models(
        given.model,
        given_of(given, TeacherSettings),
        compare=given.beside == "teacher",
        teacher=given.teacher,
        steps=given.steps,
        teacher_steps=given.teacher_steps,
        guidance=given.guidance,
        device=place().device(given.device),
    )
    for prompt in prompts:
        models["student"].pipeline.check_prompt(prompt)
    output = Path(given.output)
    output.mkdir(parents=True, exist_ok=True)
    seeds = range(given.seed, given.seed + given.num_images)
    rows = [(number, prompt, seed) for number, prompt in enumerate(prompts) for seed in seeds]
    texts = [f"{text} (seed {seed})" if len(seeds) > 1 else text for _, text, seed in rows]
    found: dict[str, Tensor] = {}
    milliseconds: dict[str, float] = {}
    for name, model in models.items():
        times, small = [], []
        for number, prompt, seed in progress_bar(
            rows, desc=name, unit="picture", show=not given.quiet
        ):
            image, seconds = draw(model, prompt, seed)
            to_pil(image[None])[0].save(output / f"{number:04d}-seed-{seed}-{name}.png")
            times.append(seconds)
            small.append(_at_most(image[None], _CELL))
        found[name] = torch.cat(small)
        steps = f"{len(model.plan)} step{'s' if len(model.plan) > 1 else ''}"
        first = ", the first one, which warms up, left out" if len(times) > 1 else ""
        milliseconds[name] = 1000 * statistics.median(times[1:] or times)
        say(
            f"{name}: {milliseconds[name]:.4g} ms a picture in {steps} (median of {len(times)}{first})"
        )
    sheet = draw_grid(Pictures(tuple(texts), found), output / "sheet.png")
    results(output=str(output), prompts=prompts, milliseconds=milliseconds)
    say(f"{len(rows)} pictures of each are in {output}, all together in {sheet}")
    return 0


def _at_most(images: Tensor, side: int) -> Tensor:
    """Pictures that are no larger than `side` pixels, scaled down by a whole factor."""
    factor = -(-max(images.shape[-2:]) // side)
    return torch.nn.functional.avg_pool2d(images, factor) if factor > 1 else images
