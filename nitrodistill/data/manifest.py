"""The manifest of a pair store: what is in it, how it was made, and where.

`manifest.json` is written last, so a folder that has one is complete. Its layout is described in
`docs/pair_store.md`; a reader refuses what it does not know (a newer version, an unknown encoding, an
unknown key), because each of them may change what the bytes mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from nitrodistill.data.columns import Column, check_integer
from nitrodistill.data.sources import Encoded, Generated, Imported, Source
from nitrodistill.files import blake2
from nitrodistill.settings import build

FORMAT = "nitrodistill.pairs"
VERSION = 3

_FILE_NAME = re.compile(r"(shards|prompts)/[0-9A-Za-z][0-9A-Za-z_.-]*\.arrow")
_RECORDS = ("teacher", "code_version")
"""What a source records for people; it does not decide the bytes of a store."""


@dataclass(frozen=True)
class File:
    """One Arrow file of the store.

    Attributes:
        name: relative to the store, `shards/NAME.arrow` or `prompts/NAME.arrow`.
        rows: how many it holds.
        bytes: its size.
        blake2b: hex digest (16 bytes) of its content.

    Example:
        >>> store.manifest.shards[0].name
        'shards/000000.arrow'
    """

    name: str
    rows: int
    bytes: int
    blake2b: str

    def __post_init__(self) -> None:
        if not _FILE_NAME.fullmatch(self.name):
            raise ValueError(
                f"the manifest names a file {self.name!r}; files lie in shards/ or prompts/ of the "
                "store itself and end in .arrow."
            )
        check_integer(self.rows, f"rows of {self.name}", 1)
        check_integer(self.bytes, f"bytes of {self.name}", 1)


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

    Example:
        >>> store.manifest.num_samples, list(store.manifest.conditions)
        (4, ['encoder_hidden_states'])
    """

    shard_size: int
    columns: Mapping[str, Column]
    conditions: Mapping[str, Column]
    texts_hash: str
    sources: tuple[Source, ...]
    prompts: tuple[File, ...] = ()
    shards: tuple[File, ...] = ()

    def __post_init__(self) -> None:
        check_integer(self.shard_size, "shard_size", 1)
        if set(self.columns) != {"x0", "noise"}:
            raise ValueError(f"the columns of a pair are x0 and noise, got {sorted(self.columns)}.")
        for name in ("x0", "noise"):
            column = self.columns[name]
            if None in column.shape or not column.torch_dtype.is_floating_point:
                raise ValueError(f"column {name} must have a fixed shape and a floating dtype.")
        drawn = self.columns["noise"].encoding == "draws"
        if self.columns["x0"].encoding != "raw" or self.columns["noise"].encoding == "int8":
            raise ValueError("x0 must be raw, and noise raw or drawn.")
        if drawn and any(isinstance(source, Imported) for source in self.sources):
            raise ValueError("noise that was imported cannot be drawn anew; it must be raw.")
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

    @property
    def generated(self) -> tuple[Generated, ...]:
        """The sources that `generate` made."""
        return tuple(source for source in self.sources if isinstance(source, Generated))

    @property
    def teachers(self) -> tuple[Generated | Imported, ...]:
        """The sources whose samples a teacher made from their noise."""
        return tuple(source for source in self.sources if not isinstance(source, Encoded))

    def settings(self) -> dict[str, Any]:
        """What decides the bytes of the store, under dotted names; equal in a draft and when done.

        The teacher's name and the code's version are records and not part of it.
        """
        data = self.to_dict()
        for source in data["sources"]:
            for record in _RECORDS:
                del source[record]
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
        return blake2(json.dumps(self.settings(), sort_keys=True)).hex()

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        sources = [{"kind": s.kind, **asdict(s)} for s in self.sources]
        for source in sources:  # stores of before there was one stay what they were
            if source.get("negative_prompt", "") is None:
                del source["negative_prompt"]
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
        _check_complete(data)
        num_samples = data.pop("num_samples", None)
        if isinstance(data.get("sources"), list):
            data["sources"] = [_source(s, f"sources.{i}") for i, s in enumerate(data["sources"])]
        manifest = build(cls, data)
        if num_samples != manifest.num_samples:
            raise ValueError(
                f"it says {num_samples!r:.40} samples and its sources made {manifest.num_samples}."
            )
        return manifest


def _check_complete(data: Mapping[str, Any]) -> None:
    """Refuses a file without what is always written, though the classes have a default for it."""
    for files in ("prompts", "shards"):
        if files not in data:
            raise ValueError(f"it lacks its {files}.")
    for place in ("columns", "conditions"):
        columns = data.get(place)
        for name, column in columns.items() if isinstance(columns, dict) else ():
            if isinstance(column, dict) and "encoding" not in column:
                raise ValueError(f"it lacks {place}.{name}.encoding.")


def _source(data: object, where: str) -> object:
    """The source of the class that `kind` says; what holds no names and values is refused with the manifest."""
    if not isinstance(data, dict):
        return data
    values = dict(data)
    kind = values.pop("kind", None)
    found = next((source for source in get_args(Source) if source.kind == kind), None)
    if found is None:
        raise ValueError(
            f"a source is of kind {kind!r:.40}, which this version does not know: update nitrodistill."
        )
    return build(found, values, where)


def _flatten(value: object, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list):
        children = [(str(i), child) for i, child in enumerate(value)]
    else:
        return {prefix: list(value) if isinstance(value, tuple) else value}
    dot = f"{prefix}." if prefix else ""
    return {k: v for name, child in children for k, v in _flatten(child, dot + name).items()}
