"""Pairs from a teacher, by any number of workers: `x0 = sample(Guided(teacher), plan, noise, condition)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from nitrodistill.data.generation import GenerateConfig, Generation
from nitrodistill.data.pairs import PairStore
from nitrodistill.models.pipeline import Pipeline

__all__ = ["generate"]


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    output: str | Path,
    config: GenerateConfig,
    *,
    teacher_name: str,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] | None = None,
    progress: bool = True,
) -> PairStore:
    """Makes a pair store with a teacher, or completes one that was begun with the same settings.

    Worker `rank` of `world_size` makes the files k with `k % world_size == rank`.

    Args:
        pipeline: the teacher.
        prompts: what it draws; sample i has prompt `i % len(prompts)`, so shuffle a sorted list that
            is longer than `num_pairs`.
        output: folder of the store; missing, empty, or begun with these settings.
        config: how.
        teacher_name: recorded in the manifest, for people.
        rank: number of this worker.
        world_size: how many workers there are; all run this with equal arguments but `rank`.
        barrier: waits until every worker has called it (`accelerator.wait_for_everyone`); needed by
            more than one worker.
        progress: shows a bar with rate and time left.

    Returns:
        The finished store.

    Raises:
        ValueError: if there are no prompts, one is unknown to the text encoder, the teacher cannot be
            sampled in that many steps, or what it draws is not finite.
        FileExistsError: if the folder holds something else, or a store with other settings.
        PermissionError: if the folder cannot be written.
    """
    if not 0 <= rank < world_size or (world_size > 1 and barrier is None):
        raise ValueError(
            f"rank {rank} of world_size {world_size}: rank must be in 0 ... world_size - 1, and more "
            "than one worker needs a barrier."
        )
    wait = barrier or (lambda: None)
    work = Generation(pipeline, prompts, output, config, teacher_name)
    try:
        work.prepare()
        for k in work.prompt_files[rank::world_size]:
            work.write_prompts(k)
        wait()
        shards = work.shards[rank::world_size]
        total = sum(len(work.samples(k)) for k in shards)
        with tqdm(total=total, unit="pair", desc="pairs", disable=not progress) as bar:
            for k in shards:
                if not work.write_pairs(k, bar.update):
                    count = len(work.samples(k))
                    if progress:
                        bar.initial += count  # not counted in the rate
                    bar.update(count)
        wait()
        store = work.finish() if rank == 0 else None
    except BaseException:
        if world_size == 1:
            work.discard()
        raise
    wait()
    return store or PairStore.open(output)
