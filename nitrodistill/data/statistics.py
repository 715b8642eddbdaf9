"""What a store holds, in numbers: sizes, prompts, values, and what its encodings lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nitrodistill.data.codec import from_buffers, probe_error, relative_error
from nitrodistill.data.pairs import PairStore

_BATCH = 64


@dataclass(frozen=True)
class Values:
    """Values of a tensor over the samples that were looked at.

    Attributes:
        mean: of all elements.
        std: of all elements, about the mean.
        low: the smallest.
        high: the largest.

    Example:
        >>> nd.data.statistics(store).values["noise"].std > 0.9
        True
    """

    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Statistics:
    """What a store holds.

    Attributes:
        samples: how many.
        prompts: how many different ones.
        files: how many, without the manifest.
        size_bytes: of these files.
        looked_at: samples whose values were read, evenly spread.
        values: of x0 and noise.
        tokens: quantiles 0, 0.1, 0.5, 0.9 and 1 of the prompts' token counts, for each tensor whose length is
            free.
        int8_error: for each tensor stored as int8, the mean and the largest relative error of its rows.
        noise_error: where the noise is drawn, its largest difference to what the teacher saw, relative to
            max(1, |noise|), over the stored elements; None where it is stored.

    Example:
        >>> found = nd.data.statistics(store)
        >>> found.samples, found.prompts
        (4, 2)
    """

    samples: int
    prompts: int
    files: int
    size_bytes: int
    looked_at: int
    values: dict[str, Values]
    tokens: dict[str, tuple[int, ...]]
    int8_error: dict[str, tuple[float, float]]
    noise_error: float | None


def statistics(store: PairStore, most: int = 4096) -> Statistics:
    """Reads a store's prompts and at most `most` of its samples.

    Raises:
        ValueError: if a row is damaged.

    Example:
        >>> sorted(nd.data.statistics(store).values)
        ['noise', 'x0']
    """
    manifest = store.manifest
    files = (*manifest.prompts, *manifest.shards)
    rows = np.unique(np.linspace(0, len(store) - 1, min(most, len(store))).astype(np.int64))
    sums = {name: _Sums() for name in ("x0", "noise")}
    noise_error = None
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH].tolist()
        batch = store.read(part, dtype=torch.float32)
        sums["x0"].add(batch.x0)
        sums["noise"].add(batch.noise)
        column = manifest.columns["noise"]
        if column.encoding == "draws":
            probes = from_buffers([store.pair_bytes(i)["noise"] for i in part], column, "noise")
            noise_error = max(noise_error or 0.0, probe_error(batch.noise, probes))
    lengths: dict[str, list[int]] = {n: [] for n, c in manifest.conditions.items() if c.is_free}
    errors: dict[str, list[float]] = {
        n: [] for n, c in manifest.conditions.items() if c.encoding == "int8"
    }
    for i in range(manifest.num_prompts):
        row = store.prompt_bytes(i)
        for name, column in manifest.conditions.items():
            data = row[f"condition.{name}"]
            if name in lengths:
                lengths[name].append((len(data) - column.header_bytes) // column.stride_bytes)
            if name in errors:
                errors[name].append(relative_error(data, column))
    quantiles = (0, 0.1, 0.5, 0.9, 1)
    return Statistics(
        samples=len(store),
        prompts=manifest.num_prompts,
        files=len(files),
        size_bytes=sum(file.bytes for file in files),
        looked_at=len(rows),
        values={name: found.values() for name, found in sums.items()},
        tokens={
            name: tuple(int(v) for v in np.quantile(found, quantiles, method="nearest"))
            for name, found in lengths.items()
        },
        int8_error={n: (float(np.mean(e)), float(np.max(e))) for n, e in errors.items()},
        noise_error=noise_error,
    )


class _Sums:
    """Running sums in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = self._squares = 0.0
        self._low, self._high = torch.tensor(float("inf")), torch.tensor(float("-inf"))

    def add(self, tensor: torch.Tensor) -> None:
        x = tensor.double()
        self._count += x.numel()
        self._sum += float(x.sum())
        self._squares += float(x.square().sum())
        # unlike min and max of floats, these keep a NaN
        self._low, self._high = (
            torch.minimum(self._low, x.min()),
            torch.maximum(self._high, x.max()),
        )

    def values(self) -> Values:
        mean = self._sum / self._count
        variance = max(self._squares / self._count - mean**2, 0.0)
        return Values(mean, variance**0.5, float(self._low), float(self._high))
