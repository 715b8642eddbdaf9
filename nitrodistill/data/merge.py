"""Several stores as one: rows are copied bit for bit, prompts that are the same are kept once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nitrodistill.data.arrow import Rows
from nitrodistill.data.columns import REPAIR
from nitrodistill.data.conditioning import batches
from nitrodistill.data.generate import complete
from nitrodistill.data.manifest import File, Manifest
from nitrodistill.data.pairs import PairStore
from nitrodistill.data.text import hash_texts
from nitrodistill.data.work import Work

_BATCH = 64


class Merge(Work):
    """The work of `merge`, file by file; see `Work` and `merge`.

    Example:
        >>> config = nd.GenerateConfig(num_pairs=4, num_inference_steps=2, seed=1)
        >>> other = nd.generate(teacher, prompts, "other", config, teacher_name="toy", progress=False)
        >>> len(nd.data.complete(nd.data.Merge([store, other], "both"), progress=False))
        8
    """

    def __init__(self, stores: Sequence[PairStore], output: str | Path) -> None:
        if not stores:
            raise ValueError("merge got no stores; give it at least one.")
        _check_alike(stores)
        self._stores = tuple(stores)
        number: dict[str, int] = {}
        self._first: list[tuple[int, int]] = []  # store and row that a prompt is taken from
        ids, indices = [], []
        for s, store in enumerate(stores):
            renumbered = np.empty(len(store.prompts), np.int64)
            for row, text in enumerate(store.prompts):
                if text not in number:
                    number[text] = len(number)
                    self._first.append((s, row))
                elif store.prompt_bytes(row) != stores[self._first[number[text]][0]].prompt_bytes(
                    self._first[number[text]][1]
                ):
                    raise ValueError(
                        f"{str(store.path)!r} has another conditioning for the prompt {text!r:.60} than "
                        f"{str(stores[self._first[number[text]][0]].path)!r}: another text encoder made "
                        "it; merge stores of one teacher."
                    )
                renumbered[row] = number[text]
            for file in store.pair_files():
                named = file.numbers("prompt_id")
                if named.min() < 0 or named.max() >= len(renumbered):
                    raise ValueError(
                        f"{file.path} is damaged: it names a prompt that is not in its store; {REPAIR}"
                    )
                ids.append(renumbered[named])
                indices.append(file.numbers("index"))
        self._texts = list(number)
        self._verified: set[tuple[int, File]] = set()
        self._bounds = np.cumsum([0, *map(len, stores)])
        manifest = Manifest(
            shard_size=stores[0].manifest.shard_size,
            columns=stores[0].manifest.columns,
            conditions=stores[0].manifest.conditions,
            texts_hash=hash_texts(self._texts),
            sources=tuple(source for store in stores for source in store.manifest.sources),
        )
        super().__init__(
            output, manifest, len(self._texts), np.concatenate(ids), np.concatenate(indices)
        )

    def _prompt_rows(self, rows: range) -> Iterator[Rows]:
        for part in batches(rows, _BATCH):
            found = []
            for s, row in (self._first[i] for i in part):
                self._verify(s, "prompts", row)
                found.append(self._stores[s].prompt_bytes(row))
            yield {
                "prompt_id": list(part),
                "text": [self._texts[i] for i in part],
                **{name: [row[name] for row in found] for name in found[0]},
            }

    def _pair_rows(self, rows: range, advance: Callable[[int], object]) -> Iterator[Rows]:
        for part in batches(rows, _BATCH):
            found = []
            for i in part:
                s = int(np.searchsorted(self._bounds, i, side="right")) - 1
                row = i - int(self._bounds[s])
                self._verify(s, "shards", row)
                found.append(self._stores[s].pair_bytes(row))
            yield {
                "index": self._indices[part.start : part.stop].tolist(),
                "prompt_id": self._prompt_ids[part.start : part.stop].tolist(),
                **{name: [row[name] for row in found] for name in found[0]},
            }
            advance(len(part))

    def _verify(self, s: int, kind: str, row: int) -> None:
        """Compares the file that holds a row of a store with its hash, at the first row that is copied of it."""
        entry = self._stores[s].file_of(kind, row)
        if (s, entry) not in self._verified:
            self._stores[s].verify_file(entry)
            self._verified.add((s, entry))


def merge(stores: Sequence[PairStore], output: str | Path, *, progress: bool = True) -> PairStore:
    """Copies stores into a new one, or completes a copy that was begun.

    Args:
        stores: in the order wanted; their columns must be alike.
        output: folder of the new store; missing, empty, or begun with these stores.
        progress: shows bars.

    Returns:
        The new store. Its manifest names the sources of all.

    Raises:
        ValueError: if the stores differ in shapes, dtypes, encodings or text encoder, or one is named twice,
            or a file is damaged.
        FileExistsError: if the output holds something else.

    Example:
        >>> config = nd.GenerateConfig(num_pairs=4, num_inference_steps=2, seed=1)
        >>> other = nd.generate(teacher, prompts, "other", config, teacher_name="toy", progress=False)
        >>> len(nd.data.merge([store, other], "merged", progress=False))
        8
    """
    return complete(Merge(stores, output), progress=progress)


def _check_alike(stores: Sequence[PairStore]) -> None:
    first = stores[0]
    seen: dict[str, Path] = {}
    for store in stores:
        identity = store.manifest.identity()
        if identity in seen:
            raise ValueError(
                f"{str(store.path)!r} and {str(seen[identity])!r} hold the same pairs; name each once."
            )
        seen[identity] = store.path
        for kind in ("columns", "conditions"):
            here, there = getattr(store.manifest, kind), getattr(first.manifest, kind)
            if list(here.items()) != list(there.items()):
                raise ValueError(
                    f"{str(store.path)!r} and {str(first.path)!r} store their {kind} differently "
                    f"({_difference(here, there)}); make them with equal dtypes, shapes and encodings."
                )


def _difference(here: dict[str, object], there: dict[str, object]) -> str:
    name = next((n for n in [*here, *there] if here.get(n) != there.get(n)), "their order")
    return f"{name}: {here.get(name)} and {there.get(name)}"
