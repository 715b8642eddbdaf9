from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nitrodistill.data import GenerateConfig, PairStore, generate
from nitrodistill.models import DiffusersDenoiser, Pipeline
from nitrodistill.prediction import Clamp


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that may be read but not written; root, who may write anywhere, is nobody for a while."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.rmdir()


@pytest.fixture
def small_files() -> Iterator[None]:
    """A full disk: no file may grow beyond 2,500 bytes."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_two_workers_write_the_bytes_of_one(
    made: PairStore,
    pipeline: Pipeline,
    prompts: list[str],
    config: GenerateConfig,
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("fork")

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        store = generate(
            pipeline,
            prompts,
            tmp_path / "p",
            config,
            teacher_name="tiny",
            rank=rank,
            world_size=2,
            progress=False,
        )
        assert len(store) == 11

    processes = [context.Process(target=work, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path / "p") == contents(made.path)


def test_a_rerun_changes_nothing(
    copied: Path, pipeline: Pipeline, prompts: list[str], config: GenerateConfig
) -> None:
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*") if p.is_file()}
    generate(pipeline, prompts, copied, config, teacher_name="elsewhere", progress=False)
    assert {p: p.stat().st_mtime_ns for p in copied.rglob("*") if p.is_file()} == before


def test_a_rerun_repairs(
    made: PairStore,
    copied: Path,
    pipeline: Pipeline,
    prompts: list[str],
    config: GenerateConfig,
    caplog: pytest.LogCaptureFixture,
    left_by_the_dead: Callable[[Path], Path],
) -> None:
    (copied / "shards/000000.arrow").unlink()
    torn = copied / "shards/000001.arrow"
    torn.write_bytes(torn.read_bytes()[:-100])
    data = bytearray((copied / "shards/000002.arrow").read_bytes())
    latents = made.read([9], dtype=None).x0[0].numpy().tobytes()
    data[data.index(latents) + 5] ^= 8
    (copied / "shards/000002.arrow").write_bytes(data)
    (copied / "prompts/000001.arrow").write_bytes(b"")
    for name in ("settings.json", "shards/000001.arrow"):
        left_by_the_dead(copied / name).write_bytes(b"of a worker that was killed")
    with caplog.at_level(logging.WARNING):
        generate(pipeline, prompts, copied, config, teacher_name="tiny", progress=False)
    assert [record.message.count("made again") for record in caplog.records] == [1, 1, 1]
    assert contents(copied) == contents(made.path)


def test_a_stopped_run_goes_on(
    made: PairStore,
    pipeline: Pipeline,
    prompts: list[str],
    config: GenerateConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = pipeline.denoiser.module
    calls = 0

    def stop(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:  # in the second shard: two batches of two steps made the first
            raise KeyboardInterrupt

    hook = module.register_forward_pre_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            generate(pipeline, prompts, tmp_path / "p", config, teacher_name="tiny", progress=False)
    finally:
        hook.remove()
    names = {"settings.json", "shards/000000.arrow"} | {f"prompts/00000{k}.arrow" for k in (0, 1)}
    assert set(contents(tmp_path / "p")) == names
    with pytest.raises(FileNotFoundError, match="run it again with the same settings"):
        PairStore.open(tmp_path / "p")
    generate(pipeline, prompts, tmp_path / "p", config, teacher_name="tiny", progress=False)
    assert contents(tmp_path / "p") == contents(made.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": 4.0}, "guidance is 3.0 there and 4.0 here"),
        ({"num_inference_steps": 4}, "num_inference_steps is 2 there and 4 here"),
        ({"num_pairs": 12}, "num_samples is 11 there and 12 here"),
        ({"seed": 6}, "seed is 5 there and 6 here"),
        ({"batch_size": 4}, "batch_size is 3 there and 4 here"),
        ({"shard_size": 5}, "shard_size is 4 there and 5 here"),
        ({"dtype": "float32"}, "dtype is 'float16' there and 'float32' here"),
    ],
)
def test_other_settings_in_the_same_folder_are_named(
    made: PairStore,
    pipeline: Pipeline,
    prompts: list[str],
    config: GenerateConfig,
    changes: dict[str, object],
    message: str,
) -> None:
    before = contents(made.path)
    other = replace(config, **changes)
    with pytest.raises(FileExistsError, match=message):
        generate(pipeline, prompts, made.path, other, teacher_name="t", progress=False)
    assert contents(made.path) == before


def test_other_prompts_and_another_teacher_are_named(
    made: PairStore, pipeline: Pipeline, prompts: list[str], config: GenerateConfig
) -> None:
    with pytest.raises(FileExistsError, match="prompts_hash"):
        generate(pipeline, [*prompts, "new"], made.path, config, teacher_name="t", progress=False)
    other = Pipeline(pipeline.diffusers, pipeline.denoiser.copy())
    with torch.no_grad():
        next(other.denoiser.module.parameters()).flatten()[0] += 1
    with pytest.raises(FileExistsError, match="fingerprint"):
        generate(other, prompts, made.path, config, teacher_name="t", progress=False)


@pytest.mark.parametrize("clamp", [Clamp(), Clamp(1.5, quantile=0.9)])
def test_a_teacher_that_clamps_x0_does_not_complete_the_pairs_of_one_that_does_not(
    made: PairStore, pipeline: Pipeline, prompts: list[str], config: GenerateConfig, clamp: Clamp
) -> None:
    """Its weights and noise levels are the same, and its latents are not."""
    denoiser = pipeline.denoiser
    clamped = DiffusersDenoiser(
        denoiser.module, denoiser.schedule, denoiser.prediction_type, clamp=clamp
    )
    other = Pipeline(pipeline.diffusers, clamped, check_prompt=pipeline.check_prompt)
    with pytest.raises(FileExistsError, match=r"sampler_settings is 'clamp: None; .* there and"):
        generate(other, prompts, made.path, config, teacher_name="t", progress=False)


def test_a_folder_with_something_else_is_refused_untouched(
    pipeline: Pipeline, prompts: list[str], config: GenerateConfig, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"something else \(thesis.txt\)"):
        generate(pipeline, prompts, tmp_path, config, teacher_name="t")
    with pytest.raises(FileExistsError, match="is a file"):
        generate(pipeline, prompts, tmp_path / "thesis.txt", config, teacher_name="t")
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_no_permission(
    pipeline: Pipeline, prompts: list[str], config: GenerateConfig, closed: Path
) -> None:
    for place in (closed, closed / "p"):
        with pytest.raises(PermissionError, match=r"cannot write pairs to .*get permission"):
            generate(pipeline, prompts, place, config, teacher_name="t", progress=False)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_nothing_half_written(
    pipeline: Pipeline, prompts: list[str], config: GenerateConfig, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match=r"cannot write pairs to .*make room"):
        generate(pipeline, prompts, tmp_path / "p", config, teacher_name="t", progress=False)
    assert not (tmp_path / "p").exists()


def test_a_teacher_that_breaks_names_the_samples(
    pipeline: Pipeline, prompts: list[str], config: GenerateConfig, tmp_path: Path
) -> None:
    def breaks(module: object, args: object, output: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        output[0][-1, 0, 0, 0] = 1e6  # finite, but not in half precision; the last of three
        return output

    hook = pipeline.denoiser.module.register_forward_hook(breaks)
    try:
        with pytest.raises(ValueError, match=r"x0 of the samples \[2\] is not finite in float16"):
            generate(pipeline, prompts, tmp_path / "p", config, teacher_name="t", progress=False)
    finally:
        hook.remove()
    assert list((tmp_path / "p" / "shards").iterdir()) == []


def test_the_progress_bar_counts_pairs(
    pipeline: Pipeline,
    prompts: list[str],
    config: GenerateConfig,
    copied: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    (copied / "shards/000001.arrow").unlink()
    generate(pipeline, prompts, copied, config, teacher_name="t")
    assert "11/11" in capsys.readouterr().err


def test_a_rank_must_be_one_of_the_world(
    pipeline: Pipeline, prompts: list[str], config: GenerateConfig, tmp_path: Path
) -> None:
    for rank, world_size in ((-1, 2), (2, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"rank {rank} of world_size {world_size}"):
            generate(
                pipeline,
                prompts,
                tmp_path / "p",
                config,
                teacher_name="t",
                rank=rank,
                world_size=world_size,
            )
