from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import pytest

from nitrodistill.cli.arguments import Parser, describe, option_names, parse
from nitrodistill.training import OptimizerConfig


@dataclass(frozen=True)
class Inner:
    """Inner.

    Attributes:
        depth: how deep, in blocks.
    """

    depth: int = 3


@dataclass(frozen=True)
class Outer:
    """Outer.

    Attributes:
        name: what it is called.
        inner: the parts.
        roles: one each.
        limit: at most so much, or nothing.
    """

    name: str
    inner: list[Inner] = field(default_factory=list)
    roles: dict[str, OptimizerConfig] = field(default_factory=dict)
    limit: float | None = None


def test_names_of_the_leaves():
    names = option_names(Outer, "x.")
    assert names[:3] == ["x.name", "x.inner.depth", "x.roles.ROLE.learning_rate"]
    assert names[-1] == "x.limit"


def test_a_description_has_meaning_and_default_of_every_leaf():
    text = describe(Outer)
    assert "  --inner.depth\n        how deep, in blocks. (an integer; default: 3)" in text
    assert "  --name\n        what it is called. (a text)\n" in text
    assert "(a number or null; default: null)" in text


def _parser():
    parser = Parser("cook", "Cooks.", below="example:\n  cook --num_eggs 2")
    parser.add("--num_eggs", "how many", int, 1)
    return parser


@pytest.mark.parametrize("argv", [["--num_eggs", "3"], ["--num-eggs", "3"], ["--num-eggs=3"]])
def test_dashes_and_underscores(argv):
    assert parse(_parser(), argv).num_eggs == 3


def test_help_keeps_the_example_and_shows_defaults(capsys):
    with pytest.raises(SystemExit) as leaving:
        parse(_parser(), ["--help"])
    assert leaving.value.code == 0
    printed = capsys.readouterr().out
    assert "example:\n  cook --num_eggs 2" in printed
    assert "default: 1" in printed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--num_eggs=3", "--epochs", "3"], "no option --epochs; .*--help` lists"),
        (["--num_egs", "3"], "no option --num_egs; did you mean --num_eggs"),
        (["--num_egg", "3"], "no option --num_egg; did you mean --num_eggs"),  # no abbreviations
        (["--zzz", "3"], "no option --zzz; .*--help` lists"),
        (["--num_eggs"], "--num_eggs has no value"),
        (
            ["--num_eggs", "many"],
            "--num_eggs is 'many'; it must be an integer. For example: --num_eggs 1",
        ),
        (["3"], "'3' is not expected"),
    ],
)
def test_a_mistake_is_one_sentence(argv, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse(_parser(), argv)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Dish:
    """How it is cooked.

    Attributes:
        output: folder, 50% of which is free.
        heat: of the stove.
        salt: in grams; null is to taste.
        num_inference_steps: turns in the pan.
        herbs: on top.
        warm: keep it warm.
    """

    output: str
    heat: Literal["off", "low"] = "low"
    salt: float | None = None
    num_inference_steps: int = 4
    herbs: list[str] | None = None
    warm: bool = False


def _dish(*argv, more=(), file=False):
    parser = Parser("cook", "Cooks.", Dish)
    parser.add("pots", "which", list[str])
    parser.add("--config", "more", str | None)
    return parse(parser, argv, more, file=file)


def test_words_become_what_a_recipe_would_hold():
    found = _dish(
        "a", "--warm", "--output=007", "--salt", "1e-4", "--herbs", "no", "2", "--heat", "off"
    )
    assert (found.pots, found.warm, found.output, found.salt) == (["a"], True, "007", 1e-4)
    assert (found.herbs, found.heat, found.num_inference_steps) == (["no", "2"], "off", 4)
    found = _dish("--warm", "a", "b", "--output", "x", "--salt", "null")
    assert (found.pots, found.salt, found.herbs) == (["a", "b"], None, None)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--heat", "hot"], "--heat is 'hot'; it must be 'off' or 'low'. For example: --heat low"),
        (["--salt", "["], "--salt is '['; it must be a number or null. For example: --salt 8"),
        (["--warm=yes"], "--warm takes no value"),
        (["--herbs"], "--herbs has no value"),
        (["--out", "x"], "did you mean --output?"),
        (["-o", "x"], "no option -o; did you mean --output?"),
        (["--steps", "3"], "did you mean --num_inference_steps?"),
        (["--num-steps=3"], "no option --num_steps; did you mean --num_inference_steps?"),
        (["--out_put", "x"], "did you mean --output?"),
        (["--num_step", "3"], "did you mean --num_inference_steps?"),
        (["--lr", "3"], "did you mean --stages.student.learning_rate?"),
        (["--learning_rate", "3"], "did you mean --stages.student.learning_rate?"),
        (["--learning_rat", "3"], "did you mean --stages.student.learning_rate?"),
        (
            ["a", "--epochs", "3"],
            "no option --epochs; `nitrodistill cook --help` lists the options.",
        ),
        (["--warm"], "needs --output, POTS."),
    ],
)
def test_a_mistake_shows_what_was_meant(argv, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        _dish(*argv, more=["stages.ROLE.learning_rate"])


def test_a_file_gives_options_and_those_of_the_command_win(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("output: x\nsalt: 2\nheat: off\nwarm: true\npots: [a]")
    found = _dish("--salt", "3", "--config", str(file), file=True)
    assert (found.output, found.salt, found.heat, found.warm) == ("x", 3.0, "off", True)
    for text, words in [
        ("otput: x", "options.yaml: unknown key 'otput'; did you mean 'output'?"),
        ("salt: much", "options.yaml: salt is 'much'; it must be a number or null"),
        ("- x", "it must hold names and values"),
        ("salt: 2", "needs --output, POTS, or a file that says so with --config FILE"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            _dish("--config", str(file), file=True)


def test_help_has_a_title_a_type_and_a_default_of_each_option():
    text = " ".join(Parser("cook", "Cooks.", Dish).format_help().split())
    assert (
        "How it is cooked: --output OUTPUT folder, 50% of which is free (a text, required)" in text
    )
    assert "--heat {off,low} of the stove (default: low)" in text
    assert "--salt SALT in grams; null is to taste (a number or null, default: null)" in text
    assert "--warm keep it warm" in text


def test_of_two_options_of_one_name_the_first_is_taken():
    found = parse(Parser("cook", "Cooks.", Dish, type("Late", (Dish,), {})), ["--output", "x"])
    assert found.output == "x"


def test_what_people_mean_is_named_with_the_nearest():
    """Elsewhere --rank is LoRA's; here there is something else that is written much like it."""
    parser = Parser("cook", "Cooks.")
    parser.add("--ranks", "of what", int, 1)
    with pytest.raises(ValueError, match=r"did you mean --stages.lora.rank or --ranks\?"):
        parse(parser, ["--rank", "3"], ["stages.lora.rank"])


@dataclass(frozen=True)
class Plates:
    """Options.

    Attributes:
        one: a plate.
        some: plates.
    """

    one: str = "none"
    some: list[str] | None = None


@pytest.mark.parametrize(
    ("words", "argv", "found"),
    [
        ("one", ["a"], "a"),
        ("one", ["--one", "a"], "a"),
        ("one", ["--quiet", "007"], "007"),
        ("one", [], "none"),
        ("some", ["a", "b", "--quiet"], ["a", "b"]),
        ("some", ["--quiet", "a"], ["a"]),
        ("some", ["--some", "a", "b"], ["a", "b"]),
        ("some", ["a", "--quiet", "b"], ["a", "b"]),
        ("some", [], None),
    ],
)
def test_words_without_a_name_are_of_one_option(words, argv, found):
    assert getattr(parse(Parser("lay", "Lays.", Plates, words=words), argv), words) == found


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["a", "--one", "b"], "'a' stands without a name, which is --one; give that once."),
        (["a", "b"], "'b' is not expected"),
    ],
)
def test_a_word_too_much(argv, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse(Parser("lay", "Lays.", Plates, words="one"), argv)
