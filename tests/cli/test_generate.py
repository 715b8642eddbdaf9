"""The verb `generate`: its part of the work, its estimate, and several processes."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys

import pytest
import torch

from nitrodistill.cli.main import main
from nitrodistill.data import PairStore
from nitrodistill.processes import Place, place
from tests.pipelines import make_pipeline

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


@pytest.fixture
def command(place):
    return [
        "generate", "--teacher", str(place.teacher), "--prompts", str(place.prompts),
        "--num_pairs", "6", "--num_inference_steps", "2", "--shard_size", "2", "--quiet",
        "--output", str(place.root / "pairs"),
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def _files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_a_dry_run_says_size_and_time_and_writes_nothing(place, command, capsys):
    assert main([*command, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "6 pairs of 2 prompts: about" in printed
    assert "KiB" in printed
    assert "6 are missing" in printed
    assert re.search(r"about [\d.]+ (ms|seconds) for one process", printed)
    assert not (place.root / "pairs").exists()


def test_the_empty_prompt_of_an_unconditional_teacher(tmp_path, capsys):
    teacher, output = tmp_path / "teacher", tmp_path / "pairs"
    make_pipeline("ddpm").save_pretrained(teacher)
    command = ["generate", "--teacher", str(teacher), "--prompts", "", "--output", str(output)]
    command += ["--num_pairs", "3", "--num_inference_steps", "2", "--quiet"]
    assert main(command) == 2
    assert "unconditional, so there is nothing to guide it by" in capsys.readouterr().err
    assert main([*command, "--guidance", "1"]) == 0
    assert "3 pairs of 1 prompts" in capsys.readouterr().out
    assert PairStore.open(output).prompts == ("",)


def test_a_limit_leaves_the_rest_to_the_same_command(place, command, capsys):
    assert main([*command, "--limit", "3"]) == 0
    assert "the first 3 of 6 pairs" in capsys.readouterr().out
    shards = place.root / "pairs/shards"
    assert [f.name for f in sorted(shards.iterdir())] == ["000000.arrow", "000001.arrow"]
    assert main(command) == 0
    assert len(PairStore.open(place.root / "pairs")) == 6


def test_a_limit_of_nothing(place, command, capsys):
    assert main([*command, "--limit", "0"]) == 2
    assert "limit is 0; it must be at least 1" in capsys.readouterr().err
    assert not (place.root / "pairs").exists()


def test_two_launched_processes_write_the_bytes_of_one(place, command, monkeypatch, capfd):
    """As a launcher starts them, but forked from this warm process."""
    assert main(command) == 0
    capfd.readouterr()
    command[-1] = str(place.root / "two")
    context = multiprocessing.get_context("fork")
    monkeypatch.setenv("WORLD_SIZE", "2")
    workers = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        workers.append(context.Process(target=lambda: sys.exit(main(command))))
        workers[-1].start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert capfd.readouterr().out.count("6 pairs of 2 prompts") == 1  # rank 0 speaks
    assert _files(place.root / "two") == _files(place.root / "pairs")


@pytest.mark.soak
def test_two_processes_of_torchrun_write_the_bytes_of_one(place, command):
    """The launcher itself; each worker is a fresh process."""
    assert main(command) == 0
    one = _files(place.root / "pairs")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
    ]
    command[-1] = str(place.root / "two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [*launch, "-m", "nitrodistill", *command],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("6 pairs of 2 prompts") == 1  # rank 0 speaks
    assert _files(place.root / "two") == one


def test_the_place_of_a_process(monkeypatch):
    assert place() == Place(0, 1, 0)
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert place() == Place(5, 8, 0)
    for name, value in zip(VARIABLES, ("3", "4", "1"), strict=False):
        monkeypatch.setenv(name, value)
    assert place() == Place(3, 4, 1)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ValueError, match="RANK is 4 and WORLD_SIZE 4"):
        place()
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(ValueError, match="RANK is 'x'; it must be a number"):
        place()


def test_the_device_of_a_process(monkeypatch):
    assert Place(0, 1, 0).device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device is 'gpu0'"):
        Place(0, 1, 0).device("gpu0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Place(3, 4, 3).device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Place(3, 4, 3).device("auto") == torch.device("cuda", 1)
    assert Place(3, 4, 3).device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="device is 'cuda:2', and torch sees 2 GPUs here"):
        Place(3, 4, 3).device("cuda:2")
