"""Judges from this machine, and options from a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nitrodistill.cli.main import main
from nitrodistill.cli.measuring import Judges

RECIPE = Path(__file__).parents[2] / "examples" / "recipes" / "evaluation" / "coco-30k.yaml"


@pytest.mark.parametrize(
    ("judges", "words"),
    [
        (Judges(inception="none.pth"), "no weights of Inception"),
        (Judges(clip="none"), "CLIPModel is not at 'none'"),
        (Judges(dino="none"), "AutoModel is not at 'none'"),
    ],
)
def test_networks_that_are_not_here_are_told(judges: Judges, words: str) -> None:
    with pytest.raises(FileNotFoundError, match=words):
        judges.extractors(torch.device("cpu"))
    assert Judges().extractors(torch.device("cpu")) == []


def test_the_coco_recipe_is_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All its options are known: what fails is the run, which is not there."""
    run = tmp_path / "nowhere"
    assert main(["evaluate", "--config", str(RECIPE), "--run", str(run), "--num_samples", "8"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_processes_need_a_cache(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert main(["evaluate", "--run", "nowhere"]) == 2
    assert "--cache" in capsys.readouterr().err
