"""The work of making a store, file by file, by any number of workers that need not know of each other.

    the prompt table   file k holds prompts k S ... (k + 1) S - 1, encoded and trimmed to their mask
    the pairs          file k holds samples k S ... (k + 1) S - 1

What a file holds is a function of its number alone. It is written under a temporary name and renamed, so it is
whole or absent; a rerun with equal settings checks what is there and makes what is missing or damaged. A worker
begins with its own files, k with `k % world_size == rank`, and then takes over what nobody is working on, so fast
workers help slow ones, and a worker that died is missed by nobody. `manifest.json` is written last.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from nitrodistill.data.arrow import ArrowFile, Layout, Rows, Table, write_rows
from nitrodistill.data.claims import Claims, own_first
from nitrodistill.data.files import check_folder, digest_of, explained
from nitrodistill.data.manifest import File, Manifest
from nitrodistill.data.pairs import MANIFEST, PairStore, read_condition
from nitrodistill.files import remove_stale, write_new_text, write_text
from nitrodistill.progress import progress_bar
from nitrodistill.types import Condition

DRAFT = "settings.json"
_LOCK = ".lock"
_KINDS = ("prompts", "shards")
_FINISH = 0
_log = logging.getLogger(__name__)

_State = Literal["made", "whole", "busy"]


class Work(ABC):
    """The files of one store.

    Call `run`, from any number of processes, and then `finish` in each; or, to distribute it differently,
    `prepare`, `write_prompts(k)` for all k, when these are all done `write_pairs(k)` for all k, then `finish`.

    Args:
        output: folder of the store; missing, empty, or begun with these settings.
        manifest: what the store will be, without files.
        num_prompts: length of the prompt table.
        prompt_ids: of each sample, in order.
        indices: the number that each sample has in its source; None counts from 0.

    Attributes:
        root: the folder.
        manifest: what the store will be, without files.
        wrote: how many files of each kind this worker wrote.

    Raises:
        FileExistsError: if the folder holds something else, or a store with other settings.
        ValueError: if its manifest cannot be read.

    Example:
        >>> issubclass(nd.data.Generation, nd.data.Work)
        True
    """

    def __init__(
        self,
        output: str | Path,
        manifest: Manifest,
        num_prompts: int,
        prompt_ids: Sequence[int] | np.ndarray,
        indices: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self.root: Path = Path(output)
        self.manifest: Manifest = manifest
        self._num_prompts = num_prompts
        self._prompt_ids = np.asarray(prompt_ids, np.int64)
        self._indices = np.arange(len(self._prompt_ids)) if indices is None else np.asarray(indices)
        check_folder(self.root, (MANIFEST, DRAFT))
        self._made_root = not self.root.exists()
        self._claims = Claims(self.root / _LOCK, manifest.identity())
        self._checked: set[tuple[str, int]] = set()
        self.wrote: dict[str, int] = dict.fromkeys(_KINDS, 0)
        self._was_finished = (self.root / MANIFEST).exists()
        self._check_settings(new=True)

    @abstractmethod
    def _prompt_rows(self, rows: range) -> Iterator[Rows]:
        """Rows of the prompt table, in batches; a function of `rows` alone."""

    @abstractmethod
    def _pair_rows(self, rows: range, advance: Callable[[int], object]) -> Iterator[Rows]:
        """Rows of the pairs, in batches; a function of `rows` alone. `advance` counts what is done."""

    @property
    def prompt_files(self) -> range:
        """The numbers of the prompt table's files."""
        return range(-(-self._num_prompts // self.manifest.shard_size))

    @property
    def shards(self) -> range:
        """The numbers of the pairs' files."""
        return range(-(-len(self._prompt_ids) // self.manifest.shard_size))

    def prompts(self, k: int) -> range:
        """The prompts in file k of the prompt table."""
        return self._rows("prompts", k)

    def samples(self, k: int) -> range:
        """The samples in file k of the pairs."""
        return self._rows("shards", k)

    def prepare(self) -> None:
        """Makes the folder and notes the settings in it; harmless when repeated.

        What a run with other settings began there goes, if that has ended and made no pair.

        Raises:
            PermissionError: if it cannot be written.
            FileExistsError: if somebody else began a store with other settings there meanwhile.
        """
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self._claims.open()
            with self._claims.claimed(_FINISH, wait=True):
                self._clear_abandoned()
                # The settings come first: other workers, and a rerun, must know the folder as a store's.
                if not (self.root / MANIFEST).exists():
                    write_new_text(self.root / DRAFT, self.manifest.to_json())
            for kind in _KINDS:
                (self.root / kind).mkdir(exist_ok=True)
        self._check_settings()

    def run(
        self, rank: int = 0, world_size: int = 1, limit: int | None = None, progress: bool = True
    ) -> bool:
        """Makes files until all are there, or all that `limit` wants; says whether all are there.

        Args:
            rank: number of this worker: with which files it begins.
            world_size: how many workers there are.
            limit: work on the files of the first so many samples only; a later run goes on.
            progress: shows bars with rate and time left, in worker 0.

        Raises:
            ValueError: if the rank or the limit is none; or if what is made is not finite.
            PermissionError: if the folder cannot be written.
        """
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank {rank} of world_size {world_size}: it must be in 0 ... world_size - 1."
            )
        shards, prompts = self.shards, self.prompt_files
        if limit is not None:
            if limit < 1:
                raise ValueError(f"limit is {limit}; it must be at least 1.")
            shards = shards[: -(-limit // self.manifest.shard_size)]
            rows = self._prompt_ids[: self.samples(shards[-1]).stop]
            prompts = prompts[: int(rows.max()) // self.manifest.shard_size + 1]
        self.prepare()
        for kind, files in (("prompts", prompts), ("shards", shards)):
            order = own_first(len(files), rank, world_size)
            show = progress and rank == 0
            self._make(kind, order, frozenset(files[rank::world_size]), show)
        return len(shards) == len(self.shards)

    def write_prompts(self, k: int) -> bool:
        """Writes file k of the prompt table unless it is there and whole; says whether it did."""
        return self._write("prompts", k, wait=True) == "made"

    def write_pairs(self, k: int, advance: Callable[[int], object] = lambda count: None) -> bool:
        """Writes file k of the pairs unless it is there and whole; says whether it did.

        Args:
            k: number of the file.
            advance: called with the number of samples after each batch.

        Raises:
            ValueError: if what is made is not finite in the stored dtype; the message names the samples.
        """
        return self._write("shards", k, advance, wait=True) == "made"

    def finish(self) -> PairStore:
        """Checks what this worker has not seen yet, writes the manifest over all files, and opens the store.

        One of several workers does it, the others wait.

        Raises:
            FileNotFoundError: if a file is missing.
        """
        with explained(self.root), self._claims.claimed(_FINISH, wait=True):
            path = self.root / MANIFEST
            if self._was_finished or not path.exists():  # else another worker did it just now
                manifest = replace(
                    self.manifest, prompts=self._entries("prompts"), shards=self._entries("shards")
                )
                if not path.exists() or path.read_text(encoding="utf-8") != manifest.to_json():
                    write_text(path, manifest.to_json())
            (self.root / DRAFT).unlink(missing_ok=True)
            (self.root / _LOCK).unlink(missing_ok=True)
            for folder in (self.root, *(self.root / kind for kind in _KINDS)):
                remove_stale(folder)
        self._claims.close()
        return PairStore.open(self.root)

    def discard(self) -> None:
        """Ends the work; removes the folder's beginnings if no file was finished and nobody else works here."""
        if self._claims.alone():
            self._remove_beginnings()
        self._claims.close()

    def _remove_beginnings(self) -> None:
        with contextlib.suppress(OSError):  # no permission: then it is not there
            (self.root / _LOCK).unlink(missing_ok=True)
        if any(self.root.glob("*/*.arrow")) or (self.root / MANIFEST).exists():
            return
        with contextlib.suppress(OSError):  # no permission: then it is not ours
            (self.root / DRAFT).unlink(missing_ok=True)
        for folder in (
            *(self.root / kind for kind in _KINDS),
            *([self.root] if self._made_root else []),
        ):
            with contextlib.suppress(OSError):  # it is not there, or somebody put something in
                folder.rmdir()

    def _condition(self, ids: Sequence[int]) -> Condition:
        """The conditioning of prompts as it is stored; a damaged file of the table is made again."""
        try:
            return read_condition(self._prompt_table, self.manifest, ids, torch.float32)
        except (ValueError, FileNotFoundError) as error:
            _log.warning("%s It is made again.", error)
            self._prompt_table.close()
            for k in sorted({self._prompt_table.file_of(int(i)) for i in ids}):
                self._write("prompts", k, wait=True)
            return read_condition(self._prompt_table, self.manifest, ids, torch.float32)

    @cached_property
    def _prompt_table(self) -> Table:
        files = [(self._name("prompts", k), len(self.prompts(k))) for k in self.prompt_files]
        return Table(self.root.__truediv__, Layout(self.manifest, "prompts"), files)

    def _check_settings(self, new: bool = False) -> None:
        """Takes over the records of a store that was begun here with equal settings.

        Args:
            new: do not refuse what `prepare` may clear away.
        """
        there = self._there()
        if there is None:
            return
        different = there.differences(self.manifest)
        if different and not (new and self._has_no_pair()):
            more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
            raise FileExistsError(
                f"{str(self.root)!r} holds pairs made with other settings: "
                f"{'; '.join(different[:3])}{more}. Use those settings, or another folder."
            )
        if not different:
            self.manifest = replace(there, prompts=(), shards=())

    def _there(self) -> Manifest | None:
        """What stands in the folder about the store that is there, or was begun."""
        path = next((p for n in (MANIFEST, DRAFT) if (p := self.root / n).is_file()), None)
        try:
            return path and Manifest.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read: {error} Remove the folder or choose another."
            ) from error

    def _has_no_pair(self) -> bool:
        return not (self.root / MANIFEST).exists() and not any(self.root.glob("shards/*.arrow"))

    def _clear_abandoned(self) -> None:
        """Removes settings and prompts of a run with other settings that ended before its first pair."""
        there = self._there()
        if there is None or not self._has_no_pair() or not there.differences(self.manifest):
            return
        if self._claims.nobody(there.identity()):
            for file in (*self.root.glob("prompts/*.arrow"), self.root / DRAFT):
                file.unlink(missing_ok=True)

    def _rows(self, kind: str, k: int) -> range:
        total = self._num_prompts if kind == "prompts" else len(self._prompt_ids)
        first = k * self.manifest.shard_size
        return range(first, min(first + self.manifest.shard_size, total))

    def _name(self, kind: str, k: int) -> str:
        return f"{kind}/{k:06d}.arrow"

    def _make(self, kind: str, order: list[int], own: frozenset[int], show: bool) -> None:
        """Makes files until all of `order` are there; those of others are trusted until `finish`."""
        total = sum(len(self._rows(kind, k)) for k in order)
        unit = "prompt" if kind == "prompts" else "pair"
        with progress_bar(total=total, unit=unit, desc=f"{unit}s", show=show) as bar:
            counted = _Counted(bar, {k: len(self._rows(kind, k)) for k in order})
            counted.look(self.root / kind, initial=True)
            pause = 0.05
            while order:
                busy = []
                for k in order:
                    if k not in own and (self.root / self._name(kind, k)).exists():
                        continue
                    if self._write(kind, k, counted.advance) == "busy":
                        busy.append(k)
                    counted.look(self.root / kind)
                if busy == order:
                    time.sleep(pause)
                    pause = min(2 * pause, 2.0)
                order = busy
            counted.look(self.root / kind, force=True)

    def _write(
        self,
        kind: str,
        k: int,
        advance: Callable[[int], object] = lambda count: None,
        wait: bool = False,
    ) -> _State:
        number = 1 + 2 * k + _KINDS.index(kind)  # 0 is the claim to finish
        with self._claims.claimed(number, wait) as granted:
            if not granted:
                return "busy"
            if self._is_whole(kind, k):
                return "whole"
            rows = self._rows(kind, k)
            if kind == "prompts":
                batches = _counting(self._prompt_rows(rows), advance)
            else:
                batches = self._pair_rows(rows, advance)
            with explained(self.root):
                write_rows(self.root / self._name(kind, k), Layout(self.manifest, kind), batches)
        self._checked.add((kind, k))
        self.wrote[kind] += 1
        return "made"

    def _is_whole(self, kind: str, k: int) -> bool:
        if (kind, k) in self._checked:
            return True
        rows = self._rows(kind, k)
        keys = rows if kind == "prompts" else self._indices[rows.start : rows.stop]
        try:
            ArrowFile(self.root / self._name(kind, k), Layout(self.manifest, kind)).check(keys)
        except FileNotFoundError:
            return False
        except ValueError as error:
            _log.warning("%s It is made again.", error)
            return False
        self._checked.add((kind, k))
        return True

    def _entries(self, kind: str) -> tuple[File, ...]:
        entries = []
        for k in self.prompt_files if kind == "prompts" else self.shards:
            path = self.root / self._name(kind, k)
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is missing; make all files before finishing the store."
                )
            self._write(kind, k, wait=True)
            entries.append(digest_of(path, self.root, len(self._rows(kind, k))))
        return tuple(entries)


class _Counted:
    """Counts the rows that are there on a bar: this worker's as they are made, others' as their files appear."""

    def __init__(self, bar: tqdm, rows: dict[int, int]) -> None:
        self._bar = bar
        self._rows = rows
        self._seen = 0.0

    def advance(self, count: int) -> None:
        """Counts rows that this worker made."""
        self._bar.update(count)

    def look(self, folder: Path, initial: bool = False, force: bool = False) -> None:
        """Counts the files that are there; every few seconds, as a folder may be large."""
        now = time.monotonic()
        if now - self._seen < 2.0 and not (initial or force):
            return
        self._seen = now
        names = [name.partition(".") for name in os.listdir(folder)]
        numbers = {int(stem) for stem, _, kind in names if stem.isdigit() and kind == "arrow"}
        there = sum(self._rows.get(k, 0) for k in numbers)
        if initial:
            self._bar.initial = there  # not counted in the rate
        self._bar.update(there - self._bar.n)


def _counting(batches: Iterator[Rows], advance: Callable[[int], object]) -> Iterator[Rows]:
    for rows in batches:
        yield rows
        advance(len(rows["prompt_id"]))
