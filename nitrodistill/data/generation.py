"""The work of `generate`: noise and prompts through a teacher.

Sample i has the prompt `prompts[i % len(prompts)]` and the noise
`Draws(seed, 0, [i], purpose="pairs").normal("noise", shape)`.
Noise and text conditioning are rounded to what is stored *before the teacher sees them*, so that what is stored is
exact. A batch is a function of its first index alone and never crosses shards, so one worker and eight
write the same bytes (on one type of machine: arithmetic differs between devices).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nitrodistill.checks import check_fields, check_kind
from nitrodistill.data.arrow import Rows
from nitrodistill.data.codec import to_bytes
from nitrodistill.data.columns import DTYPES, Column
from nitrodistill.data.conditioning import (
    Embeddings,
    FloatType,
    batches,
    check_finite,
    check_seed,
    encode_texts,
    encoded_prompts,
    prompt_columns,
    trimmed,
)
from nitrodistill.data.files import check_folder
from nitrodistill.data.manifest import Manifest
from nitrodistill.data.pairs import MANIFEST
from nitrodistill.data.sources import Generated, Grid, code_version
from nitrodistill.data.text import hash_texts
from nitrodistill.data.work import DRAFT, Work
from nitrodistill.method import Draws
from nitrodistill.models.pipeline import Pipeline, as_texts, fingerprint
from nitrodistill.sampling import StepPlan, sample
from nitrodistill.types import Condition

Noise = Literal["stored", "drawn"]
"""Whether a store holds the noise, or the seed that it is drawn from."""

_PROBED = 64
"""Prompts whose length a dry run measures."""


@dataclass(frozen=True)
class GenerateConfig:
    """How pairs are made.

    Attributes:
        num_pairs: how many.
        num_inference_steps: of the teacher's sampler (DDIM, or Euler for flows).
        guidance: scale of classifier-free guidance, at least 1 (1: none).
        seed: of the noise.
        batch_size: how many samples the teacher draws at once; lower it if memory runs out.
        shard_size: pairs, or prompts, in one file: the unit of work and of repair.
        dtype: of latents, noise and text conditioning on disk.
        embeddings: "exact" keeps every bit of the text conditioning; "int8" keeps eight bits an element
            (the teacher sees what is stored, and each row keeps its measured error).
        compute: what the teacher computes in; "bfloat16" and "float16" are autocast, for a GPU.
        noise: "stored" keeps it; "drawn" keeps its seed and draws it anew when it is read.

    Example:
        >>> nd.GenerateConfig(num_pairs=1000, guidance=3.0, noise="drawn").num_pairs
        1000
    """

    num_pairs: int = 600
    num_inference_steps: int = 25
    guidance: float = 3.0
    seed: int = 0
    batch_size: int = 32
    shard_size: int = 256
    dtype: FloatType = "float16"
    embeddings: Embeddings = "exact"
    noise: Noise = "stored"
    compute: FloatType = "float32"

    def __post_init__(self) -> None:
        least = {"num_pairs": 1, "num_inference_steps": 1, "batch_size": 1, "shard_size": 1}
        check_fields(self, **least, guidance=1)
        check_seed(self.seed)


@dataclass(frozen=True)
class DryRun:
    """What a `generate` will cost, measured on a sample of prompts and one batch.

    Attributes:
        pairs: how many are to be made in all.
        missing: of these, in files that are not there yet.
        prompts: different ones.
        size_bytes: of the whole store.
        seconds: for what is missing, with one worker like this one; the first batch, which is slower
            than the others, is not in it.

    Example:
        >>> config = nd.GenerateConfig(num_pairs=4, num_inference_steps=1)
        >>> nd.data.Generation(teacher, prompts, "never", config, "toy").dry_run().pairs
        4
    """

    pairs: int
    missing: int
    prompts: int
    size_bytes: int
    seconds: float


class Generation(Work):
    """The work of `generate`, file by file, for whoever distributes it differently; see `Work`.

    Args:
        pipeline: the teacher.
        prompts: what it draws; duplicates are encoded once and weigh as often as they occur. Numbers or names of
            classes for class-conditional teachers, `[""]` for unconditional ones.
        output: folder of the store; missing, empty, or begun with these settings.
        config: how.
        teacher_name: recorded in the manifest, for people.

    Raises:
        ValueError: if there are no prompts, one is unknown to the text encoder, or the teacher cannot be guided,
            or not be sampled in that many steps.
        FileExistsError: if the folder holds something else, or a store with other settings.

    Example:
        >>> config = nd.GenerateConfig(num_pairs=4, num_inference_steps=1)
        >>> work = nd.data.Generation(teacher, prompts, "work", config, "toy")
        >>> nd.data.complete(work, progress=False)
        PairStore('work', 4 pairs of 2 prompts, x0 float16 (4, 8, 8))
    """

    def __init__(
        self,
        pipeline: Pipeline,
        prompts: Sequence[str],
        output: str | Path,
        config: GenerateConfig,
        teacher_name: str,
    ) -> None:
        check_kind("pipeline", pipeline, Pipeline, ", such as Pipeline.from_diffusers(pipe)")
        check_kind("config", config, GenerateConfig)
        prompts = as_texts(prompts)
        self.pipeline = pipeline
        self.config = config
        texts = list(dict.fromkeys(prompts[: config.num_pairs]))
        for text in texts:
            pipeline.check_prompt(text)
        self._texts = texts
        number = {text: i for i, text in enumerate(texts)}
        ids = np.array([number[text] for text in prompts[: config.num_pairs]])
        check_folder(Path(output), (MANIFEST, DRAFT))
        self._plan = StepPlan.from_schedule(pipeline.denoiser.schedule, config.num_inference_steps)
        self._plan.check(pipeline.denoiser.prediction_type)
        self._guided = pipeline.guided(config.guidance)
        manifest = self._draft(prompts, teacher_name)
        super().__init__(output, manifest, len(texts), np.resize(ids, config.num_pairs))

    def dry_run(self) -> DryRun:
        """Measures what the work will cost; draws two batches and writes nothing.

        Raises:
            ValueError: if what the teacher draws is not finite.
        """
        config = self.config
        stride = -(-len(self._texts) // _PROBED)
        texts = self._texts[::stride]
        start = time.perf_counter()
        tensors = [trimmed(encode_texts(self.pipeline, [text], config.dtype)) for text in texts]
        text_seconds = (time.perf_counter() - start) / len(texts)
        table = {f"condition.{n}": c for n, c in self.manifest.conditions.items()}
        encoded = [
            sum(len(to_bytes(row[name][0], column, name)) for name, column in table.items())
            + len(text.encode())
            for row, text in zip(tensors, texts, strict=True)
        ]
        rows = range(min(config.batch_size, config.num_pairs))
        condition = encode_texts(
            self.pipeline, [self._texts[self._prompt_ids[i]] for i in rows], config.dtype
        )
        times = []
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            self._draw(rows, condition.to(dtype=torch.float32))
            times.append(time.perf_counter() - start)
        pair_bytes = sum(column.stride_bytes for column in self.manifest.columns.values()) + 20
        missing, texts_missing = self._missing("shards"), self._missing("prompts")
        return DryRun(
            pairs=config.num_pairs,
            missing=missing,
            prompts=len(self._texts),
            size_bytes=round(
                config.num_pairs * pair_bytes + len(self._texts) * sum(encoded) / len(encoded)
            ),
            seconds=times[1] / len(rows) * missing + text_seconds * texts_missing,
        )

    def _missing(self, kind: str) -> int:
        files = self.prompt_files if kind == "prompts" else self.shards
        gone = [k for k in files if not (self.root / self._name(kind, k)).exists()]
        return sum(len(self._rows(kind, k)) for k in gone)

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
            sampler_settings=denoiser.sampler_settings,
            num_inference_steps=config.num_inference_steps,
            guidance=float(config.guidance),
            grid=grid,
            text_encoders=self.pipeline.text_fingerprint(),
            compute=config.compute,
            seed=config.seed,
            batch_size=config.batch_size,
            num_prompts=len(prompts),
            prompts_hash=hash_texts(prompts),
            code_version=code_version(),
            negative_prompt=self.pipeline.negative_prompt,
        )
        shape = tuple(self.pipeline.latent_shape)
        noise = Column(config.dtype, shape, "draws" if config.noise == "drawn" else "raw")
        return Manifest(
            shard_size=config.shard_size,
            columns={"x0": Column(config.dtype, shape), "noise": noise},
            conditions=prompt_columns(
                self.pipeline, self._texts[0], config.dtype, config.embeddings
            ),
            texts_hash=hash_texts(self._texts),
            sources=(source,),
        )

    def _prompt_rows(self, rows: range) -> Iterator[Rows]:
        config = self.config
        return encoded_prompts(self.pipeline, self._texts, rows, config.batch_size, config.dtype)

    def _pair_rows(self, rows: range, advance: Callable[[int], object]) -> Iterator[Rows]:
        for batch in batches(rows, self.config.batch_size):
            ids = self._prompt_ids[batch.start : batch.stop].tolist()
            noise, x0 = self._draw(batch, self._condition(ids))
            yield {"index": list(batch), "prompt_id": ids, "x0": list(x0), "noise": list(noise)}
            advance(len(batch))

    def _draw(self, rows: range, condition: Condition) -> tuple[Tensor, Tensor]:
        device, dtype = self.pipeline.device, DTYPES[self.config.dtype]
        draws = Draws(self.config.seed, 0, torch.tensor(rows), purpose="pairs")
        noise = draws.normal("noise", self.pipeline.latent_shape).to(dtype)
        compute = DTYPES[self.config.compute]
        lower = compute != torch.float32
        with torch.no_grad(), torch.autocast(device.type, compute, enabled=lower):
            seen = noise.to(device, torch.float32)
            x0 = sample(self._guided, self._plan, seen, condition.to(device))
        x0 = x0.to("cpu", dtype)
        check_finite({"x0": x0}, rows, "samples", self.config.dtype)
        return noise, x0
