"""The work of making pairs, file by file.

Sample i has the prompt `prompts[i % len(prompts)]` and the noise `Draws(seed, 0, [i]).normal("noise", shape)`.
Noise and text conditioning are rounded to the stored dtype *before the teacher sees them*, so that what is stored
is exact. A batch is a function of its first index alone and never crosses shards, so one worker and eight
write the same bytes (on one type of machine: arithmetic differs between devices). The work has two parts:

    the prompt table   file k holds prompts k S ... (k + 1) S - 1, encoded and trimmed to their mask
    the pairs          file k holds samples k S ... (k + 1) S - 1; its teacher reads the prompt table

A file is written under a temporary name and renamed, so it is whole or absent; a rerun with equal settings checks
what is there and makes what is missing or damaged. `manifest.json` is written last.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from nitrodistill.data.arrow import ArrowFile, Layout, Rows, Table, write_rows
from nitrodistill.data.files import check_folder, digest_of, explained, write_text
from nitrodistill.data.manifest import DTYPES, Column, File, Generated, Grid, Manifest
from nitrodistill.data.pairs import MANIFEST, PairStore, read_condition
from nitrodistill.data.text import hash_texts, token_lengths
from nitrodistill.method import Draws
from nitrodistill.models.denoiser import Guided
from nitrodistill.models.pipeline import Pipeline, fingerprint
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.types import Condition

__all__ = ["FloatType", "GenerateConfig", "Generation"]

FloatType = Literal["float16", "bfloat16", "float32"]
"""The element types that a store's floating-point tensors may have."""

_DRAFT = "settings.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerateConfig:
    """How pairs are made.

    Attributes:
        num_pairs: how many.
        steps: of the teacher's sampler (DDIM, or Euler for flows).
        guidance: scale of classifier-free guidance, at least 1 (1: none).
        seed: of the noise.
        batch_size: how many samples the teacher draws at once; lower it if memory runs out.
        shard_size: pairs, or prompts, in one file: the unit of work and of repair.
        dtype: of latents, noise and text conditioning on disk.
    """

    num_pairs: int = 600
    steps: int = 25
    guidance: float = 3.0
    seed: int = 0
    batch_size: int = 32
    shard_size: int = 256
    dtype: FloatType = "float16"

    def __post_init__(self) -> None:
        for name in ("num_pairs", "steps", "batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 1 <= self.guidance < math.inf:
            raise ValueError(
                f"guidance is {self.guidance}; it must be at least 1 (1: no guidance)."
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be at least 0 and below 2**63.")
        if self.dtype not in get_args(FloatType):
            raise ValueError(
                f"dtype is {self.dtype!r}; it must be one of {', '.join(get_args(FloatType))}."
            )


class Generation:
    """The work of `generate`, file by file, for whoever distributes it differently.

    Call `prepare`; then `write_prompts(k)` for all k; when these are all done, `write_pairs(k)` for all k; then
    `finish` once. Files may be written in any order, by any process.

    Args:
        pipeline: the teacher.
        prompts: what it draws; duplicates are encoded once and weigh as often as they occur.
        output: folder of the store; missing, empty, or begun with these settings.
        config: how.
        teacher_name: recorded in the manifest, for people.

    Raises:
        ValueError: if there are no prompts, one is unknown to the text encoder, or the teacher cannot be
            sampled in that many steps.
        FileExistsError: if the folder holds something else, or a store with other settings.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        prompts: Sequence[str],
        output: str | Path,
        config: GenerateConfig,
        teacher_name: str,
    ) -> None:
        if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"prompts is {prompts!r:.80}; give a list of at least one text.")
        self.pipeline = pipeline
        self.config = config
        self.root: Path = Path(output)
        texts = list(dict.fromkeys(prompts[: config.num_pairs]))
        for text in texts:
            pipeline.check_prompt(text)
        self._texts = texts
        number = {text: i for i, text in enumerate(texts)}
        self._ids = [number[text] for text in prompts[: config.num_pairs]]
        self._num_prompts = len(prompts)
        check_folder(self.root, (MANIFEST, _DRAFT))
        self._made_root = not self.root.exists()
        denoiser = pipeline.denoiser
        self._plan = StepPlan.from_schedule(denoiser.schedule, config.steps)
        self._plan.check(denoiser.prediction_type)
        self.manifest: Manifest = self._draft(prompts, teacher_name)
        self._check_settings()

    @property
    def prompt_files(self) -> range:
        """The numbers of the prompt table's files."""
        return range(-(-len(self._texts) // self.config.shard_size))

    @property
    def shards(self) -> range:
        """The numbers of the pairs' files."""
        return range(-(-self.config.num_pairs // self.config.shard_size))

    def prepare(self) -> None:
        """Makes the folder and notes the settings in it; harmless when repeated.

        Raises:
            PermissionError: if it cannot be written.
        """
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            # The settings come first: other workers, and a rerun, must know the folder as a store's.
            if not (self.root / MANIFEST).exists():
                write_text(self.root / _DRAFT, self.manifest.to_json())
            for folder in self._folders():
                folder.mkdir(exist_ok=True)
        self._check_settings()

    def write_prompts(self, k: int) -> bool:
        """Writes file k of the prompt table unless it is there and whole; says whether it did."""
        rows = self._rows(k, len(self._texts))
        return self._write("prompts", k, rows, self._encoded)

    def write_pairs(self, k: int, advance: Callable[[int], object] = lambda count: None) -> bool:
        """Writes file k of the pairs unless it is there and whole; says whether it did.

        Args:
            k: number of the file.
            advance: called with the number of samples after each batch.

        Raises:
            ValueError: if the teacher draws what is not finite in the stored dtype; the message names
                the samples.
        """
        return self._write("shards", k, self.samples(k), lambda rows: self._drawn(rows, advance))

    def samples(self, k: int) -> range:
        """The samples in file k of the pairs."""
        return self._rows(k, self.config.num_pairs)

    def finish(self) -> PairStore:
        """Writes the manifest over all files, and opens the store.

        Raises:
            FileNotFoundError: if a file is missing.
        """
        manifest = replace(
            self.manifest,
            prompts=self._entries("prompts", self.prompt_files, len(self._texts)),
            shards=self._entries("shards", self.shards, self.config.num_pairs),
        )
        with explained(self.root):
            path = self.root / MANIFEST
            if not path.exists() or path.read_text(encoding="utf-8") != manifest.to_json():
                write_text(path, manifest.to_json())
            (self.root / _DRAFT).unlink(missing_ok=True)
            for left in (*self.root.glob(".*.tmp"), *self.root.glob("*/.*.tmp")):
                left.unlink(missing_ok=True)  # of workers that were killed
        return PairStore.open(self.root)

    def discard(self) -> None:
        """Removes the folder's beginnings if no file of it was finished."""
        if any(self.root.glob("*/*.arrow")) or (self.root / MANIFEST).exists():
            return
        with contextlib.suppress(OSError):  # no permission: then it is not ours
            (self.root / _DRAFT).unlink(missing_ok=True)
        for folder in (*self._folders(), *([self.root] if self._made_root else [])):
            with contextlib.suppress(OSError):  # it is not there, or somebody put something in
                folder.rmdir()

    def _folders(self) -> tuple[Path, Path]:
        return self.root / "prompts", self.root / "shards"

    def _draft(self, prompts: Sequence[str], teacher_name: str) -> Manifest:
        config, denoiser = self.config, self.pipeline.denoiser
        scales = [step.output for step in self._plan.steps]
        grid = Grid(
            type(denoiser.schedule).__name__,
            tuple(step.t.item() for step in self._plan.steps),
            tuple(float(s.alpha) for s in scales),
            tuple(float(s.sigma) for s in scales),
        )
        source = Generated(
            num_samples=config.num_pairs,
            teacher=teacher_name,
            fingerprint=fingerprint(denoiser.module),
            prediction_type=denoiser.prediction_type,
            sampler=self._plan.transition,
            steps=config.steps,
            guidance=float(config.guidance),
            grid=grid,
            seed=config.seed,
            batch_size=config.batch_size,
            num_prompts=len(prompts),
            prompts_hash=hash_texts(prompts),
            code_version=_code_version(),
        )
        latent = Column(config.dtype, tuple(self.pipeline.latent_shape))
        return Manifest(
            shard_size=config.shard_size,
            columns={"x0": latent, "noise": latent},
            conditions=self._condition_columns(),
            texts_hash=hash_texts(self._texts),
            sources=(source,),
        )

    def _condition_columns(self) -> dict[str, Column]:
        encoded = self._encode(self._texts[:1])
        free = token_lengths(encoded)
        return {
            name: Column(
                str(value.dtype).removeprefix("torch."),
                (None, *value.shape[2:]) if name in free else tuple(value.shape[1:]),
            )
            for name, value in encoded.tensors.items()
        }

    def _check_settings(self) -> None:
        """Takes over the records of a store that was begun here with equal settings."""
        path = next((p for n in (MANIFEST, _DRAFT) if (p := self.root / n).is_file()), None)
        if path is None:
            return
        try:
            there = Manifest.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read: {error} Remove the folder or choose another."
            ) from error
        different = there.differences(self.manifest)
        if different:
            more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
            raise FileExistsError(
                f"{str(self.root)!r} holds pairs made with other settings: "
                f"{'; '.join(different[:3])}{more}. Use those settings, or another folder."
            )
        self.manifest = replace(there, prompts=(), shards=())

    def _rows(self, k: int, total: int) -> range:
        first = k * self.config.shard_size
        return range(first, min(first + self.config.shard_size, total))

    def _path(self, kind: str, k: int) -> Path:
        return self.root / kind / f"{k:06d}.arrow"

    def _write(
        self, kind: str, k: int, rows: range, make: Callable[[range], Iterator[Rows]]
    ) -> bool:
        path, layout = self._path(kind, k), Layout(self.manifest, kind)
        try:
            ArrowFile(path, layout).check(rows.start, len(rows))
            return False
        except FileNotFoundError:
            pass
        except ValueError as error:
            _log.warning("%s It is made again.", error)
        with explained(self.root):
            write_rows(path, layout, make(rows))
        return True

    def _entries(self, kind: str, files: range, total: int) -> tuple[File, ...]:
        entries = []
        for k in files:
            path, rows = self._path(kind, k), self._rows(k, total)
            ArrowFile(path, Layout(self.manifest, kind))  # is there, and of these settings
            entries.append(digest_of(path, self.root, len(rows)))
        return tuple(entries)

    def _batches(self, rows: range) -> Iterator[range]:
        for first in range(rows.start, rows.stop, self.config.batch_size):
            yield range(first, min(first + self.config.batch_size, rows.stop))

    def _encode(self, texts: Sequence[str]) -> Condition:
        return self.pipeline.encode_prompt(texts).to("cpu", DTYPES[self.config.dtype])

    def _encoded(self, rows: range) -> Iterator[Rows]:
        for ids in self._batches(rows):
            texts = [self._texts[i] for i in ids]
            condition = self._encode(texts)
            lengths = token_lengths(condition)
            tensors = {
                f"condition.{name}": [
                    row[: lengths[name][i]] if name in lengths else row
                    for i, row in enumerate(value)
                ]
                for name, value in condition.tensors.items()
            }
            _check_finite(condition.tensors, ids, "prompts", self.config.dtype)
            yield {"prompt_id": list(ids), "text": texts, **tensors}

    @cached_property
    def _guided(self) -> Guided:
        return self.pipeline.guided(self.config.guidance)

    @cached_property
    def _prompt_table(self) -> Table:
        files = [
            (self._path("prompts", k).relative_to(self.root).as_posix(), len(self._rows(k, total)))
            for total in (len(self._texts),)
            for k in self.prompt_files
        ]
        return Table(self.root, Layout(self.manifest, "prompts"), files)

    def _drawn(self, rows: range, advance: Callable[[int], object]) -> Iterator[Rows]:
        device, dtype = self.pipeline.device, DTYPES[self.config.dtype]
        for batch in self._batches(rows):
            ids = [self._ids[i % self._num_prompts] for i in batch]
            condition = read_condition(self._prompt_table, self.manifest, ids, torch.float32)
            draws = Draws(self.config.seed, 0, torch.tensor(batch))
            noise = draws.normal("noise", self.pipeline.latent_shape).to(dtype)
            with torch.no_grad():
                seen = noise.to(device, torch.float32)
                x0 = sample(self._guided, self._plan, seen, condition.to(device))
            x0 = x0.to("cpu", dtype)
            _check_finite({"x0": x0}, batch, "samples", self.config.dtype)
            yield {"index": list(batch), "prompt_id": ids, "x0": list(x0), "noise": list(noise)}
            advance(len(batch))


def _check_finite(tensors: Mapping[str, Tensor], ids: range, what: str, dtype: str) -> None:
    for name, value in tensors.items():
        finite = torch.isfinite(value).reshape(len(ids), -1).all(1)
        if not finite.all():
            bad = [i for i, fine in zip(ids, finite.tolist(), strict=True) if not fine]
            raise ValueError(
                f"{name} of the {what} {bad[:8]} is not finite in {dtype}; try dtype=bfloat16 or float32, "
                "and check that the teacher draws well with these steps and this guidance."
            )


def _code_version() -> str:
    try:
        return version("nitrodistill")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
