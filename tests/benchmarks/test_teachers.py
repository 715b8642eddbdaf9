"""The comparison's teachers: data, pipeline, pairs and a step of every method, untrained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from benchmarks.teachers import TEACHERS, compare
from benchmarks.teachers import __main__ as command
from benchmarks.teachers.__main__ import against, table
from benchmarks.teachers.base import PIPELINE, Teacher, Trained, built
from benchmarks.teachers.classes import NAMES, class_of
from benchmarks.teachers.compare import Place, forgetting, trained
from benchmarks.teachers.digits_edm import EDMDigits
from benchmarks.teachers.methods import METHODS
from benchmarks.teachers.scenes import NUM_UNIFORMS, draw
from nitrodistill.data import GenerateConfig, generate
from nitrodistill.models import Pipeline
from nitrodistill.settings import build
from nitrodistill.toy import scenes
from nitrodistill.training import OptimizerConfig

EVERY: dict[str, Teacher] = {**TEACHERS, EDMDigits.name: EDMDigits()}


def untrained(name: str) -> Teacher:
    if name.startswith("digits"):
        pytest.importorskip("sklearn")
    return EVERY[name]


OWN = [
    name for name, teacher in EVERY.items() if not teacher.embedded
]  # tests/test_road.py has the others


@pytest.mark.parametrize("name", OWN)
def test_untrained_from_a_folder_through_pairs_and_a_step(name: str, tmp_path: Path) -> None:
    teacher = untrained(name)
    teacher.untrained().save_pretrained(tmp_path / PIPELINE)
    pipeline = Pipeline.load(tmp_path / PIPELINE)  # by its folder, as a user would
    quality = teacher.quality(None, seed=0)
    prompts = [teacher.prompts()[i % len(teacher.prompts())] for i in range(4)]
    real = quality.real(prompts, torch.arange(4))
    pictures = pipeline.decode(torch.randn(4, *pipeline.latent_shape))
    assert real.shape == pictures.shape
    assert len(quality.features(real)) == 4
    training = teacher.training_set(8, seed=0)
    assert training.shape[2:] == real.shape[2:]
    assert 0.5 < training.abs().max() <= 1
    if quality.alignment is not None:
        assert {len(right) for right in quality.alignment(real, prompts).values()} == {4}

    config = GenerateConfig(num_pairs=4, num_inference_steps=2, guidance=teacher.guidance)
    store = tmp_path / "pairs"
    generate(pipeline, teacher.prompts(), store, config, teacher_name=name, progress=False)
    place = Place(teacher, pipeline, quality, tmp_path, store)
    for method in ("both", "dmd2"):
        recipe = place.recipe(METHODS[method], 1, 0, tmp_path / method)
        stage = recipe.stages[0]
        trainer = replace(stage.trainer, batch_size=3)
        assert trained(replace(recipe, stages=[replace(stage, trainer=trainer)]), pipeline) > 0


@pytest.mark.parametrize("name", EVERY)
def test_the_held_out_pictures_are_no_training_pictures(name: str) -> None:
    teacher = untrained(name)
    prompts = (teacher.prompts() * 64)[:64]
    quality = teacher.quality(None, seed=0)
    real = quality.real(prompts, torch.arange(64))[:, :1].flatten(1)
    training = teacher.training_set(500, seed=0)[:, :1].flatten(1)
    assert torch.cdist(real, training).min() > 1e-4
    again = quality.real(prompts[8:12], torch.arange(8, 12))[:, :1].flatten(1)
    torch.testing.assert_close(again, real[8:12])


def test_free_scenes_turn_and_stay_inside() -> None:
    indices = scenes.attribute_indices(["a large red square on a white background"] * 3)
    uniforms = torch.full((3, NUM_UNIFORMS), 0.5)
    uniforms[:, 3] = torch.tensor([0.0, 0.25, 0.125])
    upright, quarter, eighth = draw(indices, uniforms)
    torch.testing.assert_close(
        upright, quarter, atol=1e-4, rtol=0
    )  # a square, turned by 90 degrees
    assert (upright - eighth).abs().max() > 0.5
    corner = torch.full((3, NUM_UNIFORMS), 1 - 1e-6)
    corner[:, 11] = 0.0  # no gradient: the border is the background's alone
    picture = draw(indices, corner)
    torch.testing.assert_close(picture[:, :, -1], picture[:, :, :1, 0].expand(-1, -1, 32))


def test_real_pictures_show_their_class() -> None:
    quality = TEACHERS["classes"].quality(None, seed=3)
    assert quality.alignment is not None
    found = quality.alignment(quality.real(NAMES, torch.arange(len(NAMES))), NAMES)
    assert torch.stack(list(found.values())).float().mean() > 0.98
    every = scenes.attribute_indices(["a small orange cross on a blue background"])
    assert NAMES[class_of(every)] == "orange cross"


@pytest.mark.parametrize("name", ["toy", "toy-dit"])
def test_the_embedded_ones_are_loaded_and_not_trained(name: str, tmp_path: Path) -> None:
    teacher = TEACHERS[name]
    assert built(teacher, tmp_path) == tmp_path / name
    assert not list(tmp_path.iterdir())
    pipeline = teacher.load(tmp_path / name)
    assert len(pipeline.encode_prompt(teacher.prompts()[:2])) == 2
    assert pipeline.denoiser.prediction_type in ("v_prediction", "epsilon")


def test_a_damaged_teacher_is_refused(tmp_path: Path) -> None:
    class Tiny(type(TEACHERS["classes"])):
        def train(self, folder: Path, share: float = 1.0) -> Trained:
            return Trained(self.untrained())

    folder = built(Tiny(), tmp_path)
    assert built(Tiny(), tmp_path) == folder  # trained once
    (folder / PIPELINE / "model_index.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"model_index.json is not what was written; delete the folder"
    ):
        built(Tiny(), tmp_path)


def rows(values: Sequence[tuple[str, int, float]]) -> list[dict[str, Any]]:
    metrics = {
        "teacher": {"fd_real": [1.0, 0.5, 1.5, 0.4]},
        "naive": {"fd_real": [90.0, 80.0, 99.0, 0.4]},
    }
    return [
        {
            "teacher": "digits",
            "method": method,
            "seed": seed,
            "steps": 10,
            "cpu_seconds": 3.0,
            "metrics": {**metrics, "student": {"fd_real": [fd, fd - 1, fd + 1, 0.4]}},
        }
        for method, seed, fd in values
    ]


def test_the_table_shows_intervals_and_ratios() -> None:
    two = rows([("regression", 0, 4.0), ("regression", 1, 6.0), ("both", 0, 2.0), ("both", 1, 6.6)])
    lines = table(two).splitlines()
    assert "| digits | regression | 3, 3 | 10 | 5.000 ± 1.414 | - | - | - | - |" in lines
    assert "| digits | floor |  |  | 0.400 | - | - | - | - |" in lines
    assert against(two, "regression") == [
        "FD of both over that of regression, by seed: digits 0.50 1.10."
    ]
    one = table(rows([("regression", 0, 4.0)])).splitlines()
    assert "| digits | regression | 3 | 10 | 4.000 (3.000 to 5.000) | - | - | - | - |" in one


def test_committed_rows_stay_where_they_are_not_made_anew(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path / "teachers.json")
    command.RESULTS.write_text(
        json.dumps({"rows": rows([("both", 0, 9.0), ("both", 1, 8.0), ("gone", 0, 1.0)])})
    )
    new = rows([("both", 0, 2.0), ("regression", 0, 4.0)])
    kept = rows([("both", 1, 8.0)])
    assert command.with_others(new) == [new[1], new[0], *kept]


def test_dmd2_after_regression_goes_on_with_its_student(tmp_path: Path) -> None:
    place = Place(TEACHERS["toy-dit"], None, None, tmp_path, tmp_path / "pairs")  # type: ignore[arg-type]
    first, last = place.recipe(METHODS["dmd2 after regression"], 100, 0, tmp_path / "run").stages
    assert (first.trainer.steps, last.trainer.steps) == (50, 50)
    assert first.settings.adversarial_weight == 0
    assert last.student == "previous"
    assert last.settings.guidance == TEACHERS["toy-dit"].guidance
    assert last.settings.timestep == first.settings.timestep == 400
    assert last.settings.regression is not None


def test_what_the_border_of_stages_costs_is_no_part_of_the_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 steps of a second and 8 of two are 20 seconds; the borders add 21, however many steps there are."""
    clock = SimpleNamespace(now=0.0)
    stages = [[5, 1, 1, 9], [7, 2, 2, 2, 2, 2, 2, 6]]

    def run(*given: Any) -> Iterator[Any]:
        for stage, steps in enumerate(stages):
            for seconds in steps:
                clock.now += seconds
                yield SimpleNamespace(stage=stage)

    monkeypatch.setattr(compare, "time", SimpleNamespace(process_time=lambda: clock.now))
    monkeypatch.setattr(compare, "run_recipe", run)
    place = Place(TEACHERS["toy-dit"], None, None, tmp_path, tmp_path / "pairs")  # type: ignore[arg-type]
    method = METHODS["dmd2 after regression"]
    assert place.steps(method, 21 + 100, tmp_path / "group") == 60
    clock.now = -1e6  # the pace is kept: other seeds have as many steps
    assert place.steps(method, 21 + 100, tmp_path / "group") == 60


@pytest.mark.parametrize(
    ("method", "settings", "updates"),
    [
        ("dmd2", {"critic": {"updates": 2}}, 50),
        ("dmd2", {}, 20),
        ("ladd", {}, 50),
        ("ladd", {"updates": "shared"}, 100),
        ("ladd", {"adversarial_weight": 0.0}, 100),
        ("consistency", {}, 100),
    ],
)
def test_a_students_average_forgets_its_teacher(
    method: str, settings: dict[str, Any], updates: int
) -> None:
    """In 100 steps, of which each method counts its own updates of the student."""
    optimizers = {"student": {"ema_decay": 0.99}, "critic": {"ema_decay": 0.99}}
    one = {"method": method, "settings": settings, "optimizers": optimizers}
    found = forgetting(one, 100)
    decay = found["student"]["ema_decay"]
    assert decay == pytest.approx(1 - 3 / updates)
    assert decay**updates < 0.05
    assert found["critic"] == optimizers["critic"]
    assert forgetting(one, 10_000)["student"]["ema_decay"] == 0.99
    without = {**one, "optimizers": {"student": {}}}
    assert forgetting(without, 100)["student"]["ema_decay"] == 0


def test_a_discriminator_on_pairs_asks_for_no_other_data(tmp_path: Path) -> None:
    place = Place(TEACHERS["toy-dit"], None, None, tmp_path, tmp_path / "pairs")  # type: ignore[arg-type]
    recipe = place.recipe(METHODS["dmd2 with GAN after regression"], 100, 0, tmp_path / "run")
    assert (recipe.real, recipe.pairs) == (None, str(place.pairs))
    assert recipe.stages[1].settings.gan.real == "pairs"


def test_the_docs_show_the_settings_that_were_measured() -> None:
    page = (Path(__file__).parents[2] / "docs" / "dmd2.md").read_text()
    _, rest = page.split("### With pairs: regression first, then matching")
    shown = yaml.safe_load(rest.split("```yaml")[1].split("```")[0])["stages"]
    for stage, method in zip(
        shown, METHODS["dmd2 with GAN after regression"]["stages"], strict=True
    ):
        assert (stage["method"], stage["settings"]) == (method["method"], method["settings"])
        for role, optimizer in stage["trainer"]["optimizers"].items():
            run = build(OptimizerConfig, method["optimizers"][role], role)
            assert build(OptimizerConfig, optimizer, role) == run
