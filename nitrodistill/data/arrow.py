"""The Arrow files of a pair store: rows of raw tensors with a checksum each, memory-mapped.

A file is an Arrow IPC stream, which `datasets.Dataset.from_file` reads as well. Its schema carries
the identity of its store; every row carries the CRC-32 of its numbers and tensors, so that a damaged
row is an error where it is read, and the rest of the file is never touched.
"""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nitrodistill.data.codec import to_bytes
from nitrodistill.data.columns import REPAIR, Column
from nitrodistill.data.manifest import Manifest
from nitrodistill.files import atomic

Rows = Mapping[str, Sequence[Any]]
"""Column name -> one value a row: an int, a text, a tensor of the row's shape, or its encoded bytes."""


class Layout:
    """The columns of one kind of file.

    Args:
        manifest: of the store.
        kind: "shards" (index, prompt_id, x0, noise) or "prompts" (prompt_id, text, the conditions).
    """

    def __init__(self, manifest: Manifest, kind: str) -> None:
        pairs = kind == "shards"
        texts = () if pairs else ("text",)
        self.numbers: tuple[str, ...] = ("index", "prompt_id") if pairs else ("prompt_id",)
        self.tensors: dict[str, Column] = (
            dict(manifest.columns)
            if pairs
            else {f"condition.{name}": column for name, column in manifest.conditions.items()}
        )
        columns = [(name, pa.int64()) for name in self.numbers]
        columns += [(name, pa.string()) for name in texts]
        columns += [(name, pa.binary()) for name in self.tensors]
        columns += [("crc32", pa.uint32())]
        identity = {"nitrodistill.pairs": manifest.identity(), "nitrodistill.kind": kind}
        self.schema: Any = pa.schema(
            [pa.field(name, type_, nullable=False) for name, type_ in columns], metadata=identity
        )

    def crc32(self, numbers: Sequence[int], tensors: Sequence[Any]) -> int:
        """Checksum of a row: its int64 numbers, then the bytes of its tensors."""
        value = zlib.crc32(np.array(numbers, "<i8").tobytes())
        for tensor in tensors:
            value = zlib.crc32(tensor, value)
        return value

    def record_batch(self, rows: Rows) -> Any:
        """Rows as an Arrow record batch; tensors must have their column's dtype and shape."""
        values = dict(rows)
        for name, column in self.tensors.items():
            values[name] = [to_bytes(tensor, column, name) for tensor in rows[name]]
        numbers = list(zip(*(values[name] for name in self.numbers), strict=True))
        columns = [values[name] for name in self.tensors]  # none where there are no conditions
        tensors = zip(*columns, strict=True) if columns else [()] * len(numbers)
        values["crc32"] = [self.crc32(n, t) for n, t in zip(numbers, tensors, strict=True)]
        return pa.record_batch([values[name] for name in self.schema.names], schema=self.schema)


class _Binary:
    """The rows of a binary column; reading one makes no Arrow object, which would take longer than its use."""

    def __init__(self, column: Any) -> None:
        self._chunks: list[tuple[np.ndarray, memoryview]] = []
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        for chunk in chunks:
            _, offsets, data = chunk.buffers()
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            self._chunks.append((ends, memoryview(data or b"")))
        self._bounds = [0, *accumulate(map(len, chunks))]

    def __getitem__(self, row: int) -> memoryview:
        k = bisect_right(self._bounds, row) - 1
        ends, data = self._chunks[k]
        place = row - self._bounds[k]
        return data[ends[place] : ends[place + 1]]


class ArrowFile:
    """One memory-mapped file; rows are read on demand.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is torn, has other columns, or belongs to another store.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path: Path = path
        self.layout: Layout = layout
        table = _read(path, layout, lambda reader: reader.read_all())
        columns = dict(zip(table.column_names, table.columns, strict=True))
        self._texts = columns.get("text")
        self._numbers = {n: columns[n].to_numpy() for n in (*layout.numbers, "crc32")}
        self._tensors = {n: _Binary(columns[n]) for n in layout.tensors}

    def __len__(self) -> int:
        return len(self._numbers["crc32"])

    def number(self, name: str, row: int) -> int:
        """An integer of a row."""
        return int(self._numbers[name][row])

    def numbers(self, name: str) -> np.ndarray:
        """An integer of every row, int64."""
        return self._numbers[name]

    def texts(self) -> list[str]:
        """The texts of all rows."""
        return [] if self._texts is None else self._texts.to_pylist()

    def tensors(self, row: int) -> dict[str, Any]:
        """Column name -> buffer of a row's tensor, not copied.

        Raises:
            ValueError: if the row's checksum is not that of its content.
        """
        buffers = {name: column[row] for name, column in self._tensors.items()}
        numbers = [self.number(name, row) for name in self.layout.numbers]
        if self.layout.crc32(numbers, list(buffers.values())) != self.number("crc32", row):
            raise ValueError(f"{self.path} is damaged at row {row}; {REPAIR}")
        return buffers

    def check_keys(self, keys: Sequence[int] | np.ndarray) -> None:
        """Compares the first numbers of the rows.

        Raises:
            ValueError: if the file holds other rows.
        """
        if not np.array_equal(self._numbers[self.layout.numbers[0]], np.asarray(keys)):
            raise ValueError(
                f"{self.path} does not hold the rows {min(keys)} to {max(keys)}; {REPAIR}"
            )

    def check(self, keys: Sequence[int] | np.ndarray) -> None:
        """Reads everything: the first numbers of the rows, and every checksum.

        Raises:
            ValueError: if a row is missing or damaged.
        """
        self.check_keys(keys)
        for row in range(len(self)):
            self.tensors(row)


class Table:
    """The files of one kind as one sequence of rows; files are opened when first needed.

    The most recently used files stay open, so that memory does not grow with the size of the store. Threads may
    read at once.

    Args:
        path_of: where the file of that name is; may fetch it first.
        layout: the columns.
        files: name and number of rows of each file, in order.
        keys: the first numbers of rows, `(N,)`; by default those of the rows themselves.
        max_open: how many files stay open.
        lock: held while a file is fetched and opened; tables that share what `path_of` fetches into share it.

    Attributes:
        bounds: the first row of each file, and the number of all rows.
    """

    def __init__(
        self,
        path_of: Callable[[str], Path],
        layout: Layout,
        files: Sequence[tuple[str, int]],
        keys: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
        max_open: int = 512,
        lock: threading.Lock | None = None,
    ) -> None:
        self._path_of = path_of
        self._layout = layout
        self._files = tuple(files)
        self._keys = keys
        self.bounds: tuple[int, ...] = tuple(accumulate((rows for _, rows in files), initial=0))
        self._max_open = max_open
        self._open: OrderedDict[int, ArrowFile] = OrderedDict()
        self._lock = lock or threading.Lock()

    def __len__(self) -> int:
        return self.bounds[-1]

    def files(self) -> Iterator[ArrowFile]:
        """All files, in order."""
        return (self._file(k) for k in range(len(self._files)))

    def locate(self, row: int) -> tuple[ArrowFile, int]:
        """The file of row `row`, and the row's place in it.

        Raises:
            IndexError: if there is no such row.
        """
        k = self.file_of(row)
        return self._file(k), row - self.bounds[k]

    def file_of(self, row: int) -> int:
        """The number of the file that holds row `row`.

        Raises:
            IndexError: if there is no such row.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}; rows run from 0 to {len(self) - 1}.")
        return bisect_right(self.bounds, row) - 1

    def close(self) -> None:
        """Forgets the open files: what has been replaced since is read anew."""
        with self._lock:
            self._open.clear()

    def check_order(self) -> None:
        """Reads the first number in each file, which is quick: is each the file that belongs to its place?

        Raises:
            ValueError: if one is not, or cannot be read.
        """
        for k, (name, _) in enumerate(self._files):
            path = self._path_of(name)
            first = _read(path, self._layout, _first_batch).column(self._layout.numbers[0])
            found, expected = first[:1].to_pylist(), int(self._keys_of(k)[0])
            if found != [expected]:
                raise ValueError(
                    f"{path} begins with row {found} and not {expected}: it is another file's copy, or the "
                    f"manifest lists it at another's place; {REPAIR}"
                )

    def _keys_of(self, k: int) -> np.ndarray:
        return self._keys(np.arange(self.bounds[k], self.bounds[k + 1]))

    def _file(self, k: int) -> ArrowFile:
        with self._lock:
            if k in self._open:
                self._open.move_to_end(k)
                return self._open[k]
            name, rows = self._files[k]
            file = ArrowFile(self._path_of(name), self._layout)
            if len(file) != rows:
                raise ValueError(f"{file.path} has {len(file)} rows and not {rows}; {REPAIR}")
            file.check_keys(self._keys_of(k))
            self._open[k] = file
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)
            return file


def _read(path: Path, layout: Layout, read: Callable[[Any], Any]) -> Any:
    """An Arrow table of a file, or of a part of it: valid, and with the columns of the layout."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {REPAIR}")
    try:
        # Closing the file leaves the mapping: a store of many shards holds no descriptors.
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            table = read(reader)
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError, StopIteration) as error:
        raise ValueError(f"{path} is torn or not Arrow; {REPAIR}") from error
    if not table.schema.equals(layout.schema, check_metadata=True):
        raise ValueError(f"{path} belongs to another store; {REPAIR}")
    if any(column.null_count for column in table.columns):
        raise ValueError(f"{path} has empty fields; {REPAIR}")
    return table


def _first_batch(reader: Any) -> Any:
    return pa.Table.from_batches([reader.read_next_batch()])


def write_rows(path: Path, layout: Layout, batches: Iterator[Rows]) -> None:
    """Writes a file, a record batch for each element of `batches`; it appears when it is complete."""
    with (
        atomic(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, layout.schema) as out,
    ):
        for rows in batches:
            out.write_batch(layout.record_batch(rows))
