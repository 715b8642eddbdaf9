"""Wrong input to the whole public surface: nothing answers as if it were right.

The answer to each wrong argument of `surface`, `surface_of_objects` and `surface_of_methods` is a sentence of
ours, or, for NaN in data, NaN in that sample. A soak run does so on many shapes.
"""

from __future__ import annotations

import importlib
import inspect
import math
import random
import re
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from nitrodistill import checks
from tests.surface import answer, calls
from tests.surface_of_methods import method_calls
from tests.surface_of_objects import ELSEWHERE, PACKAGES, object_calls

CALLS = calls() | object_calls() | method_calls()


@pytest.mark.parametrize("name", CALLS)
def test_right_input_is_answered(name):
    call = CALLS[name]
    assert call.function(**call.arguments) is not None


@pytest.mark.parametrize("name", CALLS)
def test_wrong_input_is_not(name):
    call = CALLS[name]
    silent = [
        f"{argument} = {wrong.what}: {said}"
        for argument, kinds in call.wrong.items()
        for wrong in kinds(call.arguments[argument])
        if (said := answer(call, {argument: wrong}))
    ]
    assert not silent, "\n".join(silent)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(60))
def test_wrong_input_is_not_on_other_shapes(seed):
    draw = random.Random(seed)
    shape = draw.randint(2, 6), draw.randint(2, 6), draw.randint(9, 24)
    silent = [
        f"{name}, {argument} = {wrong.what}: {said}"
        for name, call in (
            calls(*shape) | object_calls(draw.randrange(1000)) | method_calls(*shape)
        ).items()
        for argument, kinds in call.wrong.items()
        for wrong in kinds(call.arguments[argument])
        if (said := answer(call, {argument: wrong}))
    ]
    assert not silent, "\n".join(silent)


@dataclass
class Settings:
    count: int = 1
    size: float = 1.0
    limit: int | None = None
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] | None = None
    span: tuple[float, float] | None = None
    law: str | dict[str, Any] = "uniform"
    on: bool = False
    loss: str | dict[str, float] = "l1"


def test_fields_of_a_dataclass():
    least = {"count": 1, "size": 0.5, "limit": 2}
    checks.check_fields(Settings(), **least)
    checks.check_fields(Settings(2, 0.5, 2, "b"), **least)
    checks.check_fields(Settings(loss={"l1": 1.0}), **least)
    checks.check_fields(Settings(names=("a",), span=(1, 2.5), law={"shifted": {}}), **least)
    for wrong, error, sentence in (
        (Settings(count=0), ValueError, "count is 0; it must be at least 1"),
        (Settings(count=None), TypeError, "count is None; it must be a whole number"),
        (Settings(size=0.4), ValueError, "size is 0.4; it must be at least 0.5"),
        (Settings(size=math.nan), ValueError, "size is nan; it must be finite"),
        (Settings(limit=1), ValueError, "limit is 1; it must be at least 2"),
        (Settings(names="to_q"), TypeError, "names is 'to_q'; it must not be a text"),
        (
            Settings(names=("a", 3)),
            TypeError,
            "names is .'a', 3.; it must be a sequence, each a text or",
        ),
        (Settings(span=(1.0,)), TypeError, "must be .a finite number, a finite number. or none"),
        (Settings(span=(1.0, math.nan)), TypeError, "span is .1.0, nan.; it must be"),
        (Settings(law=3), TypeError, "law is 3; it must be a text or a mapping"),
        (Settings(on="false"), TypeError, "on is 'false'; it must not be a text"),
        (Settings(on=2), TypeError, "on is 2; it must be true or false"),
        (Settings(size="1"), TypeError, "size is '1'; it must not be a text"),
        (Settings(kind="c"), ValueError, "kind is 'c'; it must be one of 'a', 'b'"),
        (Settings(on={}), TypeError, "on is {}; it must be true or false"),
        (Settings(loss=["l1"]), TypeError, "it must be a text"),
    ):
        with pytest.raises(error, match=sentence):
            checks.check_fields(wrong, **least)


def test_all_that_is_public_is_in_a_table():
    """And nothing is in it that is not."""
    public = {
        name: getattr(importlib.import_module(p), name)
        for p in PACKAGES
        for name in importlib.import_module(p).__all__
    }
    callables = {
        name for name, value in public.items() if callable(value) and not inspect.ismodule(value)
    }
    covered = {re.split(r"[ .]", name)[0] for name in CALLS}
    missing = callables - covered - ELSEWHERE.keys()
    assert not missing, f"in no table: {sorted(missing)}"
    assert ELSEWHERE.keys() <= public.keys()
    assert not covered & ELSEWHERE.keys()
