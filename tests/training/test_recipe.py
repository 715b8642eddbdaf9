from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nitrodistill.methods import LADDConfig
from nitrodistill.settings import to_plain
from nitrodistill.teachers import TeacherSettings
from nitrodistill.training import (
    OptimizerConfig,
    Recipe,
    Stage,
    TrainerConfig,
    load_recipe,
    parse_recipe,
    save_recipe,
)
from nitrodistill.training.recipe import find_recipe, shipped_recipes
from tests.training.matching import MatchingConfig

DATA = {
    "teacher": "toy",
    "pairs": "runs/pairs",
    "output": "runs/out",
    "stages": [
        {
            "method": "ladd",
            "settings": {"adversarial": "hinge", "taps": ["mid_block"]},
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
        "ladd",
        TrainerConfig(steps=5, optimizers={"student": optimizer}),
        LADDConfig(adversarial="hinge", taps=("mid_block",)),
    )
    assert parse_recipe(DATA) == Recipe("toy", "runs/out", [stage], pairs="runs/pairs")


def test_the_resolved_recipe_goes_round_with_every_default_written_out(tmp_path):
    recipe, file = parse_recipe(DATA), tmp_path / "recipe.yaml"
    save_recipe(recipe, file)
    assert load_recipe(file) == recipe
    (stage,) = yaml.safe_load(file.read_text())["stages"]
    assert stage["trainer"]["optimizers"]["student"]["ema_decay"] == 0.0
    assert stage["settings"]["reconstruction"] == {"smooth_l1": 1.0}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            ("stages", 0, "trainer", "learning_rate"),
            "'stages.0.trainer.learning_rate'; it is optimizers.NAME.learning_rate.",
        ),
        (("teecher",), "unknown key 'teecher'; did you mean 'teacher'"),
        (("stages", 0, "trainr"), "unknown key 'stages.0.trainr'; did you mean 'trainer'"),
        (("stages", 0, "trainer", "step"), "'stages.0.trainer.step'; did you mean 'steps'"),
        (("stages", 0, "settings", "tap"), "'settings.tap'; did you mean 'taps'"),
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
        (
            ("stages", 0, "trainer", "steps"),
            "many",
            r"stages\.0\.trainer\.steps is 'many'; it must be an integer\.$",
        ),
        (
            ("stages", 0, "settings", "adversarial"),
            "wgan",
            r"adversarial loss 'wgan' is unknown.*hinge",
        ),
        (
            ("stages", 0, "trainer", "optimizers", "student", "max_grad_norm"),
            "x",
            r"max_grad_norm is 'x'; it must be a number or null\.$",
        ),
        (("stages", 0, "lora"), {"rank": 0}, r"rank is 0; it must be at least 1\.$"),
        (("stages", 0, "lora"), {"rank": "x"}, r"rank is 'x'; it must be an integer\.$"),
        (
            ("stages", 0, "student"),
            "previous",
            r"first stage's student is 'previous', but .*; write teacher\.",
        ),
        (
            ("stages", 0, "teacher"),
            "previous",
            r"first stage's teacher is 'previous', but .*; write recipe\.",
        ),
        (
            ("stages", 0, "prune"),
            {"blocks": 3},
            r"unknown key 'prune.blocks'; known are keep",
        ),
        (("stages", 0, "prune"), "bk-smal", r"there is no spec 'bk-smal'; did you mean 'bk-small'"),
        (("stages", 0, "prune"), 7, r"prune is 7; give one of bk-base"),
        (("stages", 0, "method"), "lad", r"there is no method 'lad'; did you mean 'ladd'\?"),
        (("stages", 0, "method"), "no_such:M", r"the method 'no_such:M' cannot be imported"),
        (("stages", 0, "method"), {"taps": []}, r"older form: write `method: ladd`"),
        (("stages", 0, "settings"), 7, r"settings is 7; method 'ladd' takes a LADDConfig"),
        (
            ("stages", 0, "settings", "every"),
            3,
            r"unknown key 'settings\.every'; known are taps, head",
        ),
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


def test_a_recipe_is_found_by_path_and_else_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("toy") == shipped_recipes()["toy"]
    Path("toy").mkdir()  # a folder of that name is no recipe
    assert find_recipe("toy") == shipped_recipes()["toy"]
    Path("toy").rmdir()
    Path("toy").write_text("mine")
    assert find_recipe("toy") == Path("toy")
    assert find_recipe("toy", shipped=True) == shipped_recipes()["toy"]
    for name in ("nitro-sd2", "examples/recipes/nitro-sd21.yaml", "Nitro-SD21"):
        with pytest.raises(FileNotFoundError, match="did you mean 'nitro-sd21'"):
            find_recipe(name)
    with pytest.raises(FileNotFoundError, match="`nitrodistill recipes` lists"):
        find_recipe("none.yaml")


def test_a_version_of_the_teacher_is_not_that_of_another_one():
    stages = [Stage("ladd", TrainerConfig(), teacher="user/other")]
    for version in (TeacherSettings(variant="fp16"), TeacherSettings(revision="main")):
        with pytest.raises(ValueError, match=r"a stage's teacher 'user/other' .* its directory"):
            Recipe("user/model", "runs/x", stages, teacher_settings=version)
    half = TeacherSettings(weights_dtype="bfloat16")
    assert Recipe("user/model", "runs/x", stages, teacher_settings=half).stages == stages


def test_settings_of_another_method_are_refused():
    other = MatchingConfig()
    with pytest.raises(
        ValueError, match=r"settings is MatchingConfig.* takes a LADDConfig, or names"
    ):
        Stage("ladd", TrainerConfig(), other)
    stage = Stage("tests.training.matching:Matching", TrainerConfig(), {"every": 2})
    assert stage.settings == MatchingConfig(every=2)
    with pytest.raises(ValueError, match=r"unknown key 'settings\.taps'; known are every, width"):
        Stage("tests.training.matching:Matching", TrainerConfig(), {"taps": []})


def test_stages_share_one_precision():
    stages = [
        Stage("ladd", TrainerConfig(mixed_precision="no")),
        Stage("ladd", TrainerConfig(mixed_precision="bf16")),
    ]
    with pytest.raises(ValueError, match="use one for all"):
        Recipe("toy", "out", stages, pairs="pairs")


# What a user's hand, or a bad disk, may make of a recipe: only our errors come out.

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["toy", "previous", "hinge", "1e-3", "${x}", "!!python/name:os.system", "../..", "\x00"]
    ),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=6), st.integers()), inner, max_size=3),
    ),
    max_leaves=4,
)
FULL = to_plain(parse_recipe(DATA))


def _places(data, path=()):
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _mutated(draw):
    data = copy.deepcopy(FULL)
    for _ in range(draw(st.integers(1, 2))):
        *parents, leaf = draw(st.sampled_from(list(_places(data))))
        place = data
        for key in parents:
            place = place[key]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"]))
        if kind == "replace":
            place[leaf] = draw(VALUES)
        elif kind == "remove":
            del place[leaf]
        elif isinstance(place, dict):
            key = draw(
                st.one_of(st.text(max_size=8), st.sampled_from(["steps", "taps", "help", "config"]))
            )
            place[key] = place.pop(leaf) if kind == "rename" else draw(VALUES)
        if not list(_places(data)):
            break
    return data


def _check_mutated(data):
    with contextlib.suppress(ValueError):
        recipe = parse_recipe(data)
        assert parse_recipe(to_plain(recipe)) == recipe


def _check_damaged(tmp_path, data):
    file = tmp_path / "fuzzed.yaml"
    file.write_bytes(data)
    with contextlib.suppress(ValueError):
        assert isinstance(load_recipe(file), Recipe)


def _damaged(draw):
    data = bytearray(yaml.safe_dump(DATA, sort_keys=False).encode())
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data) - 1))
        length = draw(st.integers(0, 6))
        data[place : place + length] = draw(st.binary(max_size=4))
    return bytes(data)


QUIET = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@settings(QUIET, max_examples=400, derandomize=True)
@given(st.composite(_mutated)())
def test_a_mutated_recipe_is_read_or_refused(data):
    _check_mutated(data)


@settings(QUIET, max_examples=300, derandomize=True)
@given(data=st.composite(_damaged)())
def test_a_damaged_file_is_read_or_refused(tmp_path, data):
    _check_damaged(tmp_path, data)


@pytest.mark.soak
@settings(QUIET, max_examples=12_000)
@given(st.composite(_mutated)())
def test_many_mutated_recipes_are_read_or_refused(data):
    _check_mutated(data)


@pytest.mark.soak
@settings(QUIET, max_examples=8_000)
@given(data=st.composite(_damaged)())
def test_many_damaged_files_are_read_or_refused(tmp_path, data):
    _check_damaged(tmp_path, data)


def test_options_are_texts_where_texts_are_wanted(tmp_path):
    """A list of one, a folder called 2024, a YAML list, a number below settings."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(copy.deepcopy(DATA)))
    options = {
        "trackers": "wandb", "output": "2024", "preview_prompts": "[a, b]", "stages.trainer.steps": "7",
        "stages.settings.taps": "mid_block", "stages.trainer.optimizers.student.learning_rate": "1e-3",
    }  # fmt: skip
    recipe = load_recipe(file, list(options.items()))
    assert (recipe.trackers, recipe.output) == (("wandb",), "2024")
    assert recipe.preview_prompts == ("a", "b")
    stage = recipe.stages[-1]
    assert (stage.trainer.steps, stage.settings.taps) == (7, ("mid_block",))
    assert stage.trainer.optimizers["student"].learning_rate == 1e-3
