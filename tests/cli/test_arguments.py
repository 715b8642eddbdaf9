from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from nitrodistill.cli.arguments import describe, make_parser, option_names, parse
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
    assert "  --inner.depth\n        how deep, in blocks. (default: 3)" in text
    assert "  --name\n        what it is called.\n" in text
    assert "(default: null)" in text


def _parser():
    parser = make_parser("cook", "Cooks.", "example:\n  cook --num_eggs 2")
    parser.add_argument("--num_eggs", type=int, default=1, help="how many")
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
        (["--num_egs", "3"], "no option --num_egs; did you mean --num_eggs"),
        (["--num_egg", "3"], "no option --num_egg; did you mean --num_eggs"),  # no abbreviations
        (["--zzz", "3"], "no option --zzz; .*--help` lists"),
        (["--num_eggs", "many"], "many"),
    ],
)
def test_a_mistake_is_one_sentence(argv, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse(_parser(), argv)
    assert "\n" not in str(caught.value)
