from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from nitrodistill.data import GenerateConfig, Generation, PairStore, complete
from nitrodistill.models import Pipeline

InChild = Callable[[Callable[[], object]], BaseProcess]
Contents = Callable[[Path], dict[str, bytes]]
Make = Callable[..., Generation]


@pytest.fixture
def work(pipeline: Pipeline, prompts: list[str], config: GenerateConfig, tmp_path: Path) -> Make:
    """The work that makes `made`, in another folder."""

    def make(**changes: object) -> Generation:
        changed = replace(config, **changes)  # type: ignore[arg-type]
        return Generation(pipeline, prompts, tmp_path / "p", changed, "tiny")

    return make


def test_generators_that_do_not_know_of_each_other_share_the_work(
    made: PairStore, work: Make, tmp_path: Path, in_child: InChild, contents: Contents
) -> None:
    def run() -> None:
        generation = work()
        assert len(complete(generation, progress=False)) == 11
        log = tmp_path / f"made-{os.getpid()}"
        log.write_text(str(sum(generation.wrote.values())))

    processes = [in_child(run) for _ in range(3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert contents(tmp_path / "p") == contents(made.path)
    assert sum(int(log.read_text()) for log in tmp_path.glob("made-*")) == 5  # each file once


def test_a_worker_that_starts_while_another_tidies_up_goes_on(
    work: Make, made: PairStore, tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = work(), work()
    link = os.link

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        complete(first, progress=False)
        assert source.exists()  # the second one's note is nothing that a dead worker left
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert len(complete(second, progress=False)) == 11
    assert contents(tmp_path / "p") == contents(made.path)


def test_a_generator_with_other_settings_is_refused_even_if_both_began_at_once(
    work: Make, made: PairStore, tmp_path: Path, in_child: InChild, contents: Contents
) -> None:
    second = work(guidance=2.0)  # both saw an empty folder

    def run() -> None:
        first = work()
        first.prepare()
        (tmp_path / "begun").touch()
        while not (tmp_path / "refused").exists():
            time.sleep(0.01)
        complete(first, progress=False)

    process = in_child(run)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    with pytest.raises(FileExistsError, match=r"guidance is 3.0 there and 2.0 here"):
        complete(second, progress=False)
    (tmp_path / "refused").touch()
    process.join(60)
    assert process.exitcode == 0
    assert contents(tmp_path / "p") == contents(made.path)


def test_what_was_refused_can_be_corrected(
    made: PairStore, pipeline: Pipeline, work: Make, tmp_path: Path, contents: Contents
) -> None:
    """The first run writes the prompt table and then meets a NaN; its message asks for another dtype."""
    refused = work(dtype="bfloat16", guidance=2.0)
    hook = pipeline.denoiser.module.register_forward_hook(
        lambda *_: (torch.full((6, 2, 4, 4), torch.nan),)
    )
    try:
        with pytest.raises(ValueError, match="is not finite in bfloat16; try dtype"):
            complete(refused, progress=False)
    finally:
        hook.remove()
    left = {"settings.json", "prompts/000000.arrow", "prompts/000001.arrow"}
    assert set(contents(tmp_path / "p")) == left  # the same command would go on with it
    complete(work(), progress=False)
    assert contents(tmp_path / "p") == contents(made.path)


def test_pairs_are_not_cleared_away_for_other_settings(work: Make, tmp_path: Path) -> None:
    begun = work()
    begun.run(limit=1, progress=False)
    begun.discard()
    with pytest.raises(FileExistsError, match=r"guidance is 3.0 there and 2.0 here"):
        work(guidance=2.0)
    assert (tmp_path / "p/shards/000000.arrow").exists()


def test_without_locks_a_worker_that_finishes_disturbs_no_other(
    made: PairStore,
    work: Make,
    tmp_path: Path,
    in_child: InChild,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)

    def run() -> None:
        slow = work()
        rows = slow._pair_rows

        def wait(*arguments: Any) -> Iterator[Any]:
            for batch in rows(*arguments):
                yield batch
                (tmp_path / "at work").touch()
                while not (tmp_path / "p/manifest.json").exists():  # the other one has finished
                    time.sleep(0.01)

        monkeypatch.setattr(slow, "_pair_rows", wait)
        complete(slow, progress=False)

    process = in_child(run)
    while not (tmp_path / "at work").exists() and process.is_alive():
        time.sleep(0.01)
    complete(work(), progress=False)
    process.join(60)
    assert process.exitcode == 0
    assert contents(tmp_path / "p") == contents(made.path)


def test_a_worker_helps_where_another_died(
    made: PairStore, work: Make, tmp_path: Path, contents: Contents
) -> None:
    complete(work(), rank=1, world_size=3, progress=False)  # ranks 0 and 2 never came
    assert contents(tmp_path / "p") == contents(made.path)


def test_a_limit_makes_whole_files_and_the_rest_follows(
    made: PairStore, work: Make, tmp_path: Path, contents: Contents
) -> None:
    begun = work()
    assert not begun.run(limit=3, progress=False)
    begun.discard()
    there = contents(tmp_path / "p")
    assert set(there) == {"settings.json", "prompts/000000.arrow", "shards/000000.arrow"}
    assert not work().run(limit=5, progress=False)
    assert set(contents(tmp_path / "p")) - set(there) >= {"shards/000001.arrow"}
    assert work().run(limit=11, progress=False)
    complete(work(), progress=False)
    assert contents(tmp_path / "p") == contents(made.path)
    with pytest.raises(ValueError, match="limit is 0"):
        work().run(limit=0)


def test_a_prompt_file_that_breaks_meanwhile_is_made_again(
    made: PairStore,
    work: Make,
    tmp_path: Path,
    contents: Contents,
    flip: Callable[[Path, bytes], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    generation = work()
    generation.prepare()
    for k in generation.prompt_files:
        generation.write_prompts(k)
    generation.discard()
    text = made.condition([1], dtype=None)["encoder_hidden_states"][0].numpy().tobytes()
    flip(tmp_path / "p/prompts/000000.arrow", text)
    other = work()
    other.prepare()
    with caplog.at_level(logging.WARNING):
        assert other.write_pairs(0)
    assert "is damaged at row 1" in caplog.text
    complete(other, progress=False)
    assert contents(tmp_path / "p") == contents(made.path)


def test_finish_checks_what_others_made(
    made: PairStore,
    work: Make,
    tmp_path: Path,
    contents: Contents,
    flip: Callable[[Path, bytes], None],
) -> None:
    theirs, mine = work(), work()
    assert theirs.run(progress=False)
    latent = made.read([5], dtype=None).x0[0].numpy().tobytes()
    flip(tmp_path / "p/shards/000001.arrow", latent)
    assert mine.run(
        rank=0, world_size=2, progress=False
    )  # file 1 is rank 1's: trusted until the end
    mine.finish()
    assert contents(tmp_path / "p") == contents(made.path)


def test_a_busy_file_is_waited_for(
    made: PairStore, work: Make, tmp_path: Path, in_child: InChild, contents: Contents
) -> None:
    def hold() -> None:
        other = work()
        other.prepare()
        with other._claims.claimed(1 + 2 * 1 + 1):  # shard 1
            (tmp_path / "held").touch()
            time.sleep(0.5)
            os._exit(1)  # dies with the claim

    process = in_child(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    start = time.monotonic()
    complete(work(), progress=False)
    assert time.monotonic() - start > 0.3
    process.join()
    assert contents(tmp_path / "p") == contents(made.path)


def test_nothing_is_removed_while_another_works_there(
    work: Make, tmp_path: Path, in_child: InChild
) -> None:
    def hold() -> None:
        work().prepare()
        (tmp_path / "held").touch()
        time.sleep(60)

    in_child(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    late = work()
    late.prepare()
    late.discard()
    assert (tmp_path / "p/settings.json").exists()
