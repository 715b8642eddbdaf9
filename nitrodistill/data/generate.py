"""Pairs from a teacher, by any number of workers: `x0 = sample(Guided(teacher), plan, noise, condition)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nitrodistill.data.generation import GenerateConfig, Generation
from nitrodistill.data.pairs import PairStore
from nitrodistill.data.work import Work
from nitrodistill.models.pipeline import Pipeline


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    output: str | Path,
    config: GenerateConfig,
    *,
    teacher_name: str,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> PairStore:
    """Makes a pair store with a teacher, or completes one that was begun with the same settings.

    Any number of processes, on any number of machines that share the folder, may run this with equal arguments but
    `rank`, at once or one after the other: each begins with the files k with `k % world_size == rank`, then
    helps the others, and returns when all is done.

    Args:
        pipeline: the teacher.
        prompts: what it draws; sample i has prompt `i % len(prompts)`, so shuffle a sorted list that
            is longer than `num_pairs`. Numbers or names of classes for class-conditional teachers, `[""]` for
            unconditional ones.
        output: folder of the store; missing, empty, or begun with these settings.
        config: how.
        teacher_name: recorded in the manifest, for people.
        rank: number of this worker.
        world_size: how many workers there are.
        progress: shows bars with rate and time left, in worker 0.

    Returns:
        The finished store.

    Raises:
        ValueError: if there are no prompts, one is unknown to the text encoder, the teacher cannot be
            sampled in that many steps, or what it draws is not finite.
        FileExistsError: if the folder holds something else, or a store with other settings.
        PermissionError: if the folder cannot be written.

    Example:
        >>> config = nd.GenerateConfig(num_pairs=4, num_inference_steps=2)
        >>> nd.generate(teacher, prompts, "more", config, teacher_name="toy", progress=False)
        PairStore('more', 4 pairs of 2 prompts, x0 float16 (4, 8, 8))
    """
    return complete(
        Generation(pipeline, prompts, output, config, teacher_name), rank, world_size, progress
    )


def complete(work: Work, rank: int = 0, world_size: int = 1, progress: bool = True) -> PairStore:
    """Runs and finishes any work; after an error nothing is left but whole files that a rerun goes on with.

    Example:
        >>> config = nd.GenerateConfig(num_pairs=4, num_inference_steps=1)
        >>> nd.data.complete(nd.data.Generation(teacher, prompts, "done", config, "toy"), progress=False)
        PairStore('done', 4 pairs of 2 prompts, x0 float16 (4, 8, 8))
    """
    try:
        work.run(rank, world_size, progress=progress)
        return work.finish()
    except BaseException:
        work.discard()
        raise
