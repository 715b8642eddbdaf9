"""Networks from this machine that measure, and options from a recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nitrodistill.cli import evaluate as evaluate_verb
from nitrodistill.cli.main import main
from nitrodistill.evaluation import Evaluation
from nitrodistill.evaluation.student import MetricNetworks

RECIPE = Path(__file__).parents[2] / "examples" / "recipes" / "evaluation" / "coco-30k.yaml"


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        (MetricNetworks(inception="none.pth"), "no weights of Inception"),
        (MetricNetworks(clip="none"), "CLIPModel is not at 'none'"),
        (MetricNetworks(dino="none"), "AutoModel is not at 'none'"),
    ],
)
def test_networks_that_are_not_here_are_told(networks: MetricNetworks, words: str) -> None:
    with pytest.raises(FileNotFoundError, match=words):
        networks.extractors(torch.device("cpu"))
    assert MetricNetworks().extractors(torch.device("cpu")) == []


def test_the_coco_recipe_is_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All its options are known: what fails is the run, which is not there."""
    run = tmp_path / "nowhere"
    assert main(["evaluate", "--config", str(RECIPE), "--run", str(run), "--num_samples", "8"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_coco_recipe_runs_on_two_processes_and_again(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On small things: the second process draws and writes no result; a rerun draws and reads nothing anew."""
    assert main(["train", "--config", str(place.recipe), "--quiet"]) == 0
    photos, cache, run = place.root / "photos", place.root / "cache", place.root / "run"
    photos.mkdir()
    for i in range(12):
        levels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(levels).save(photos / f"{i}.png")
    small = {"num_samples": 8, "num_inference_steps": 1, "batch_size": 3, "cost_repeats": 0}
    small |= {"inception": "null", "clip": "null", "run": run, "cache": cache, "real": photos}
    options = [f"--{name}={value}" for name, value in {**small, "prompts": place.prompts}.items()]
    command = ["evaluate", "--config", str(RECIPE), *options]

    def as_rank(rank: str) -> dict[Path, int]:
        for name, value in (("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, value)
        assert main(command) == 0
        assert (run / "report.html").exists() == (rank == "0")
        return {f: f.stat().st_mtime_ns for f in cache.rglob("*") if f.is_file()}

    drawn = as_rank("1")
    folders = sorted(f.name.partition("-")[0] for f in cache.iterdir())
    assert folders == ["naive", "student", "teacher", "teacher"]
    assert len(list(cache.rglob("*.safetensors"))) == 2 * 3
    kept = as_rank("0")
    assert drawn.items() <= kept.items(), "the first process found all latents there"
    (real,) = kept.keys() - drawn.keys()
    assert real.name.startswith("real-")
    first = Evaluation.load(run / "metrics.json")
    assert all(m.floor is not None for m in first.student.values())
    assert first.notes == ()

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    assert main(command) == 0
    assert {f: f.stat().st_mtime_ns for f in cache.rglob("*") if f.is_file()} == kept
    assert Evaluation.load(run / "metrics.json").models == first.models
    Image.new("RGB", (20, 30)).save(photos / "0.png")
    assert main(command) == 0
    assert len(list(cache.glob("real-*"))) == 2, "other pictures, other numbers"


@pytest.mark.parametrize(
    "text",
    [RECIPE.read_text(encoding="utf-8"), (evaluate_verb.__doc__ or "").partition("example:")[2]],
)
def test_torchrun_understands_the_commands_that_are_shown(text: str) -> None:
    """It would take --run for --run-path."""
    from torch.distributed.run import get_args_parser

    (command,) = [line.lstrip("# ") for line in text.splitlines() if "torchrun" in line]
    given = get_args_parser().parse_args(shlex.split(command)[1:])
    assert given.module
    assert given.training_script == "nitrodistill"
    assert given.training_script_args[0] == "evaluate"
    assert "--run" in given.training_script_args


def test_processes_need_a_cache(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert main(["evaluate", "--run", "nowhere"]) == 2
    assert "--cache" in capsys.readouterr().err
