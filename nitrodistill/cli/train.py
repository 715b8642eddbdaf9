"""`nitrodistill train`: a recipe, with overrides."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nitrodistill.cli.arguments import add_quiet, describe, make_parser, option_names, parse

if TYPE_CHECKING:
    from nitrodistill.training import Checkpoint, Recipe, State
    from nitrodistill.training.stages import Resume

__all__ = ["main"]

ABOUT = """
Distil a student from a recipe: a YAML file that names the teacher, the pairs it made, a folder for the run and
what is trained in which stages. Every entry of the recipe is an option as well, and options win over the file if
they stand behind it. The same command goes on where a run was stopped or killed, and on a CPU it then ends bit for
bit like a run that was not. SIGTERM and SIGUSR1 save and end it with exit code 0. The folder holds the resolved
recipe, checkpoints (safetensors), log.jsonl, files for tensorboard, and previews.

Several processes: `torchrun --nproc_per_node 8 -m nitrodistill train ...`, `accelerate launch -m
nitrodistill train ...`, or one process a GPU by a scheduler, as in examples/train.sbatch. batch_size is
over all of them; `--stages.trainer.parallel fsdp` shares out the weights where "ddp" copies them.
"""

EXAMPLE = """
the entries of a stage (as options they change the last stage):
{entries}

example:
  nitrodistill train --config examples/recipes/toy.yaml --pairs runs/pairs --output runs/student
  nitrodistill train --config recipe.yaml --stages.trainer.optimizers.student.learning_rate 1e-4 --steps 200
"""


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill train --help`."""
    from nitrodistill.training import StopSignals, find_checkpoints, run_recipe, with_progress

    recipe, resume, quiet = _read(argv)

    from nitrodistill.cli.scoring import student_scores
    from nitrodistill.cli.teachers import load_teacher

    last: State | None = None
    with StopSignals() as stop, warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)  # every skipped step is named
        _check(recipe)
        pipeline = load_teacher(recipe.teacher)
        evaluate = student_scores(recipe, pipeline)
        states = run_recipe(recipe, pipeline, resume=resume, stop=stop, evaluate=evaluate)
        for state in with_progress(states, show=False if quiet else None):
            last = state
    if os.environ.get("RANK", "0") == "0":
        print(_outcome(recipe, last, find_checkpoints(Path(recipe.output))[0]))
    return 0


def _check(recipe: Recipe) -> None:
    """Checks the stages by the teacher's configs alone, before its weights are downloaded or read."""
    from nitrodistill.cli.teachers import EMBEDDED
    from nitrodistill.models.skeleton import skeleton
    from nitrodistill.training.stages import check_stages

    if recipe.teacher not in EMBEDDED:
        check_stages(recipe.stages, skeleton(recipe.teacher), evaluates=True)


def _outcome(recipe: Recipe, last: State | None, newest: Checkpoint) -> str:
    if last is None:
        return f"{recipe.output} is finished already; its student is in {newest.path}"
    losses = ", ".join(f"{role} {loss:.4g}" for role, loss in last.totals().items())
    if last.stopped:
        return (
            f"stopped by {last.stopped} after step {last.step} of {last.steps} in stage {last.stage} ({losses}); "
            f"all is saved in {newest.path}: the same command goes on from there"
        )
    return f"trained to step {last.step} ({losses}); the student is in {newest.path}"


def _read(argv: Sequence[str]) -> tuple[Recipe, Resume, bool]:
    from jsonargparse import ActionConfigFile

    from nitrodistill.training import Recipe, Stage
    from nitrodistill.training.recipe import plain_words

    parser = make_parser("train", ABOUT, EXAMPLE.format(entries=describe(Stage, "stages.")))
    parser.add_argument("--config", action=ActionConfigFile, help="recipe, a YAML file")
    parser.add_argument(
        "--steps", type=int, default=None, help="optimizer steps of the last stage, in short"
    )
    parser.add_argument(
        "--resume",
        type=Literal["auto", "never"],
        default="auto",
        help="auto goes on with what the folder holds; never wants a new or empty folder",
    )
    add_quiet(parser)
    parser.add_class_arguments(Recipe)
    _check_files(argv)
    try:
        given = parser.instantiate(parse(parser, argv, option_names(Recipe)))
    except ValueError as error:
        raise ValueError(plain_words(str(error))) from error
    recipe = Recipe(**{f.name: given[f.name] for f in dataclasses.fields(Recipe)})
    if given.steps is not None:
        recipe = _with_steps(recipe, given.steps)
    return recipe, given.resume, given.quiet


def _check_files(argv: Sequence[str]) -> None:
    """Names unknown keys in the recipe files before the parser sees them."""
    from nitrodistill.training.recipe import Recipe, check_keys, read_yaml

    for number, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name == "--config" and (equals or number + 1 < len(argv)):
            path = value if equals else argv[number + 1]
            try:
                check_keys(Recipe, read_yaml(path))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error


def _with_steps(recipe: Recipe, steps: int) -> Recipe:
    *before, last = recipe.stages
    trainer = dataclasses.replace(last.trainer, steps=steps)
    return dataclasses.replace(recipe, stages=[*before, dataclasses.replace(last, trainer=trainer)])
