"""Classes by name, and their settings checked by the annotations of their constructors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest

from nitrodistill.named import (
    build,
    check_settings,
    import_class,
    one_name,
    pick_class,
    snake_case,
)


class Fruit(ABC):
    @abstractmethod
    def taste(self) -> str: ...


class RedAppleFruit(Fruit):
    def __init__(
        self,
        size: float,
        count: int = 1,
        *,
        kind: Literal["sweet", "sour"] = "sweet",
        ranges: tuple[tuple[float, float], ...] = (),
        pair: tuple[int, str] | None = None,
        ripe: bool = True,
        file: Path | None = None,
        spots: Sequence[float] | None = None,
        names: Mapping[str, int] | None = None,
        inside: Fruit | None = None,
    ) -> None:
        if size < 0:
            raise ValueError(f"size is {size}; it must be positive.")
        self.size, self.ranges = size, ranges

    def taste(self) -> str:
        return "sweet"


@pytest.mark.parametrize(
    ("name", "ending", "expected"),
    [
        ("SmoothL1Loss", "Loss", "smooth_l1"),
        ("L1Loss", "Loss", "l1"),
        ("MSSSIMLoss", "Loss", "ms_ssim"),
        ("SSIMLoss", "Loss", "ssim"),
        ("LatentSSIMLoss", "Loss", "latent_ssim"),
        ("LPIPSLoss", "Loss", "lpips"),
        ("NonSaturatingGANLoss", "GANLoss", "non_saturating"),
        ("LADD", "", "ladd"),
        ("LogitNormal", "", "logit_normal"),
        ("DMD2Config", "Config", "dmd2"),
    ],
)
def test_the_name_of_a_class(name, ending, expected):
    assert snake_case(type(name, (), {}), ending) == expected


def test_a_class_is_found_by_its_name_or_its_place():
    assert pick_class("red_apple", [RedAppleFruit], Fruit, "fruit", "Fruit") is RedAppleFruit
    assert pick_class("fractions:Fraction", [], object, "number").__name__ == "Fraction"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "red_aple",
            r"the fruit 'red_aple' is unknown. Did you mean 'red_apple'\? There are: red_apple",
        ),
        ("xyz", "the fruit 'xyz' is unknown. There are: red_apple."),
        ("no.such.module:Class", "'no.such.module:Class' cannot be imported: No module named 'no'"),
        ("fractions:Fractoin", "is no class; fractions has no class 'Fractoin'"),
        ("math:sqrt", "is no class; math has no class 'sqrt'"),
        ("fractions:Fraction", "'fractions:Fraction' is no Fruit that can be built"),
        (":Class", "cannot be imported"),
    ],
)
def test_a_name_that_there_is_not(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        pick_class(name, [RedAppleFruit], Fruit, "fruit", "Fruit")


def test_an_abstract_class_cannot_be_built():
    with pytest.raises(ValueError, match="is no Fruit that can be built"):
        import_class(f"{Fruit.__module__}:Fruit", Fruit, "fruit")


def test_a_name_with_or_without_settings():
    assert one_name("hinge", "loss") == ("hinge", None)
    assert one_name({"hinge": {"a": 1}}, "loss") == ("hinge", {"a": 1})
    for wrong in (3, None, {}, {"a": 1, "b": 2}, ["a"]):
        with pytest.raises(ValueError, match="give a name, or one name with its settings"):
            one_name(wrong, "loss")


def test_settings_become_arguments():
    settings = {"size": 3, "ranges": [[0, 0.5], [0.7, 1.0]], "spots": [1, 2.0], "file": "a/b"}
    arguments = check_settings(RedAppleFruit, settings, "red_apple")
    assert arguments == {**settings, "ranges": ((0, 0.5), (0.7, 1.0)), "spots": (1, 2.0)}
    assert build(RedAppleFruit, arguments, "red_apple").ranges == ((0, 0.5), (0.7, 1.0))
    made = check_settings(
        RedAppleFruit, {"size": 1, "inside": "x"}, "red_apple", nested={Fruit | None: str.upper}
    )
    assert made["inside"] == "X"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"size": 1, "cuont": 2}, "setting of red_apple 'cuont' is unknown. Did you mean 'count'"),
        ({"size": 1, "ripe": 1}, "ripe of red_apple is 1; it must be true or false"),
        ({"size": "1"}, "size of red_apple is '1'; it must be a number"),
        ({"size": True}, "size of red_apple is True; it must be a number"),
        ({"size": None}, "size of red_apple is None; it must be a number"),
        ({"size": 1, "count": 2.5}, "count of red_apple is 2.5; it must be an integer"),
        ({"size": 1, "count": True}, "it must be an integer"),
        ({"size": 1, "kind": "swet"}, "kind of red_apple is 'swet'; it must be 'sweet' or 'sour'"),
        ({"size": 1, "ranges": [[0, 1, 2]]}, "must be a list, each a list of 2, each a number"),
        ({"size": 1, "ranges": "ab"}, "must be a list"),
        ({"size": 1, "pair": [1, 2]}, "a list of 2, each an integer or a text or null"),
        ({"size": 1, "file": 3}, "it must be a path or null"),
        ({"size": 1, "spots": [1, "a"]}, "must be a list, each a number or null"),
        ({"size": 1, "names": {"a": "b"}}, "names of red_apple is"),
        ({"size": 1, "inside": {}}, "must be a Fruit or null"),
        ({}, "red_apple needs size"),
        (None, "red_apple needs size"),
        ([1], r"the settings of red_apple are \[1\]; give a mapping"),
        ({"size": 1, "pair": None, "reduction": 1}, "unknown"),
    ],
)
def test_settings_that_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_settings(RedAppleFruit, settings, "red_apple")


def test_what_may_not_be_set_is_unknown():
    with pytest.raises(ValueError, match="'count' is unknown"):
        check_settings(RedAppleFruit, {"size": 1, "count": 2}, "red_apple", without=("count",))


def test_what_a_class_refuses_is_said_with_its_name():
    with pytest.raises(ValueError, match="red_apple: size is -1; it must be positive"):
        build(RedAppleFruit, {"size": -1}, "red_apple")
