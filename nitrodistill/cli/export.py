"""`nitrodistill export`: a run's student as a diffusers pipeline.

Write the newest student of a run (the moving average of its weights) as a diffusers pipeline, with the teacher's
text encoder and VAE. Nobody who uses it needs nitrodistill:

    pipe = DiffusionPipeline.from_pretrained("runs/pipeline")
    pipe("a small red circle on a black background", num_inference_steps=1, guidance_scale=0)

Of a run whose recipe has `lora` that is the role merged into the teacher's weights; --lora writes the role alone,
as a file that the teacher's pipeline loads.

The folder is loaded by a fresh process and compared with the student before it is put in place. The numbers of
`nitrodistill evaluate`, if the run has them of this student, go into its model card.

example:
  nitrodistill export runs/student --output runs/pipeline
  nitrodistill export runs/lora-student --output runs/lora --lora
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nitrodistill.cli.arguments import Parser, RunOptions, parse
from nitrodistill.cli.terminal import results, say

if TYPE_CHECKING:
    from nitrodistill.cli.runs import Run
    from nitrodistill.export import Measured


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        output: folder of the pipeline.
        lora: of a run whose recipe has lora: write the LoRA file for the teacher, not a whole pipeline.
        num_inference_steps: steps of the pipeline, of a flow map alone: it is written for one number of steps.
        scheduler: diffusers class of the scheduler that is saved; without it, one that is exact for the plan.
        licence: short name of the licence for the model card, such as "apache-2.0".
        push: also upload the folder to the Hugging Face Hub under this name, in one commit.
        public: with --push: a new repository is public; else it is private.
    """

    output: str
    lora: bool = False
    num_inference_steps: int | None = None
    scheduler: str | None = None
    licence: str | None = None
    push: str | None = None
    public: bool = False


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill export --help`."""
    given = parse(Parser("export", __doc__, RunOptions, _Options, words="run"), argv)

    from nitrodistill.cli.runs import open_run, preview_prompts, student_plan
    from nitrodistill.export import check_hub, export, export_lora, push
    from nitrodistill.models.wrappers import role_in

    if given.public and given.push is None:
        raise ValueError("--public says how to push; give --push user/name too.")
    if given.push is not None:
        check_hub(given.push)
    run = open_run(given.run, given.checkpoint, given.stage, given.teacher)
    run.pipeline.other_vae = None  # the one for previews; the export has the teacher's own
    student = run.student
    if given.lora and role_in(student.denoiser.module) is None:
        raise ValueError(
            f"--lora: the student of {given.run!r} is a whole network; leave it out, or train with `lora` in "
            "the recipe's stage."
        )
    write = export_lora if given.lora else export
    write(
        run.pipeline,
        student.denoiser,
        student_plan(student, given.num_inference_steps),
        given.output,
        base_model=_base_model(run) if given.lora else student.recipe.teacher,
        metrics=_measured(run),
        licence=given.licence,
        prompts=preview_prompts(run)[:2],
        scheduler=given.scheduler,
    )
    results(output=given.output, stage=student.checkpoint.stage, step=student.checkpoint.step)
    if given.push is not None:
        address = push(given.output, given.push, private=not given.public)
        results(pushed=address)
        say(f"pushed to {address}")
    say(f"the student of step {student.checkpoint.step} is in {Path(given.output)}; draw with")
    say(textwrap.indent(_example(Path(given.output)), "  "), lines=True)
    return 0


def _example(folder: Path) -> str:
    """The lines of the model card that load and draw: they hold the very call that was tested."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    return card.partition("```python\n")[2].partition("```")[0].rstrip()


def _base_model(run: Run) -> str:
    """What loads the teacher: its name, or of an embedded one its folder, where it is in one."""
    from nitrodistill.teachers import EMBEDDED

    teacher = run.student.recipe.teacher
    folder = run.pipeline.diffusers.config.get("_name_or_path") if teacher in EMBEDDED else None
    return str(folder or teacher)


def _measured(run: Run) -> Measured | None:
    """The numbers and the picture of the run's evaluation, if it is of this student."""
    from nitrodistill.evaluation import Evaluation
    from nitrodistill.evaluation.results import card_facts
    from nitrodistill.export import Measured
    from nitrodistill.models.pipeline import fingerprint

    file = run.path / "metrics.json"
    if not file.is_file():
        return None
    found = Evaluation.load(file)
    if found.settings.get("student_fingerprint") == fingerprint(run.student.denoiser.module):
        return Measured(**card_facts(found, run.path))
    say(
        f"{file} measured another student than the one exported, so the model card has no numbers; "
        "evaluate again, then export again.",
        sys.stderr,
    )
    return None
