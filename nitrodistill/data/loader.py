"""BatchStream: the training stream, pure in its index.

Sample n of the stream is row `order_e[n mod N]` of the N rows, in epoch `e = n div N`, where `order_e` is a
permutation drawn from (seed, stage, part, e) alone. Micro-batch i holds samples `i B ... (i + 1) B - 1`. Nothing
is remembered from one batch to the next, so resuming is one integer, and any worker can take any part of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from operator import index
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch

from nitrodistill.checks import check_floating, check_kind, check_whole
from nitrodistill.data.latents import LatentStore
from nitrodistill.data.pairs import PairStore
from nitrodistill.files import blake2
from nitrodistill.types import Batch, Condition, Latents, Pairs, Part


class DictRows(Protocol):
    """A sequence of dicts: a list, or a torch or `datasets` Dataset.

    Example:
        >>> stream = nd.BatchStream([{"x0": x0[0], "noise": noise[0]}], seed=0, batch_size=1)
        >>> stream(0).pairs.x0.shape
        torch.Size([1, 4, 8, 8])
    """

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def __getitem__(self, row: int, /) -> Mapping[str, Any]:
        """The row's values by name."""
        ...


class Source(Protocol):
    """What a stream reads: a PairStore, a LatentStore, Prompts, or RowPairs.

    Attributes:
        part: which part of a Batch it is.
    """

    part: ClassVar[Part]

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def read(self, rows: Sequence[int]) -> Pairs | Latents | Condition:
        """The rows, in that order."""
        ...


class RowPairs:
    """Pairs from any sequence of dicts.

    Args:
        rows: each with tensors `x0` and `noise` `(C, H, W)`, optionally an int `prompt_id`, and the
            sample's conditioning without a batch dimension under the names that `Condition` has.

    Example:
        >>> rows = [{"x0": x0[0], "noise": noise[0]}, {"x0": x0[1], "noise": noise[1]}]
        >>> nd.data.RowPairs(rows).read([1]).x0.shape
        torch.Size([1, 4, 8, 8])
    """

    part: ClassVar[Part] = "pairs"

    def __init__(self, rows: DictRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"RowPairs({len(self)} rows)"

    def read(self, rows: Sequence[int]) -> Pairs:
        """Reads pairs; sequences are padded with zeros to the longest.

        Raises:
            ValueError: if a row lacks `x0` or `noise`.
        """
        if any(not 0 <= row < len(self) for row in rows):
            raise IndexError(f"rows are {list(rows)!r:.60}; they must be in 0 ... {len(self) - 1}.")
        read = [self._rows[row] for row in rows]
        for row, data in zip(rows, read, strict=True):
            if "x0" not in data or "noise" not in data:
                raise ValueError(f"row {row} holds {sorted(data)}; a pair needs x0 and noise.")
        conditions = [_condition(data) for data in read]
        x0, noise = (torch.stack([torch.as_tensor(d[k]) for d in read]) for k in ("x0", "noise"))
        for name, value in (("x0", x0), ("noise", noise)):
            check_floating(name, value)
        if x0.shape != noise.shape:
            raise ValueError(
                f"x0 is {tuple(x0.shape)}, noise {tuple(noise.shape)}; make them equal."
            )
        return Pairs(x0, noise, Condition.cat(conditions))


def collate_pairs(rows: Sequence[Mapping[str, Any]]) -> Pairs:
    """Joins rows, as `PairStore` has them by number: the `collate_fn` of a torch DataLoader.

    Args:
        rows: see `RowPairs`; sequences are padded with zeros to the longest.

    Example:
        >>> import torch
        >>> x0, noise = torch.zeros(4, 8, 8), torch.ones(4, 8, 8)
        >>> rows = [{"x0": x0, "noise": noise, "text": torch.ones(n, 2)} for n in (3, 5)]
        >>> collate_pairs(rows).condition
        Condition(tensors={text: float32 (2, 5, 2)})
    """
    return RowPairs(rows).read(range(len(rows)))


class BatchStream:
    """The micro-batches of a training run, each a function of its number.

    Args:
        source: a `PairStore`, `LatentStore` or `Prompts`, or any sequence of dicts as `RowPairs` takes them.
        seed: of the order.
        batch_size: of the global micro-batch; may exceed the number of rows.
        rank: number of this process.
        world_size: how many processes share a micro-batch, in contiguous parts.
        window: mix the rows of so many files at a time, files in a random order; None mixes all rows. For a
            store that is elsewhere or on a disk that seeks slowly. Still a function of (seed, epoch).
        stage: number of the stage in its recipe; each has orders of its own.

    Raises:
        ValueError: if there are no rows, the sizes do not fit, or a window is given for what has no files.

    Example:
        >>> import torch
        >>> rows = [{"x0": torch.full((1, 2, 2), float(i)), "noise": torch.zeros(1, 2, 2)} for i in range(3)]
        >>> stream = BatchStream(rows, seed=0, batch_size=3)
        >>> sorted(stream(7).pairs.x0[:, 0, 0, 0].tolist()), stream(7).index.tolist()
        ([0.0, 1.0, 2.0], [21, 22, 23])
    """

    def __init__(
        self,
        source: Source | DictRows,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        window: int | None = None,
        stage: int = 0,
    ) -> None:
        if isinstance(source, (str, Path)):
            raise TypeError(
                f"source is {str(source)!r}; open the store first: PairStore.open(path)."
            )
        check_kind("source", source, Sized, ": a store, Prompts, or a sequence of dicts")
        names = ("seed", "batch_size", "rank", "world_size", "stage", "window")
        numbers = (seed, batch_size, rank, world_size, stage, 1 if window is None else window)
        for name, value in zip(names, numbers, strict=True):
            check_whole(name, value, -math.inf)
        if window is not None and (window < 1 or not isinstance(source, (PairStore, LatentStore))):
            raise ValueError(
                f"window is {window}; it must be at least 1, and its source a store, which has files."
            )
        if len(source) < 1:
            raise ValueError("the stream got no rows; it needs at least one.")
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size is {batch_size} and world_size {world_size}; both must be at least 1, and "
                "the batch a multiple of the number of processes."
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it must be in 0 ... {world_size - 1}.")
        # a Source reads rows, anything else holds them
        made: Any = source if hasattr(source, "read") else RowPairs(cast(DictRows, source))
        self.source: Source = made
        self.seed = seed
        self.stage = stage
        self._window = window
        self.batch_size = batch_size
        self._start = rank * (batch_size // world_size)
        self._count = batch_size // world_size
        self._orders: dict[int, np.ndarray] = {}

    def __repr__(self) -> str:
        return f"BatchStream({self.source!r}, batch_size={self.batch_size}, seed={self.seed})"

    def __call__(self, i: int) -> Batch:
        """This process's part of micro-batch i; `Batch.index` holds the sample numbers in the stream."""
        if i < 0:
            raise ValueError(f"micro-batch {i} was asked for; they are numbered from 0.")
        first = i * self.batch_size + self._start
        numbers = range(first, first + self._count)
        part: dict[str, Any] = {self.source.part: self.source.read([self.row(n) for n in numbers])}
        return Batch(torch.tensor(numbers), **part)

    def row(self, n: int) -> int:
        """Which row sample n of the stream is."""
        epoch, place = divmod(n, len(self.source))
        orders = self._orders  # never changed but replaced: threads may read at once
        if epoch not in orders:
            # A batch touches at most a few epochs, in order: keep the newest two.
            orders = dict([*orders.items()][-1:]) | {epoch: self._order(epoch)}
            self._orders = orders
        return int(orders[epoch][place])

    def _order(self, epoch: int) -> np.ndarray:
        label = f"{self.source.part}/{self.stage}/{self.seed}/epoch/{epoch}"
        key = np.frombuffer(blake2(label), "<u8").astype(np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        if self._window is None or not isinstance(self.source, (PairStore, LatentStore)):
            return generator.permutation(len(self.source))
        bounds = self.source.bounds
        files = generator.permutation(len(bounds) - 1)
        parts = []
        for start in range(0, len(files), self._window):
            rows = [
                np.arange(bounds[k], bounds[k + 1]) for k in files[start : start + self._window]
            ]
            parts.append(generator.permutation(np.concatenate(rows)))
        return np.concatenate(parts)


def together(streams: Sequence[Callable[[int], Batch]]) -> Callable[[int], Batch]:
    """One stream whose batches have the parts of several, each in its own order.

    Example:
        >>> pairs = nd.BatchStream(store, seed=0, batch_size=2)
        >>> texts = nd.BatchStream(nd.Prompts.of(store), seed=0, batch_size=2)
        >>> list(nd.data.together([pairs, texts])(0).parts())
        ['pairs', 'prompts']
    """
    if len(streams) == 1:
        return streams[0]

    def read(i: int) -> Batch:
        batches = [stream(i) for stream in streams]
        parts: dict[str, Any] = {n: p for batch in batches for n, p in batch.parts().items()}
        return Batch(batches[0].index, **parts)

    return read


def _condition(data: Mapping[str, Any]) -> Condition:
    tensors = {
        name: torch.as_tensor(value)[None]
        for name, value in data.items()
        if name not in ("x0", "noise", "prompt_id")
    }
    ids = torch.tensor([index(data["prompt_id"])]) if "prompt_id" in data else None
    return Condition(tensors, ids)
