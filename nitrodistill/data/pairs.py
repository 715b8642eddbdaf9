"""PairStore: what the teacher made, on disk.

A pair is the noise the teacher really saw and the x0 it made of it, with its prompt:

    x0 = sample(Guided(teacher), plan, noise, condition)

A store is a folder of Arrow files with a versioned manifest (`docs/pair_store.md`). Tensors are raw fp16,
bf16 or fp32 bytes; noise and text conditioning were rounded to them *before* the teacher saw them, so
that what is stored is exact. Text conditioning is kept once a prompt and trimmed to its mask, as it is
or as int8; noise is kept, or drawn anew from its seed. Rows are read by memory map, each with its checksum; there
is no pickle anywhere.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from operator import index
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nitrodistill.data.arrow import ArrowFile, Layout, Table
from nitrodistill.data.codec import drawn, from_buffers
from nitrodistill.data.columns import REPAIR
from nitrodistill.data.manifest import File, Manifest
from nitrodistill.data.remote import Remote, default_cache, is_address
from nitrodistill.data.sources import Encoded, Imported
from nitrodistill.data.text import hash_texts
from nitrodistill.files import hash_file, read_text
from nitrodistill.progress import progress_bar
from nitrodistill.types import Condition, Latents, Pairs, Part

MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False)
class PairStore(Dataset[dict[str, Any]]):
    """A finished pair store, read by random access, also from several threads; build one with `PairStore.open`.

    Attributes:
        path: its folder; of a store elsewhere, the folder of what was fetched.
        manifest: what is in it and how it was made.
        remote: where it is, if it is elsewhere.

    Example:
        >>> store = nd.PairStore.open("pairs")
        >>> store, store.read([2, 0]).x0.shape
        (PairStore('pairs', 4 pairs of 2 prompts, x0 float16 (4, 8, 8)), torch.Size([2, 4, 8, 8]))
    """

    part: ClassVar[Part] = "pairs"

    path: Path
    manifest: Manifest
    remote: Remote | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __reduce__(self) -> tuple[type[PairStore], tuple[Path, Manifest, Remote | None]]:
        """Another process opens the files itself."""
        return type(self), (self.path, self.manifest, self.remote)

    @classmethod
    def open(
        cls, path: str | Path, cache: str | Path | None = None, max_files: int | None = None
    ) -> PairStore:
        """Opens a store. Size and first row of every file are checked here, rows when they are read.

        Of a store elsewhere only the manifest is read here; its files are fetched, and compared with their hashes,
        when a row of them is first needed. Give its `BatchStream` a `window`, so that it needs few at a time.

        Args:
            path: its folder, or an address that fsspec knows (`hf://datasets/user/name`).
            cache: folder for what is fetched; None takes `~/.cache/nitrodistill/pairs`.
            max_files: how many fetched files are kept; None keeps all.

        Raises:
            FileNotFoundError: if there is no store, or a file of it is missing.
            ValueError: if the manifest is of another format or version or broken, or a file has
                another size than it says, or is at another's place.
        """
        remote = None
        if is_address(path):
            remote = Remote(str(path), default_cache() if cache is None else cache, max_files)
        root = Path(path) if remote is None else remote.cache
        file = root / MANIFEST
        try:
            text = read_text(file) if remote is None else remote.text(MANIFEST)
            manifest = Manifest.from_json(text)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise FileNotFoundError(
                f"no pair store at {str(path)!r} (it has no {MANIFEST}); make one with generate, or "
                "run it again with the same settings if it was stopped."
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{str(path)!r} is not a pair store that can be read: {error}"
            ) from error
        store = cls(root, manifest, remote)
        store._check_files()
        return store

    def __len__(self) -> int:
        """How many pairs it holds."""
        return self.manifest.num_samples

    def __repr__(self) -> str:
        x0, prompts = self.manifest.columns["x0"], self.manifest.num_prompts
        where = repr(str(self.path))
        return (
            f"PairStore({where}, {len(self)} pairs of {prompts} prompts, x0 {x0.dtype} {x0.shape})"
        )

    def __getitem__(self, row: int) -> dict[str, Any]:
        """One pair, so that a store is a map-style dataset of torch; `collate_pairs` joins several.

        `read` and `BatchStream` take many at once, which is faster.

        Returns:
            `x0` and `noise` `(C, H, W)`, `prompt_id`, and the conditioning by name without a batch dimension.

        Raises:
            IndexError: if the row does not exist.
            ValueError: if it is damaged.
        """
        pairs = self.read([row])
        row_of = {name: value[0] for name, value in pairs.condition.tensors.items()}
        ids = pairs.condition.prompt_ids
        assert ids is not None
        return {"x0": pairs.x0[0], "noise": pairs.noise[0], "prompt_id": int(ids[0]), **row_of}

    def read(self, rows: Sequence[int], dtype: torch.dtype | None = torch.float32) -> Pairs:
        """Reads pairs.

        Args:
            rows: which, each in 0 ... len - 1, in the order wanted; repeats are allowed.
            dtype: of the floating-point tensors; None leaves them as they are stored.

        Returns:
            x0 and noise `(B, C, H, W)`; the condition holds the prompt ids, and its sequences are
            padded with zeros to the longest of the batch.

        Raises:
            IndexError: if a row does not exist.
            ValueError: if `rows` is empty, or a row is damaged.
        """
        places, buffers, latents = self._read(rows, dtype)
        noise = self._noise(rows, places, [row["noise"] for row in buffers], dtype)
        return Pairs(latents.x0, noise, latents.condition)

    def read_latents(
        self, rows: Sequence[int], dtype: torch.dtype | None = torch.float32
    ) -> Latents:
        """Reads x0 and the condition alone; see `read`."""
        return self._read(rows, dtype)[2]

    def _read(
        self, rows: Sequence[int], dtype: torch.dtype | None
    ) -> tuple[list[tuple[ArrowFile, int]], list[dict[str, Any]], Latents]:
        if not len(rows):
            raise ValueError("read got no rows; it needs at least one.")
        places = [self._pairs.locate(index(row)) for row in rows]
        buffers = [file.tensors(row) for file, row in places]
        ids = [file.number("prompt_id", row) for file, row in places]
        x0 = from_buffers([r["x0"] for r in buffers], self.manifest.columns["x0"], "x0", dtype)
        return places, buffers, Latents(x0, self.condition(ids, dtype))

    def condition(
        self, prompt_ids: Sequence[int], dtype: torch.dtype | None = torch.float32
    ) -> Condition:
        """The stored conditioning of prompts; `prompts[i]` has id i.

        Raises:
            IndexError: if there is no such prompt.
            ValueError: if there are none, or a row is damaged.
        """
        return read_condition(self._prompts, self.manifest, prompt_ids, dtype)

    def pair_bytes(self, row: int) -> dict[str, bytes]:
        """The stored bytes of a pair's tensors, by column.

        Raises:
            IndexError: if there is no such row.
            ValueError: if it is damaged.
        """
        file, place = self._pairs.locate(row)
        return {name: bytes(data) for name, data in file.tensors(place).items()}

    def prompt_bytes(self, prompt_id: int) -> dict[str, bytes]:
        """The stored bytes of a prompt's conditioning, by column (`condition.NAME`).

        Raises:
            IndexError: if there is no such prompt.
            ValueError: if it is damaged.
        """
        file, place = self._prompts.locate(prompt_id)
        return {name: bytes(data) for name, data in file.tensors(place).items()}

    @property
    def bounds(self) -> tuple[int, ...]:
        """The first row of each file of pairs, and the number of all rows."""
        return self._pairs.bounds

    def identity(self) -> str:
        """Hex digest of what decides its bytes."""
        return self.manifest.identity()

    def pair_files(self) -> Iterator[ArrowFile]:
        """The files of the pairs, in order."""
        return self._pairs.files()

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """The different prompts; a sample's prompt id is its prompt's place here.

        Raises:
            ValueError: if a file of the prompt table is damaged.
        """
        texts = tuple(text for file in self._prompts.files() for text in file.texts())
        if hash_texts(texts) != self.manifest.texts_hash:
            raise ValueError(f"the prompt texts in {str(self.path)!r} are damaged; {REPAIR}")
        return texts

    def check_teacher(self, fingerprint: str) -> None:
        """Checks that the pairs were made by the teacher with these weights.

        Args:
            fingerprint: of the denoiser's weights, `models.pipeline.fingerprint(module)`.

        Raises:
            ValueError: if another teacher made them, or none: if they are encoded images.
        """
        for source in self.manifest.sources:
            if isinstance(source, Encoded):
                raise ValueError(
                    f"{str(self.path)!r} holds encoded images, which no teacher made: their noise belongs to no "
                    "image. Give it as the recipe's `real`, to a method that reads it, or generate pairs."
                )
            if source.fingerprint != fingerprint:
                raise ValueError(
                    f"the pairs in {str(self.path)!r} were made by teacher {source.teacher!r} with "
                    f"weights {source.fingerprint[:12]}, and this teacher's are {fingerprint[:12]}; "
                    "use that teacher, or generate pairs with this one. (A fingerprint now counts the config and "
                    "adapters too: a store from before that must be made anew.)"
                )

    @property
    def paired(self) -> bool:
        """Whether each noise is the one that a teacher made the sample from; not so for encoded images."""
        return not any(isinstance(source, Encoded) for source in self.manifest.sources)

    def verify(self, progress: bool = False) -> None:
        """Reads the whole store: every file's hash, every row's checksum, the texts, and drawn noise.

        Args:
            progress: shows a bar.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file or a row is damaged, or a tensor is not finite; the message names it.
        """
        self._check_files()
        entries = (*self.manifest.prompts, *self.manifest.shards)
        size = sum(entry.bytes for entry in entries)
        drawn_noise = self.manifest.columns["noise"].encoding == "draws"
        with progress_bar(
            total=size, unit="B", unit_scale=True, desc="verify", show=progress
        ) as bar:
            for entry in entries:
                self.verify_file(entry)
                bar.update(entry.bytes)
        for file in self._prompts.files():
            for row in range(len(file)):
                _check_finite(file, row)
        first = 0
        for file in self._pairs.files():
            for row in range(len(file)):
                _check_finite(file, row)
                if drawn_noise:
                    self.read([first + row])
                self._prompts.file_of(file.number("prompt_id", row))  # there is such a prompt
            first += len(file)
        len(self.prompts)

    def file_of(self, kind: str, row: int) -> File:
        """What the manifest says of the file that holds a row.

        Args:
            kind: "shards" or "prompts".
            row: of the pairs, or of the prompt table.
        """
        table, entries = (
            (self._pairs, self.manifest.shards)
            if kind == "shards"
            else (self._prompts, self.manifest.prompts)
        )
        return entries[table.file_of(row)]

    def verify_file(self, entry: File) -> None:
        """Compares a file with the hash that the manifest has of it.

        Raises:
            FileNotFoundError: if it is missing.
            ValueError: if it differs.
        """
        path = self._path_of(entry.name)
        if hash_file(path) != entry.blake2b:
            raise ValueError(f"{path} is damaged: its hash is not the manifest's; {REPAIR}")

    def _noise(
        self,
        rows: Sequence[int],
        places: Sequence[tuple[ArrowFile, int]],
        stored: Sequence[Any],
        dtype: torch.dtype | None,
    ) -> Tensor:
        column = self.manifest.columns["noise"]
        if column.encoding != "draws":
            return from_buffers(stored, column, "noise", dtype)
        indices = [file.number("index", row) for file, row in places]
        return drawn(stored, column, [self._seed(int(row)) for row in rows], indices).to(
            dtype=dtype
        )

    def _seed(self, row: int) -> int:
        """The seed of the source that made a row."""
        source = self.manifest.sources[bisect_right(self._source_ends, row)]
        if isinstance(source, Imported):
            raise ValueError("imported samples have no seed.")  # the manifest refuses it before
        return source.seed

    @cached_property
    def _source_ends(self) -> tuple[int, ...]:
        return tuple(accumulate(source.num_samples for source in self.manifest.sources))

    def _indices(self, rows: np.ndarray) -> np.ndarray:
        """The number that each row had when it was made: sources count from 0, and lie one after another."""
        ends = np.array(self._source_ends)
        starts = np.concatenate([[0], ends[:-1]])
        return rows - starts[np.searchsorted(ends, rows, side="right")]

    @cached_property
    def _pairs(self) -> Table:
        return self._table("shards", self.manifest.shards, self._indices)

    @cached_property
    def _prompts(self) -> Table:
        return self._table("prompts", self.manifest.prompts, lambda rows: rows)

    def _table(
        self, kind: str, files: Iterable[File], keys: Callable[[np.ndarray], np.ndarray]
    ) -> Table:
        layout = Layout(self.manifest, kind)
        rows = [(file.name, file.rows) for file in files]
        most = None if self.remote is None else self.remote.max_files
        return Table(self._path_of, layout, rows, keys, most or 512, self._lock)

    def _path_of(self, name: str) -> Path:
        return self.path / name if self.remote is None else self.remote.fetch(self._by_name[name])

    @cached_property
    def _by_name(self) -> dict[str, File]:
        return {file.name: file for file in (*self.manifest.prompts, *self.manifest.shards)}

    def _check_files(self) -> None:
        rows = sum(file.rows for file in self.manifest.shards)
        if rows != len(self):
            raise ValueError(
                f"{str(self.path)!r} is not a pair store that can be read: its shards hold {rows} rows "
                f"and its sources made {len(self)}."
            )
        if self.remote is not None:
            return  # checked when they are fetched
        for entry in (*self.manifest.prompts, *self.manifest.shards):
            path = self.path / entry.name
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                raise FileNotFoundError(f"{path} is missing; {REPAIR}")
            if size != entry.bytes:
                raise ValueError(f"{path} is torn: {size} bytes and not {entry.bytes}; {REPAIR}")
        for table in (self._prompts, self._pairs):
            table.check_order()


def read_condition(
    table: Table, manifest: Manifest, prompt_ids: Sequence[int], dtype: torch.dtype | None
) -> Condition:
    """The conditioning of prompts in a prompt table; see `PairStore.condition`."""
    if not len(prompt_ids):
        raise ValueError("condition got no prompt ids; it needs at least one.")
    rows = []
    for prompt_id in prompt_ids:
        file, row = table.locate(index(prompt_id))
        rows.append(file.tensors(row))
    tensors: dict[str, Tensor] = {}
    for name, column in manifest.conditions.items():
        key = f"condition.{name}"
        tensors[name] = from_buffers([row[key] for row in rows], column, name, dtype)
    return Condition(tensors, torch.tensor(prompt_ids))


def _check_finite(file: ArrowFile, row: int) -> None:
    """Raises ValueError if a tensor of a row is not finite, or the row is damaged."""
    for name, buffer in file.tensors(row).items():
        value = from_buffers([buffer], file.layout.tensors[name], name)
        if not value.isfinite().all():
            raise ValueError(
                f"{file.path} holds {name} that is not finite at row {row}; make the store again with another "
                "dtype (bfloat16 or float32), or without that sample."
            )
