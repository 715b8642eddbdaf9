"""Mutated manifests and files: they are refused with a sentence of ours, or read as what was written.

1,300 inputs in CI, ten times as many in the soak run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nitrodistill.data import GenerateConfig, Manifest, PairStore, generate, statistics
from nitrodistill.models import Pipeline

OURS = (ValueError, FileNotFoundError, IndexError)
KINDS = ("shards", "prompts")

Rows = tuple[tuple[str, ...], list[dict[str, bytes]], list[dict[str, bytes]], torch.Tensor]


def fuzz(examples: int, soak: bool) -> Callable[[Any], Any]:
    """CI draws the same inputs each time; a soak run new ones."""
    return settings(
        max_examples=examples * (10 if soak else 1),
        deadline=None,
        derandomize=not soak,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def stores(
    made: PairStore,
    pipeline: Pipeline,
    prompts: list[str],
    config: GenerateConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[PairStore]:
    """A store as it is, and one with every encoding."""
    small = replace(config, num_pairs=5, embeddings="int8", noise="drawn")
    path = tmp_path_factory.mktemp("fuzz") / "small"
    return [made, generate(pipeline, prompts, path, small, teacher_name="t", progress=False)]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """New folders (what is mapped into memory must not change); each is removed when the next is taken."""
    root = tmp_path_factory.mktemp("mutated")

    def fresh() -> Iterator[Path]:
        for i in count():
            yield root / str(i)
            shutil.rmtree(root / str(i), ignore_errors=True)

    return fresh()


def read(store: PairStore) -> Rows:
    """Everything in a store."""
    batch = store.read(range(len(store)), dtype=None)
    return (
        store.prompts,
        [store.pair_bytes(i) for i in range(len(store))],
        [store.prompt_bytes(i) for i in range(store.manifest.num_prompts)],
        batch.noise,
    )


def same(one: Rows, other: Rows) -> bool:
    return one[:3] == other[:3] and torch.equal(one[3], other[3])


def refused(action: Callable[[], object]) -> bool:
    """Whether one of our errors, and of no other kind (Arrow's derive from ValueError), with a sentence."""
    caught: Exception | None = None
    try:
        action()
    except Exception as error:
        caught = error
    if caught is not None:
        assert type(caught) in OURS, repr(caught)
        assert str(caught).endswith((".", "?")), repr(caught)
    return caught is not None


mutations = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.integers(1, 400)),
        st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("write"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("end"), st.floats(0, 1), st.none()),
    ),
    min_size=1,
    max_size=4,
)


def mutate(data: bytes, changes: list[tuple[str, float, Any]]) -> bytes:
    for kind, where, what in changes:
        at = min(int(where * len(data)), max(len(data) - 1, 0))
        if not data:
            break
        if kind == "flip":
            data = data[:at] + bytes([data[at] ^ what]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + what :]
        elif kind == "insert":
            data = data[:at] + what + data[at:]
        elif kind == "write":
            data = data[:at] + what + data[at + len(what) :]
        else:
            data = data[:at]
    return data


def linked(store: PairStore, place: Path) -> Path:
    """The store in another folder, without copying its files."""
    for kind in KINDS:
        (place / kind).mkdir(parents=True)
        for file in (store.path / kind).iterdir():
            os.link(file, place / kind / file.name)
    return place


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=6), children, max_size=3)
    ),
    max_leaves=4,
)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values inside of a JSON value."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in items:
        yield (*path, key)
        yield from nodes(child, (*path, key))


def check_text(stores: list[PairStore], which: int, changes: list[tuple[str, float, Any]]) -> None:
    text = mutate(stores[which].manifest.to_json().encode(), changes).decode(errors="replace")
    refused(lambda: Manifest.from_json(text).to_json())


def check_value(
    stores: list[PairStore], place: Path, which: int, where: float, value: Any, action: str
) -> None:
    """A manifest with another value somewhere: refused, or the store reads as before."""
    data = json.loads(stores[which].manifest.to_json())
    paths = list(nodes(data))
    *path, last = paths[min(int(where * len(paths)), len(paths) - 1)]
    owner = data
    for key in path:
        owner = owner[key]
    if action == "remove":
        del owner[last]
    elif action == "double" and isinstance(owner, list):
        owner.append(owner[last])
    else:
        owner[last] = value
    linked(stores[which], place)
    (place / "manifest.json").write_text(json.dumps(data))
    found: list[Rows] = []
    if not refused(lambda: found.append(read(PairStore.open(place)))):
        assert same(found[0], read(stores[which]))


def check_file(
    stores: list[PairStore],
    place: Path,
    which: int,
    kind: str,
    number: float,
    changes: list[tuple[str, float, Any]],
) -> None:
    """A mutated file whose size the manifest knows: refused, or every row reads as before."""
    store = stores[which]
    entries = getattr(store.manifest, kind)
    k = min(int(number * len(entries)), len(entries) - 1)
    data = mutate((store.path / entries[k].name).read_bytes(), changes)
    linked(store, place)
    path = place / entries[k].name
    path.unlink()
    path.write_bytes(data)
    files = list(entries)
    files[k] = replace(entries[k], bytes=max(len(data), 1))
    manifest = replace(store.manifest, **{kind: tuple(files)})
    (place / "manifest.json").write_text(manifest.to_json())
    found: list[Rows] = []
    if not refused(lambda: found.append(read(PairStore.open(place)))):
        assert same(found[0], read(store))
    refused(lambda: PairStore.open(place).verify())
    refused(lambda: statistics(PairStore.open(place)))


WHICH = st.integers(0, 1)
UNIT = st.floats(0, 1)
SOAK = pytest.param(True, marks=pytest.mark.soak)


@pytest.mark.parametrize("soak", [False, SOAK])
def test_mutated_texts_of_manifests(stores: list[PairStore], soak: bool) -> None:
    @fuzz(400, soak)
    @given(WHICH, mutations)
    def run(which: int, changes: list[tuple[str, float, Any]]) -> None:
        check_text(stores, which, changes)

    run()


@pytest.mark.parametrize("soak", [False, SOAK])
def test_other_values_in_manifests(
    stores: list[PairStore], places: Iterator[Path], soak: bool
) -> None:
    @fuzz(400, soak)
    @given(WHICH, UNIT, json_values, st.sampled_from(["replace", "remove", "double"]))
    def run(which: int, where: float, value: Any, action: str) -> None:
        check_value(stores, next(places), which, where, value, action)

    run()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("soak", [False, SOAK])
def test_mutated_files(
    stores: list[PairStore], places: Iterator[Path], kind: str, soak: bool
) -> None:
    @fuzz(250, soak)
    @given(WHICH, UNIT, mutations)
    def run(which: int, number: float, changes: list[tuple[str, float, Any]]) -> None:
        check_file(stores, next(places), which, kind, number, changes)

    run()
