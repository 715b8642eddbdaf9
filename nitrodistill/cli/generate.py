"""`nitrodistill generate`: pairs from a teacher.

Let a teacher draw pairs: noise, and the latent that the teacher makes of it in many steps, with the text
conditioning of its prompt. A student learns from them to do the same in one step. The pairs are written to a
folder with a manifest that says how they were made. The same command goes on with, or repairs, a folder that it
began; a finished one is left as it is. Started by torchrun, accelerate launch or srun, on any number of machines
that share the folder, or simply twice, the processes share the work; one and many write the same bytes on one type
of machine.

example:
  printf 'a small red circle on a black background\\na large blue ring on a gray background\\n' > prompts.txt
  nitrodistill generate --teacher toy --prompts prompts.txt --output runs/pairs --num_pairs 64
  nitrodistill generate --teacher toy --prompts prompts.txt --output runs/more --num_pairs 100000 --dry_run
  torchrun --nproc_per_node 8 -m nitrodistill generate --teacher toy --prompts prompts.txt \\
    --output runs/pairs --num_pairs 64
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from nitrodistill.cli.arguments import DeviceOption, Parser, TeacherOption, parse, read_config
from nitrodistill.cli.terminal import results, say, size_text, time_text

if TYPE_CHECKING:
    from nitrodistill.data import DryRun, Generation


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        prompts: text file (UTF-8) with a prompt a line (class-conditional teachers: the number or name of a
            class), a column of a table (captions.csv:caption; also TSV, JSONL, parquet) or of a dataset of the
            `datasets` library (user/name:caption); "" is the empty prompt, the only one of unconditional teachers.
        output: folder of the pairs.
        limit: stop when the first so many pairs are there, in whole files; the same command without it, or with a
            larger one, goes on.
        dry_run: say how large it gets and how long it takes; write nothing.
    """

    prompts: str
    output: str
    limit: int | None = None
    dry_run: bool = False


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill generate --help`."""
    from nitrodistill.data import GenerateConfig, Generation, PromptConfig, complete, read_prompts
    from nitrodistill.processes import place
    from nitrodistill.teachers import TeacherSettings, load_teacher

    parts = (TeacherOption, TeacherSettings, _Options, PromptConfig, GenerateConfig, DeviceOption)
    given = parse(Parser("generate", __doc__, *parts), argv)
    config = read_config(given, GenerateConfig)
    prompts = read_prompts(given.prompts, read_config(given, PromptConfig))
    here = place()
    device = here.device(given.device)

    pipeline = load_teacher(given.teacher, read_config(given, TeacherSettings)).to(device)
    work = Generation(pipeline, prompts, given.output, config, given.teacher)
    if given.dry_run:
        if here.rank == 0:
            found = work.dry_run()
            results(output=given.output, processes=here.world_size, **asdict(found))
            say(_summary(found, here.world_size, given.output))
        return 0
    if given.limit is not None and given.limit < config.num_pairs:
        return _part(work, given.limit, here.rank, here.world_size, not given.quiet)
    store = complete(work, here.rank, here.world_size, progress=not given.quiet)
    results(output=given.output, pairs=len(store), prompts=len(store.prompts))
    if here.rank == 0:
        say(f"{len(store)} pairs of {len(store.prompts)} prompts in {given.output}")
    return 0


def _part(work: Generation, limit: int, rank: int, world_size: int, progress: bool) -> int:
    try:
        done = work.run(rank, world_size, limit, progress)
    finally:
        work.discard()  # ends the claims; removes only what holds nothing
    if done:
        work.finish()
    results(output=str(work.root), pairs=limit, is_whole=done)
    if rank == 0:
        rest = "" if done else "; the same command without --limit makes the rest"
        say(f"the first {limit} of {work.config.num_pairs} pairs are in {work.root}{rest}")
    return 0


def _summary(found: DryRun, world_size: int, output: str) -> str:
    workers = "one process" if world_size == 1 else f"{world_size} processes"
    return (
        f"{found.pairs} pairs of {found.prompts} prompts: about {size_text(found.size_bytes)} in "
        f"{output}; {found.missing} are missing, about {time_text(found.seconds / world_size)} for "
        f"{workers} like this one. Nothing was written."
    )
