from __future__ import annotations

import pytest
import yaml

from nitrodistill.methods import LADDConfig
from nitrodistill.training import (
    OptimizerConfig,
    Recipe,
    Stage,
    TrainerConfig,
    load_recipe,
    parse_recipe,
    save_recipe,
)

DATA = {
    "teacher": "toy",
    "pairs": "runs/pairs",
    "output": "runs/out",
    "stages": [
        {
            "method": {"adversarial": "hinge", "taps": ["mid_block"]},
            "trainer": {
                "steps": 5,
                "optimizers": {"student": {"learning_rate": 4e-4, "betas": [0.5, 0.9]}},
            },
        }
    ],
}


def _changed(path, value):
    """DATA with one leaf set."""
    data = yaml.safe_load(yaml.safe_dump(DATA))
    *parents, leaf = path
    place = data
    for key in parents:
        place = place[key]
    place[leaf] = value
    return data


def test_plain_data_becomes_dataclasses():
    optimizer = OptimizerConfig(4e-4, (0.5, 0.9))
    stage = Stage(
        LADDConfig(adversarial="hinge", taps=("mid_block",)),
        TrainerConfig(steps=5, optimizers={"student": optimizer}),
    )
    assert parse_recipe(DATA) == Recipe("toy", "runs/pairs", "runs/out", [stage])


def test_the_resolved_recipe_goes_round_with_every_default_written_out(tmp_path):
    recipe, file = parse_recipe(DATA), tmp_path / "recipe.yaml"
    save_recipe(recipe, file)
    assert load_recipe(file) == recipe
    assert yaml.safe_load(file.read_text())["stages"][0]["trainer"]["ema_decay"] == 0.999


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("teecher",), "unknown key 'teecher'; did you mean 'teacher'"),
        (("stages", 0, "trainr"), "unknown key 'stages.0.trainr'; did you mean 'trainer'"),
        (("stages", 0, "trainer", "step"), "'stages.0.trainer.step'; did you mean 'steps'"),
        (("stages", 0, "method", "tap"), "'stages.0.method.tap'; did you mean 'taps'"),
        (
            ("stages", 0, "trainer", "optimizers", "student", "lr"),
            "'stages.0.trainer.optimizers.student.lr'; known are learning_rate",
        ),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest(path, words):
    with pytest.raises(ValueError, match=words):
        parse_recipe(_changed(path, 1))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("stages", 0, "trainer", "steps"), 0, "steps is 0; it must be at least 1"),
        (("stages", 0, "trainer", "steps"), "many", "many"),
        (("stages", 0, "method", "adversarial"), "wgan", "wgan"),
        (("stages", 0, "student"), "previous", "first stage's student is 'previous'"),
        (("stages", 0, "trainer"), 3, "stages.0.trainer is 3; it must hold names and values"),
        (("stages",), [], "stages is empty"),
        (("stages",), 7, "stages"),
        (("teacher",), None, "teacher"),
    ],
)
def test_a_wrong_value_is_one_sentence(path, value, words):
    with pytest.raises(ValueError, match=words):
        parse_recipe(_changed(path, value))


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_what_is_no_mapping_is_no_recipe(data):
    with pytest.raises(ValueError, match="must hold names and values"):
        parse_recipe(data)


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="teacher"):
        parse_recipe({key: value for key, value in DATA.items() if key != "teacher"})


def test_files_that_are_none_or_no_yaml(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recipe at"):
        load_recipe(tmp_path / "none.yaml")
    file = tmp_path / "recipe.yaml"
    file.write_text("a: [")
    with pytest.raises(ValueError, match=r"recipe.yaml: this is not YAML"):
        load_recipe(file)


def test_stages_share_one_precision():
    stages = [
        Stage(LADDConfig(), TrainerConfig(mixed_precision="no")),
        Stage(LADDConfig(), TrainerConfig(mixed_precision="bf16")),
    ]
    with pytest.raises(ValueError, match="use one for all"):
        Recipe("toy", "pairs", "out", stages)
