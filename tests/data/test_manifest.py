from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nitrodistill.data import Column, Encoded, File, Generated, Grid, Imported, Manifest


def manifest(**changes: Any) -> Manifest:
    source = Generated(
        num_samples=5,
        teacher="t",
        fingerprint="f",
        prediction_type="epsilon",
        sampler="ode",
        sampler_settings="clamp: None",
        num_inference_steps=2,
        guidance=3.0,
        grid=Grid("DiscreteSchedule", (999, 499), (0.1, 0.5), (0.9, 0.8)),
        text_encoders="e",
        compute="float32",
        seed=0,
        batch_size=2,
        num_prompts=3,
        prompts_hash="p",
        code_version="0.1",
    )
    latent = Column("bfloat16", (4, 8, 8))
    values = {
        "shard_size": 4,
        "columns": {"x0": latent, "noise": latent},
        "conditions": {"text": Column("float16", (None, 6)), "pooled": Column("float32", (3,))},
        "texts_hash": "h",
        "sources": (source,),
        "prompts": (File("prompts/000000.arrow", 3, 100, "a"),),
        "shards": (File("shards/000000.arrow", 4, 90, "b"), File("shards/1.arrow", 1, 80, "c")),
    }
    return Manifest(**(values | changes))


def test_json_round_trip_is_exact() -> None:
    assert Manifest.from_json(manifest().to_json()) == manifest()
    assert manifest().num_samples == 5
    assert manifest().num_prompts == 3


def test_stride_is_bytes_of_a_row_or_of_a_token() -> None:
    assert Column("bfloat16", (4, 8, 8)).stride_bytes == 2 * 4 * 8 * 8
    assert Column("float32", (None, 6)).stride_bytes == 4 * 6
    assert Column("bool", ()).stride_bytes == 1


def test_identity_ignores_records_and_files_and_sees_settings() -> None:
    one = manifest()
    [source] = one.sources
    renamed = replace(source, teacher="other", code_version="9")
    assert replace(one, sources=(renamed,), shards=(), prompts=()).identity() == one.identity()
    for other in (
        replace(one, sources=(replace(source, guidance=4.0),)),
        replace(one, shard_size=8),
        replace(one, texts_hash="i"),
        replace(one, columns={n: Column("float16", (4, 8, 8)) for n in one.columns}),
    ):
        assert other.identity() != one.identity()


def test_differences_name_the_setting() -> None:
    one = manifest()
    [source] = one.sources
    grid = Grid("DiscreteSchedule", (999,), (0.1,), (0.9,))
    other = replace(one, sources=(replace(source, num_inference_steps=1, grid=grid),))
    assert one.differences(other) == ["num_inference_steps is 2 there and 1 here"]
    assert one.differences(one) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "zip", "another format"),
        (["version"], 1, "its version is 1 and this nitrodistill reads 3: update"),
        (["num_samples"], 6, "says 6 samples and its sources made 5"),
        (["surprise"], 1, "unknown key 'surprise'"),
        (["shard_size"], True, "shard_size is True"),
        (["columns", "x0", "dtype"], "object", "dtype is 'object'"),
        (["columns", "x0", "encoding"], "int4", "encoding is 'int4'"),
        (["columns", "x0", "encoding"], "int8", "x0 must be raw"),
        (["columns", "noise", "encoding"], "int8", "noise raw or drawn"),
        (["conditions", "text", "shape"], [2**40], "rows must be below 2 GiB"),
        (["columns", "x0", "shape"], [None, 8], "fixed shape"),
        (["columns", "x0", "shape"], [0, 8], "a size in a column's shape is 0"),
        (["columns"], {}, "x0 and noise"),
        (["sources"], [], "no source"),
        (["sources", 0, "kind"], "dreamt", "kind"),
        (["sources", 0, "seed"], -1, "seed is -1"),
        (["sources", 0, "prediction_type"], "y", "prediction_type is 'y'"),
        (["sources", 0, "grid", "t"], [1], "one value a step"),
        (["shards", 0, "rows"], "4", "shards.0.rows is '4'; it must be an integer"),
        (["shards", 0], "x", "shards.0 is 'x'; it must hold names and values"),
        (["shards"], "x", "shards is 'x'; it must be a list"),
        (["sources"], "x", "sources is 'x'; it must be a list"),
        (["sources", 0], "x", "sources.0 is 'x'; it must be names and values"),
        (["sources", 0, "kind"], ["generated"], "of kind \\['generated'\\]"),
        (["sources", 0, "teacher"], 1, "sources.0.teacher is 1; it must be a text"),
        (["sources", 0, "guidance"], float("nan"), "guidance is nan; it must be a finite number"),
        (["sources", 0, "grid", "t", 0], "a", "sources.0.grid.t.0 is 'a'; it must be"),
        (["sources", 0, "guidance"], 10**400, "sources.0.guidance is 1000.*; it must be a number"),
        (["sources", 0, "grid", "t", 0], 10**400, "grid.t is 1000.*; it must be a finite number"),
        (["texts_hash"], None, "texts_hash is None; it must be a text"),
        (["shards", 1, "name"], "shards/000000.arrow", "twice"),
    ],
)
def test_what_is_not_known_is_refused(path: list[Any], value: Any, message: str) -> None:
    data = manifest().to_dict()
    data = json.loads(json.dumps(data))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        Manifest.from_json(json.dumps(data))


@pytest.mark.parametrize("files", ["prompts", "shards"])
def test_files_that_are_not_listed_are_refused(files: str) -> None:
    data = manifest().to_dict()
    del data[files]
    with pytest.raises(ValueError, match=f"lacks its {files}"):
        Manifest.from_json(json.dumps(data))


@pytest.mark.parametrize(("place", "name"), [("columns", "noise"), ("conditions", "text")])
def test_a_column_that_does_not_say_its_encoding_is_refused(place: str, name: str) -> None:
    data = json.loads(manifest().to_json())
    del data[place][name]["encoding"]
    with pytest.raises(ValueError, match=f"lacks {place}.{name}.encoding"):
        Manifest.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "name",
    [
        "../shards/0.arrow",
        "shards/../../0.arrow",
        "/shards/0.arrow",
        "shards/.0.arrow",
        "shards/a/0.arrow",
        "shards\\0.arrow",
        "C:/shards/0.arrow",
        "shards/0.arrow\n",
        "0.arrow",
    ],
)
def test_file_names_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="files lie in shards/ or prompts/"):
        File(name, 1, 1, "a")


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", "[" * 100_000, '{"format": NaN}'])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not JSON|another format"):
        Manifest.from_json(text)


def test_other_sources() -> None:
    encoded = Encoded(5, "t", "v", "e", (32, 48), 0, 2, "h", "0.1")
    imported = Imported(3, "nitro", "t", "f", "epsilon", 50, 3.0, "h", "0.1")
    one = manifest(sources=(encoded, imported))
    assert Manifest.from_json(one.to_json()) == one
    assert one.num_samples == 8
    assert (one.generated, one.teachers) == ((), (imported,))
    drawn = {"x0": one.columns["x0"], "noise": replace(one.columns["noise"], encoding="draws")}
    assert manifest(sources=(encoded,), columns=drawn).columns == drawn
    with pytest.raises(ValueError, match="cannot be drawn anew"):
        manifest(sources=(encoded, imported), columns=drawn)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (("int64", (3,), "int8"), "of int64 cannot be encoded as 'int8'"),
        (("bool", (3,), "draws"), "of bool cannot be encoded as 'draws'"),
        (("float16", (), "int8"), r"of shape \(\) cannot be"),
        (("float16", (None,), "int8"), "cannot be encoded as 'int8'"),
        (("float16", (None, 4), "draws"), "length is free"),
    ],
)
def test_encodings_that_do_not_fit(column: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Column(*column)
