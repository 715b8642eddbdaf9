"""A user's own teacher through the ablation and the methods: of prompts, of pixels without any, a transformer."""

from __future__ import annotations

import json
import os
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks import methods
from benchmarks._ablation import REFERENCE, Bench
from benchmarks.loss_ablation import Ablation, earlier_rows, read_options, report
from benchmarks.teachers.given import Given, places
from benchmarks.teachers.methods import METHODS
from nitrodistill.data import GenerateConfig, generate
from nitrodistill.models import Pipeline
from nitrodistill.teachers import load_teacher
from nitrodistill.training.stages import check_stages
from tests.conftest import PLACE_PROMPTS
from tests.pipelines import ddim


def of_pixels(root: Path, name: str = "pixels") -> tuple[Path, Path]:
    """A pixel-space teacher on the disk, and its pairs."""
    ddim().save_pretrained(root / name)
    config = GenerateConfig(num_pairs=4, num_inference_steps=2, guidance=1.0)
    teacher = Pipeline.load(root / name)
    generate(teacher, [""], root / "pairs", config, teacher_name=name, progress=False)
    return root / name, root / "pairs"


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


def colours(images: Tensor) -> Tensor:
    """Features of the user's own."""
    return images.mean((2, 3))


def maps(images: Tensor) -> list[Tensor]:
    """A network for decoded LPIPS."""
    return [images, avg_pool2d(images, 2)]


def edges(images: Tensor) -> Tensor:
    """Others."""
    return images.diff(dim=-1).abs().mean((2, 3))


def pictures(folder: Path, count: int) -> Path:
    """A folder of real pictures."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_all_that_measures_of_a_teacher_depend_on_is_in_the_name_of_its_folder(
    tmp_path: Path,
) -> None:
    teacher, pairs = of_pixels(tmp_path)
    again = tmp_path / "elsewhere" / "pixels"
    shutil.copytree(teacher, again)
    config = GenerateConfig(num_pairs=4, seed=1, num_inference_steps=2, guidance=1.0)
    others, made = tmp_path / "others", Pipeline.load(teacher)
    generate(made, [""], others, config, teacher_name="pixels", progress=False)
    real = pictures(tmp_path / "real", 2)

    def folder(teacher: Path = teacher, pairs: Path = pairs, **more: object) -> Path:
        words: list[object] = ["--teacher", teacher, "--pairs", pairs, "--output", tmp_path / "out"]
        given = {"features": f"{__name__}:colours", "batch": 4, "samples": 8, **more}
        words += [word for name, value in given.items() for word in (f"--{name}", value)]
        (found,) = places(read_options([str(word) for word in words]), tmp_path)
        return found.folder

    here = os.path.relpath(teacher)
    assert folder() == folder(Path(here)) == folder()
    assert folder().name.startswith("pixels-")
    names = [
        folder(),
        folder(again),
        folder(pairs=others),
        folder(features=f"{__name__}:edges"),
        folder(samples=9),
        folder(timestep=400),
        folder(real=real),
        folder(real=pictures(tmp_path / "more", 2)),
        folder(real=pictures(real, 3)),
    ]
    assert len(set(names)) == 9


def test_the_folders_of_listed_teachers_are_where_runs_of_before_left_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.teachers.compare.generate", lambda *given, **told: None)
    words = ["--teacher", "toy", "--pairs", "400", "--output", str(tmp_path)]
    (found,) = places(read_options(words), tmp_path)
    assert found.folder == tmp_path / "toy"
    assert found.group("regression", {"method": "ladd"}) == tmp_path / "toy" / "regression-e9be9358"
    (found,) = places(read_options([*words, "--samples", "8"]), tmp_path)
    assert found.folder == tmp_path / "toy" / "8-samples"


@pytest.mark.parametrize("word", ["--features", "--real", "--timestep"])
def test_what_a_listed_teacher_has_of_its_own_is_refused(word: str, tmp_path: Path) -> None:
    given = ["--teacher", "toy", "--output", str(tmp_path), word, "0"]
    with pytest.raises(SystemExit, match=f"^{word}: --teacher toy has its own; leave it out"):
        places(read_options(given), tmp_path)


def test_an_earlier_run_of_another_own_teacher_is_refused(tmp_path: Path) -> None:
    """Number of pairs, batch and losses may all be alike."""
    teacher: Any = object.__new__(Given)
    place: Any = Namespace(teacher=teacher, num_pairs=4, batch_size=2, folder=tmp_path / "mine-1")
    place.quality = Namespace(num_samples=8)
    ablation = object.__new__(Ablation)
    ablation.place, ablation.specs = place, {}
    settings = ablation.settings(read_options([]))
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"settings": settings, "rows": []}))
    assert earlier_rows(file, settings) == {}
    place.folder = tmp_path / "mine-2"
    with pytest.raises(SystemExit, match="was made with other teacher; leave --onto out"):
        earlier_rows(file, ablation.settings(read_options([])))


def test_the_ablation_on_pixels(tmp_path: Path) -> None:
    """A folder that has the name of a listed teacher has none of its networks."""
    teacher, pairs = of_pixels(tmp_path, "scenes")
    words = ["--teacher", teacher, "--pairs", pairs, "--output", tmp_path / "out", "--steps", 1]
    words += ["--samples", 4, "--batch", 3, "--seeds", 0, "--yardstick", 0, "--cost-seconds", 0]
    words += ["--losses", "l1", "LatentLPIPS, teacher", "--weights", 1]
    options = read_options([str(word) for word in words])
    (found,) = places(options, tmp_path)
    offered = "none, l1, l2, .*, LatentLPIPS, teacher, MMD, teacher, random trunk"
    with pytest.raises(SystemExit, match=f"--losses L1: of this teacher there are {offered}"):
        Ablation(found, Namespace(**{**vars(options), "losses": ["l1", "L1"]}))
    ablation = Ablation(found, options)
    assert set(ablation.weights) == {REFERENCE, "l1", "LatentLPIPS, teacher"}
    assert set(ablation.costs) >= {"alone/l1", "adversarial/none"}
    first = [cell for cell in ablation.cells if (cell.block, cell.loss) == ("alone", REFERENCE)]
    ablation.run(first)
    report(ablation, options, write=False)
    assert ",fd_teacher," in (found.folder / "results.csv").read_text()


def test_the_ablation_on_a_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded PixArt from a folder: the gradient of every loss of the list, and two of the recipes."""
    pipeline = load_teacher("toy-dit")
    pipeline.diffusers.save_pretrained(tmp_path / "mine")
    config = GenerateConfig(num_pairs=4, num_inference_steps=2, guidance=3.0)
    pairs = tmp_path / "pairs"
    generate(pipeline, PLACE_PROMPTS, pairs, config, teacher_name="mine", progress=False)
    words = ["--teacher", tmp_path / "mine", "--pairs", pairs, "--output", tmp_path / "out"]
    words += ["--batch", 4, "--timestep", 400, "--steps", 60]
    words += ["--maps", f"{__name__}:maps", "--latent-lpips", "toy"]
    options = read_options([str(word) for word in words])
    (found,) = places(options, tmp_path)

    def costs(bench: Bench, built: dict[str, Any], seconds: float) -> dict[str, Any]:
        return {name: {"ms": 1.0, "mib": None} for name in built}

    monkeypatch.setattr(Bench, "costs", costs)
    ablation = Ablation(found, options)
    assert len(ablation.weights) == 14
    methods = {cell.name: cell.method for cell in ablation.cells if cell.multiple == 1}
    assert len(methods) == 14 + 15
    for name in ("alone-l1-x1", "adversarial-LatentLPIPS--teacher-x1"):
        recipe = found.recipe(methods[name], 60, 0, tmp_path / "run")
        assert recipe.stages[0].settings.timestep == 400
        check_stages(recipe, found.pipeline)


def test_the_methods_on_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One training and its two rows; they are kept, and not taken for those of other features."""
    teacher, pairs = of_pixels(tmp_path)
    words = ["methods", "--teacher", teacher, "--pairs", pairs, "--output", tmp_path / "out"]
    words += ["--methods", "consistency", "--seeds", 0, "--seconds", 0, "--samples", 4]
    words += ["--batch", 3, "--real", pictures(tmp_path / "real", 4), "--features"]

    def rows(features: str) -> list[dict[str, Any]]:
        given = [*words, f"{__name__}:{features}"]
        monkeypatch.setattr("sys.argv", [str(word) for word in given])
        methods.main()
        return json.loads((tmp_path / "out" / "results.json").read_text())["rows"]

    monkeypatch.setattr("benchmarks.teachers.compare.TRIAL_STEPS", 4)
    found = rows("colours")
    about = [(row["teacher"], row["method"], row["sampled_in"], row["steps"]) for row in found]
    assert about == [("pixels", "consistency", 1, 20), ("pixels", "consistency", 4, 20)]
    assert (
        found[0]["metrics"]["student"]["fd_teacher"] != found[1]["metrics"]["student"]["fd_teacher"]
    )
    assert set(found[0]["metrics"]["student"]) >= {"fd_real", "fd_teacher"}
    (file,) = (tmp_path / "out").glob("pixels-*/consistency-*/*/seed-0/metrics-in-4.json")
    assert list(json.loads(file.read_text())["settings"]["extractors"]) == ["features"]

    def again(*given: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("benchmarks.teachers.compare.run_recipe", again)
    assert rows("colours") == found
    with pytest.raises(AssertionError, match="trained again"):
        rows("edges")
