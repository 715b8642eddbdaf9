"""`nitrodistill train`: a recipe, with overrides.

Distil a student from a recipe: a YAML file of yours, or one that comes with the package, by its name
(`nitrodistill recipes` lists them). It names the teacher, the data, a folder for the run and what is trained in
which stages, by which method. Every entry of the recipe is an option as well, and options win over the file. The
same command goes on where a run was stopped or killed, and on a CPU it then ends bit for bit like a run that was
not. SIGTERM and SIGUSR1 save and end it with exit code 0, Ctrl-C with 130; an alarm, with `stop_on: alarm` in the
trainer's settings, with 3, and nothing is saved on top of what was before. The folder holds the resolved recipe,
checkpoints (safetensors), log.jsonl, files for tensorboard, and previews.

Several processes: `torchrun --nproc_per_node 8 -m nitrodistill train ...`, `accelerate launch -m
nitrodistill train ...`, or one process a GPU by a scheduler, as in examples/train.sbatch. batch_size is
over all of them; `--stages.trainer.parallel fsdp` shares out the weights where "ddp" copies them.

example:
  nitrodistill train toy --pairs runs/pairs --output runs/student
  nitrodistill train recipe.yaml --stages.trainer.optimizers.student.learning_rate 1e-4 --steps 200
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nitrodistill.cli.arguments import Parser, describe, option_names, parse, underscored
from nitrodistill.cli.terminal import results, say
from nitrodistill.processes import place

if TYPE_CHECKING:
    from nitrodistill.training import Checkpoint, Recipe, State
    from nitrodistill.training.run import Resume


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        config: recipe: a YAML file, or the name of one that `nitrodistill recipes` lists.
        steps: optimizer steps of the last stage, in short.
        resume: auto goes on with what the folder holds; never wants a new or empty folder.
    """

    config: str | None = None
    steps: int | None = None
    resume: Literal["auto", "never"] = "auto"


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill train --help`."""
    from nitrodistill.training import StopSignals, find_checkpoints, run_recipe, with_progress

    recipe, resume, quiet = _read(argv)

    from nitrodistill.teachers import load_teacher

    last: State | None = None
    with StopSignals() as stop, warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)  # every skipped step is named
        _check(recipe)
        pipeline = load_teacher(recipe.teacher, recipe.teacher_settings)
        states = run_recipe(recipe, pipeline, resume=resume, stop=stop)
        for state in with_progress(states, show=False if quiet else None):
            last = state
            if state.evaluation and state.step == state.steps and place().rank == 0:
                say(_quality(state))
    found = find_checkpoints(Path(recipe.output))
    results(output=recipe.output, checkpoint=found[0].path if found else None, **_numbers(last))
    if place().rank == 0:
        say(_outcome(recipe, last, found))
    return {"SIGINT": 130, "alarm": 3}.get("" if last is None else last.stopped, 0)


def _check(recipe: Recipe) -> None:
    """Checks the stages by the teacher's configs alone, before its weights are downloaded or read."""
    from nitrodistill.teachers import EMBEDDED, teacher_shapes
    from nitrodistill.training.stages import check_stages

    if recipe.teacher not in EMBEDDED:
        check_stages(recipe, teacher_shapes(recipe.teacher, recipe.teacher_settings))


def _numbers(last: State | None) -> dict[str, object]:
    """What `--json` says of the last step; nothing where there was none to do."""
    if last is None:
        return {}
    return {
        "stage": last.stage,
        "step": last.step,
        "steps": last.steps,
        "losses": last.totals(),
        "evaluation": last.evaluation,
        "stopped": last.stopped,
    }


def _quality(state: State) -> str:
    """What the student of a stage is like, after its last step."""
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in (state.evaluation or {}).items())
    return f"stage {state.stage}, student: {numbers}"


def _outcome(recipe: Recipe, last: State | None, found: Sequence[Checkpoint]) -> str:
    if last is not None and last.stopped == "alarm":
        calm = last.step - recipe.stages[last.stage].trainer.alarm_window
        known = [c for c in found if (c.stage, c.step) <= (last.stage, calm)]
        before = f"from before it is {known[0].path}" if known else "nothing was saved before it"
        return (
            f"stopped by an alarm after step {last.step} of {last.steps} in stage {last.stage}; {before}: change "
            "the recipe as the alarm says, with another output, or go on with --stages.trainer.stop_on never"
        )
    newest = found[0]
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
    from nitrodistill.methods import find_method, known_methods
    from nitrodistill.training.recipe import Recipe, load_recipe

    kinds = {name: find_method(name).Config for name in known_methods()}
    settings = "\n".join(describe(kind, "stages.settings.") for kind in kinds.values())
    below = (
        "the entries of a recipe (those of `stages` change the last stage; --stages.0.trainer.steps the first):\n"
        f"{describe(Recipe)}\n\nmethods: {', '.join(kinds)}, or package.module:Class for one of your own. Their "
        f"settings:\n{settings}\n\n"
    )
    parser = Parser("train", __doc__, _Options, below=below, words="config")
    options, others = _split(argv, [f.name for f in fields(Recipe)])
    more = [name for kind in kinds.values() for name in option_names(kind, "stages.settings.")]
    given = parse(parser, others, option_names(Recipe) + more)
    if given.steps is not None:
        options.append(("stages.trainer.steps", str(given.steps)))
    if given.config is None and not options:
        raise ValueError("`nitrodistill train` needs a recipe: nitrodistill train FILE.")
    return load_recipe(given.config, options), given.resume, given.quiet


def _split(argv: Sequence[str], entries: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(dotted name, value) of the options that are entries of a recipe, and all other arguments."""
    options, others, left = [], [], list(argv)
    while left:
        argument = underscored(left.pop(0))
        name, equals, value = argument[2:].partition("=")
        if argument[:2] != "--" or name.split(".")[0] not in entries:
            others.append(argument)
            continue
        if not equals and (not left or left[0][:2] == "--"):
            raise ValueError(f"--{name} has no value; give it one.")
        options.append((name, value if equals else left.pop(0)))
    return options, others
