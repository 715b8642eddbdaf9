"""A user's own teacher through the ablation: one of prompts, and one of pixels without any."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks._ablation import REFERENCE
from benchmarks.loss_ablation import Ablation, read_options, report
from benchmarks.teachers.given import places
from benchmarks.teachers.methods import METHODS
from nitrodistill.data import GenerateConfig, generate
from nitrodistill.models import Pipeline
from tests.conftest import PLACE_PROMPTS
from tests.pipelines import ddim


def of_pixels(root: Path) -> tuple[Path, Path]:
    """A pixel-space teacher on the disk, and its pairs."""
    ddim().save_pretrained(root / "pixels")
    config = GenerateConfig(num_pairs=4, num_inference_steps=2, guidance=1.0)
    teacher = Pipeline.load(root / "pixels")
    generate(teacher, [""], root / "pairs", config, teacher_name="pixels", progress=False)
    return root / "pixels", root / "pairs"


def test_pairs_say_how_a_teacher_of_the_users_own_draws(place: Any, tmp_path: Path) -> None:
    words = ["--teacher", place.teacher, "--pairs", place.pairs, "--output", tmp_path / "out"]
    with pytest.raises(SystemExit, match="holds 4 pairs; give a --batch of no more, not 16"):
        places(read_options([str(word) for word in words]), tmp_path)
    words += ["--batch", 4, "--samples", 8, "--timestep", 400]
    options = read_options([str(word) for word in words])
    (found,) = places(options, tmp_path)
    assert (found.teacher.guidance, found.teacher.num_inference_steps) == (2.0, 2)
    assert set(found.teacher.prompts()) == set(PLACE_PROMPTS)
    assert (found.num_pairs, found.quality.num_samples, found.quality.real) == (4, 8, None)
    recipe = found.recipe(METHODS["regression"], 5, 0, tmp_path / "run")
    assert recipe.stages[0].settings.timestep == 400
    words = ["--teacher", "toy-dit", "--pairs", str(place.pairs), "--output", str(tmp_path)]
    words += ["--batch", "4"]
    (listed,) = places(read_options(words), tmp_path)  # pairs of the user's own for it
    assert (listed.teacher.name, listed.num_pairs, listed.pairs) == ("toy-dit", 4, place.pairs)
    with pytest.raises(SystemExit, match="needs --pairs"):
        places(read_options(["--teacher", str(place.teacher)]), tmp_path)


def test_the_ablation_on_pixels(tmp_path: Path) -> None:
    teacher, pairs = of_pixels(tmp_path)
    words = ["--teacher", teacher, "--pairs", pairs, "--output", tmp_path / "out", "--steps", 1]
    words += ["--samples", 4, "--batch", 3, "--seeds", 0, "--yardstick", 0, "--cost-seconds", 0]
    words += ["--losses", "l1", "LatentLPIPS, teacher", "--weights", 1]
    options = read_options([str(word) for word in words])
    (found,) = places(options, tmp_path)
    with pytest.raises(SystemExit, match="--losses L1: of this teacher there are none, l1, l2"):
        Ablation(found, Namespace(**{**vars(options), "losses": ["l1", "L1"]}))
    ablation = Ablation(found, options)
    assert set(ablation.weights) == {REFERENCE, "l1", "LatentLPIPS, teacher"}
    assert set(ablation.costs) >= {"alone/l1", "adversarial/none"}
    first = [cell for cell in ablation.cells if (cell.block, cell.loss) == ("alone", REFERENCE)]
    ablation.run(first)
    report(ablation, options, write=False)
    assert ",fd_teacher," in (found.folder / "results.csv").read_text()
