"""The manifest of a pair store: what is in it, how it was made, and where.

`manifest.json` is written last, so a folder that has one is complete. Its layout is described in
`docs/pair_store.md`; a reader refuses what it does not know (a newer version, an unknown encoding, an
unknown key), because each of them may change what the bytes mean.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch

from nitrodistill.types import check_prediction_type

__all__ = ["DTYPES", "FORMAT", "VERSION", "Column", "File", "Generated", "Grid", "Manifest"]

FORMAT = "nitrodistill.pairs"
VERSION = 1

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
"""The element types a column may have, by torch's names."""

_FILE_NAME = re.compile(r"(shards|prompts)/[0-9A-Za-z][0-9A-Za-z_.-]*\.arrow")


@dataclass(frozen=True)
class Column:
    """How one tensor of a row is stored.

    Attributes:
        dtype: element type, a key of `DTYPES`.
        shape: of one row; the first entry may be None, a token length that differs from row to row.
        encoding: "raw": the elements' little-endian bytes in C order.
    """

    dtype: str
    shape: tuple[int | None, ...]
    encoding: str = "raw"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(
                f"a column's dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}."
            )
        if self.encoding != "raw":
            raise ValueError(
                f"a column's encoding is {self.encoding!r}; this version reads 'raw' only: update "
                "nitrodistill."
            )
        sizes = self.shape[1:] if self.shape and self.shape[0] is None else self.shape
        for size in sizes:
            _check_integer(size, "a size in a column's shape", 1)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return DTYPES[self.dtype]

    @property
    def stride_bytes(self) -> int:
        """Bytes of a row of fixed shape, or of one token of a row whose length is free."""
        return self.torch_dtype.itemsize * math.prod(n for n in self.shape if n is not None)


@dataclass(frozen=True)
class File:
    """One Arrow file of the store.

    Attributes:
        name: relative to the store, `shards/NAME.arrow` or `prompts/NAME.arrow`.
        rows: how many it holds.
        bytes: its size.
        blake2b: hex digest (16 bytes) of its content.
    """

    name: str
    rows: int
    bytes: int
    blake2b: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _FILE_NAME.fullmatch(self.name):
            raise ValueError(
                f"the manifest names a file {self.name!r}; files lie in shards/ or prompts/ of the "
                "store itself and end in .arrow."
            )
        _check_integer(self.rows, f"rows of {self.name}", 1)
        _check_integer(self.bytes, f"bytes of {self.name}", 1)
        _check_text(self.blake2b, f"blake2b of {self.name}")


@dataclass(frozen=True)
class Grid:
    """The steps that the teacher took, noisiest first: what it was told and its scales there.

    Attributes:
        schedule: class of the NoiseSchedule.
        t: timesteps in the network's unit.
        alpha: signal scale at each.
        sigma: noise scale at each.
    """

    schedule: str
    t: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_text(self.schedule, "schedule")
        for name in ("t", "alpha", "sigma"):
            for value in getattr(self, name):
                _check_number(value, f"grid.{name}")
        if not len(self.t) == len(self.alpha) == len(self.sigma):
            raise ValueError("the grid's t, alpha and sigma must have one value a step.")


@dataclass(frozen=True)
class Generated:
    """How `generate` made samples: with which teacher, from which prompts and seed.

    Attributes:
        num_samples: how many.
        teacher: the name it was given, for people.
        fingerprint: of the denoiser's weights, for `PairStore.check_teacher`.
        prediction_type: what it predicts.
        sampler: transition of the StepPlan; "ode" is DDIM (eta 0), or Euler for rectified flow and EDM.
        steps: of the sampler.
        guidance: scale of classifier-free guidance; 1 is none.
        grid: timesteps and scales of the steps.
        seed: noise of sample i is `Draws(seed, 0, [i]).normal("noise", shape)`, rounded.
        batch_size: how many the teacher saw at once.
        num_prompts: length of the prompt list; sample i has prompt `i % num_prompts`.
        prompts_hash: of that list.
        code_version: nitrodistill's.
    """

    kind: ClassVar[str] = "generated"

    num_samples: int
    teacher: str
    fingerprint: str
    prediction_type: str
    sampler: str
    steps: int
    guidance: float
    grid: Grid
    seed: int
    batch_size: int
    num_prompts: int
    prompts_hash: str
    code_version: str

    def __post_init__(self) -> None:
        for name in ("teacher", "fingerprint", "sampler", "prompts_hash", "code_version"):
            _check_text(getattr(self, name), name)
        for name in ("num_samples", "steps", "batch_size", "num_prompts"):
            _check_integer(getattr(self, name), name, 1)
        _check_integer(self.seed, "seed", 0)
        _check_number(self.guidance, "guidance")
        check_prediction_type(self.prediction_type)


@dataclass(frozen=True)
class Manifest:
    """What a store holds.

    Attributes:
        shard_size: rows of each shard but the last, as it was made.
        columns: name -> layout of the tensors of a pair; `x0` and `noise`.
        conditions: name -> layout of the tensors of a prompt, under the names that `Condition` has.
        texts_hash: of the prompt table's texts.
        sources: how the samples were made, one entry for each run that made some.
        prompts: the files of the prompt table, in order.
        shards: the files of the pairs, in order.
    """

    shard_size: int
    columns: Mapping[str, Column]
    conditions: Mapping[str, Column]
    texts_hash: str
    sources: tuple[Generated, ...]
    prompts: tuple[File, ...] = ()
    shards: tuple[File, ...] = ()

    def __post_init__(self) -> None:
        _check_integer(self.shard_size, "shard_size", 1)
        _check_text(self.texts_hash, "texts_hash")
        if set(self.columns) != {"x0", "noise"}:
            raise ValueError(f"the columns of a pair are x0 and noise, got {sorted(self.columns)}.")
        for name in ("x0", "noise"):
            column = self.columns[name]
            if None in column.shape or not column.torch_dtype.is_floating_point:
                raise ValueError(f"column {name} must have a fixed shape and a floating dtype.")
        names = [file.name for file in (*self.prompts, *self.shards)]
        if len(set(names)) != len(names):
            raise ValueError("the manifest names a file twice.")
        if not self.sources:
            raise ValueError("the manifest names no source of its samples.")

    @property
    def num_samples(self) -> int:
        """How many pairs the store holds."""
        return sum(source.num_samples for source in self.sources)

    @property
    def num_prompts(self) -> int:
        """How many different prompts the store holds."""
        return sum(file.rows for file in self.prompts)

    def settings(self) -> dict[str, Any]:
        """What decides the bytes of the store, under dotted names; equal in a draft and when done.

        The teacher's name and the code's version are records and not part of it.
        """
        data = self.to_dict()
        for source in data["sources"]:
            del source["teacher"], source["code_version"]
        for files in ("num_samples", "prompts", "shards"):
            del data[files]
        return _flatten(data)

    def differences(self, other: Manifest) -> list[str]:
        """What differs in the settings, one phrase each: "guidance is 3.0 there and 4.0 here"."""
        there, here = self.settings(), other.settings()
        keys = [key for key in here | there if here.get(key) != there.get(key)]
        plain = [key for key in keys if not isinstance(here.get(key), list)]
        return [
            f"{key.removeprefix('sources.0.')} is {there.get(key)!r:.60} there and "
            f"{here.get(key)!r:.60} here"
            for key in plain or keys  # lists, such as the grid, follow from plain settings
        ]

    def identity(self) -> str:
        """Hex digest of `settings()`; each Arrow file carries it, so that files cannot be mixed up."""
        text = json.dumps(self.settings(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        sources = [{"kind": s.kind, **asdict(s)} for s in self.sources]
        return {
            "format": FORMAT,
            "version": VERSION,
            "num_samples": self.num_samples,
            "shard_size": self.shard_size,
            "columns": {name: asdict(c) for name, c in self.columns.items()},
            "conditions": {name: asdict(c) for name, c in self.conditions.items()},
            "texts_hash": self.texts_hash,
            "sources": sources,
            "prompts": [asdict(f) for f in self.prompts],
            "shards": [asdict(f) for f in self.shards],
        }

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads the text of a `manifest.json`.

        Raises:
            ValueError: if it is not JSON, another format, an unknown version, or breaks a rule.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not JSON ({str(error)[:80]}).") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"it is of another format: its 'format' is not {FORMAT!r}.")
        if data.get("version") != VERSION:
            raise ValueError(
                f"its version is {data.get('version')!r:.40} and this nitrodistill reads {VERSION}: "
                "update nitrodistill, or generate the pairs again."
            )
        data = {key: value for key, value in data.items() if key not in ("format", "version")}
        num_samples = data.pop("num_samples", None)
        for key in ("columns", "conditions"):
            data[key] = {n: _column(c) for n, c in _mapping(data.get(key), key).items()}
        data["sources"] = tuple(_source(s) for s in _sequence(data.get("sources"), "sources"))
        for key in ("prompts", "shards"):
            data[key] = tuple(_record(File, f, key) for f in _sequence(data.get(key), key))
        manifest = _record(cls, data, "the manifest")
        if num_samples != manifest.num_samples:
            raise ValueError(
                f"it says {num_samples!r:.40} samples and its sources made {manifest.num_samples}."
            )
        return manifest


def _record(cls: Any, data: object, where: str) -> Any:
    values = _mapping(data, where)
    known = {field.name for field in fields(cls)}
    for key in sorted(known ^ set(values)):
        state = "lacks" if key in known else "has an unknown key"
        raise ValueError(f"{where} {state} {key!r:.40}.")
    return cls(**values)


def _column(data: object) -> Column:
    values = _mapping(data, "a column")
    return _record(
        Column, values | {"shape": tuple(_sequence(values.get("shape"), "shape"))}, "a column"
    )


def _source(data: object) -> Generated:
    values = _mapping(data, "a source")
    if values.pop("kind", None) != Generated.kind:
        raise ValueError("a source is of a kind that this version does not know.")
    grid = _mapping(values.get("grid"), "grid")
    for key in ("t", "alpha", "sigma"):
        grid[key] = tuple(_sequence(grid.get(key), f"grid.{key}"))
    return _record(Generated, values | {"grid": _record(Grid, grid, "grid")}, "a source")


def _mapping(data: object, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object, got {type(data).__name__}.")
    return {str(key): value for key, value in data.items()}


def _sequence(data: object, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError(f"{where} must be a list, got {type(data).__name__}.")
    return data


def _check_integer(value: object, name: str, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value < 2**63:
        raise ValueError(f"{name} is {value!r:.40}; it must be an integer of at least {minimum}.")


def _check_number(value: object, name: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r:.40}; it must be a finite number.")


def _check_text(value: object, name: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.40}; it must be a text.")


def _flatten(value: object, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list):
        children = [(str(i), child) for i, child in enumerate(value)]
    else:
        return {prefix: list(value) if isinstance(value, tuple) else value}
    dot = f"{prefix}." if prefix else ""
    return {k: v for name, child in children for k, v in _flatten(child, dot + name).items()}
