from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from nitrodistill.settings import (
    Word,
    build,
    convert,
    convert_text,
    differences,
    nearest,
    parse_yaml,
    printable,
    read_yaml,
    shown,
    to_plain,
)


@dataclass(frozen=True)
class Inner:
    depth: int = 3
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}; it must be at least 1.")


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)
    parts: list[Inner] = field(default_factory=list)
    pair: tuple[float, float] = (0.5, 0.9)
    taps: tuple[str | float, ...] = ()
    roles: dict[str, Inner] = field(default_factory=dict)
    flag: bool = False
    anything: Any = None


FULL = {
    "name": "x",
    "kind": "b",
    "inner": {"depth": 5, "rate": "1e-3"},
    "parts": [{"depth": 1}, {}],
    "pair": [1, 0.5],
    "taps": ["mid", 0.25],
    "roles": {"student": {"rate": 2}},
    "flag": True,
    "anything": {"a": [1]},
}


def test_plain_values_become_dataclasses_and_go_round() -> None:
    made = build(Outer, FULL)
    expected = Outer(
        "x", "b", Inner(5, 1e-3), [Inner(1), Inner()], (1.0, 0.5), ("mid", 0.25),
        {"student": Inner(rate=2.0)}, True, {"a": [1]},
    )  # fmt: skip
    assert made == expected
    assert type(made.pair[0]) is float
    assert build(Outer, to_plain(made)) == made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nmae": 1}, r"^unknown key 'nmae'; did you mean 'name'\?$"),
        ({"inner": {"dpeth": 1}}, r"^unknown key 'inner.dpeth'; did you mean 'depth'\?$"),
        ({"depth": 1}, r"^unknown key 'depth'; it is inner.depth\.$"),
        ({"parts": [{}, {"zzz": 1}]}, r"'parts.1.zzz'; known are depth, rate\.$"),
        ({"inner": {"depth": 1.5}}, r"^inner.depth is 1.5; it must be an integer\.$"),
        ({"inner": {"depth": True}}, r"^inner.depth is True; it must be an integer\.$"),
        ({"inner": {"depth": 0}}, r"^inner: depth is 0; it must be at least 1\.$"),
        ({"inner": {"rate": "x"}}, r"^inner.rate is 'x'; it must be a number or null\.$"),
        ({"inner": 3}, r"^inner is 3; it must hold names and values\.$"),
        ({"kind": "c"}, r"^kind is 'c'; it must be 'a' or 'b'\.$"),
        (
            {"pair": [1, 2, 3]},
            r"^pair is \[1, 2, 3\]; it must be a list of 2, each a number\.$",
        ),
        ({"parts": {}}, r"^parts is {}; it must be a list, each names and values\.$"),
        ({"roles": {3: {}}}, r"^roles has the name 3; names are text\.$"),
        ({"flag": "yes"}, r"^flag is 'yes'; it must be true or false\.$"),
        ({"name": False}, r"it must be a text \(YAML reads yes, no, on and off"),
        ({"name": "x" * 500}, None),
    ],
)
def test_a_wrong_value_is_one_sentence_that_says_where(
    change: dict[str, Any], words: str | None
) -> None:
    if words is None:
        assert build(Outer, FULL | change).name == "x" * 500
        return
    with pytest.raises(ValueError, match=words) as caught:
        build(Outer, FULL | change)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"^name is missing; give it a value\.$"):
        build(Outer, {})


def test_differences_are_named_by_their_place() -> None:
    before = to_plain(build(Outer, FULL))
    now = to_plain(build(Outer, FULL | {"parts": [{"depth": 2}, {}], "flag": False}))
    assert differences(before, now) == ["parts.0.depth was 1, now 2", "flag was True, now False"]
    assert differences(before, before) == []
    assert differences({"a": [1]}, {"a": [1, 2]}) == ["a was [1], now [1, 2]"]
    assert differences({}, {"a": 1}) == ["a was None, now 1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "this is not YAML"),
        ("a: 1\nb: 2\na: 3", "'a' stands twice in the names from line 1 on; keep one"),
        ("a:\n  b: 1\n  b: 2", "'b' stands twice in the names from line 2"),
        ("a: &x [*x]", "stands inside of what it names"),
        ("!!python/object/apply:os.system [ls]", "this is not YAML"),
        (
            "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
            + "\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8)),
            "holds more than 100000 values",
        ),
    ],
)
def test_yaml_without_surprises(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_yaml(text)


def test_aliases_that_expand_without_end_are_refused_at_once() -> None:
    """413 bytes that would be 387 million words; 881 bytes like these made a message of 25 MB."""
    first = f"a0: &a0 [{','.join(['lol'] * 9)}]\n"
    text = first + "\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))
    assert len(text) < 881
    started = time.perf_counter()
    with pytest.raises(ValueError, match="holds more than 100000 values") as caught:
        parse_yaml(text)
    assert time.perf_counter() - started < 1
    assert len(str(caught.value)) < 100


def test_a_value_of_many_aliases_is_told_in_60_characters() -> None:
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 4)]
    data = parse_yaml("\n".join([*lines, "name: *a3", f"kind: &k {'x' * 5000}", "flag: *k"]))
    assert isinstance(data, dict)
    for name, rule in (("name", "a text"), ("kind", "'a' or 'b'"), ("flag", "true or false")):
        with pytest.raises(ValueError, match=rf"^{name} is .*; it must be {rule}\.$") as caught:
            build(Outer, {"name": "x", name: data[name]})
        shortest = len(f"{name} is ; it must be {rule}.")
        assert len(str(caught.value)) <= shortest + 60
    with pytest.raises(ValueError, match="unknown key 'xxx") as caught:
        build(Outer, {"x" * 5000: 1})
    assert len(str(caught.value)) < 160


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_recipe_and_nobody_waits_for_it(tmp_path: Any) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(FileNotFoundError, match="no recipe at"):
        read_yaml(tmp_path / "recipe.yaml")


def test_files(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match="no recipe at"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="this is not YAML"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("a: {b: &x [1], c: *x}")
    assert read_yaml(tmp_path / "b.yaml") == {"a": {"b": [1], "c": [1]}}


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[31m\u202eb\n\t\xa0é") == "a\\x1b[31m\\u202eb\n\t\xa0é"
    assert printable("\x00\x7f\x9b\r\udc80") == "\\x00\\x7f\\x9b\\r\\udc80"
    assert printable("a red ring") == "a red ring"


def test_what_is_shown_is_short_and_harmless() -> None:
    assert len(shown("x" * 1000)) == 60
    assert shown("\x1b[31m") == "'\\x1b[31m'"
    assert len(shown([[["y" * 100] * 100] * 100] * 100)) <= 60
    assert nearest("tpas", ["taps", "head"]) == "did you mean 'taps'?"
    assert nearest("zzz", ["taps", "head"]) == "known are taps, head."


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "7", 7),
        (float, "7", 7.0),
        (float, "1e-4", 1e-4),
        (str, "7", "7"),
        (str | None, "null", None),
        (str, "null", "null"),
        (int | None, "null", None),
        (bool, "true", True),
        (Literal["no", "bf16"], "no", "no"),
        (tuple[int, ...], "[1, 2]", (1, 2)),
    ],
)
def test_a_word_of_a_command_line_is_what_the_annotation_wants(
    hint: Any, text: str, value: object
) -> None:
    found = convert_text(hint, text, "x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["many", "no", "[", "1.5", ""])
def test_a_wrong_word_is_shown_as_it_was_given(text: str) -> None:
    with pytest.raises(ValueError, match="x is ") as caught:
        convert_text(int, text, "x")
    assert str(caught.value) == f"x is {text!r}; it must be an integer."


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("2024", "name", "2024"),
        ("no", "name", "no"),
        ("no", "flag", False),
        ("mid", "taps", ("mid",)),
        ("[mid, 0.5]", "taps", ("mid", 0.5)),
        ("{depth: 4}", "inner", Inner(4)),
        ("0.5", "anything", 0.5),
        ("[", "name", "["),
    ],
)
def test_a_word_among_settings_is_read_where_it_is_known_what_is_wanted(text, name, value) -> None:
    made = build(Outer, {"name": "x", name: Word(text)})
    assert getattr(made, name) == value
    assert type(getattr(made, name)) is type(value)


def test_words_below_anything_are_yaml() -> None:
    made = build(
        Outer, {"name": "x", "anything": {"a": [Word("1e-2"), Word("true")], "b": Word("c")}}
    )
    assert made.anything == {"a": ["1e-2", True], "b": "c"}
    assert type(made.anything["b"]) is str


def test_one_text_is_a_list_of_one_where_texts_may_stand() -> None:
    assert convert(tuple[str, ...] | None, "wandb", "trackers") == ("wandb",)
    assert convert(list[str], "wandb", "trackers") == ["wandb"]
    for hint in (tuple[float, ...], tuple[str, str]):
        with pytest.raises(ValueError, match="it must be a list"):
            convert(hint, "wandb", "x")


@pytest.mark.parametrize("hint", [str, str | None, Literal["x"] | str, str | float])
def test_what_yaml_read_as_a_boolean_is_to_be_quoted(hint) -> None:
    with pytest.raises(
        ValueError, match=r"teacher is False; it must be .* off as true and false: quote it"
    ):
        convert(hint, parse_yaml("no"), "teacher")


def test_a_word_of_its_own_is_no_list_of_one():
    hint = tuple[str | float, ...] | Literal["every_block"]
    assert convert(hint, "every_block", "taps") == "every_block"
    assert convert(hint, "conv_in", "taps") == ("conv_in",)
