"""Real images with captions as a store: latents through a pipeline's VAE, text through its encoder.

For methods that learn from data: DMD2's GAN on real images (Yin et al. 2024, https://arxiv.org/abs/2405.14867,
section 4.3), feature distillation. The store's noise is drawn from a seed and belongs to no image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nitrodistill.checks import check_fields
from nitrodistill.data.arrow import Rows
from nitrodistill.data.columns import DTYPES, Column
from nitrodistill.data.conditioning import (
    Embeddings,
    FloatType,
    batches,
    check_finite,
    check_seed,
    encoded_prompts,
    prompt_columns,
)
from nitrodistill.data.files import check_folder
from nitrodistill.data.generate import complete
from nitrodistill.data.images import Captioned, fitted
from nitrodistill.data.manifest import Manifest
from nitrodistill.data.pairs import MANIFEST, PairStore
from nitrodistill.data.sources import Encoded, code_version
from nitrodistill.data.text import hash_texts
from nitrodistill.data.work import DRAFT, Work
from nitrodistill.method import Draws
from nitrodistill.models.pipeline import Pipeline


@dataclass(frozen=True)
class EncodeConfig:
    """How images are encoded.

    Attributes:
        seed: of the noise.
        batch_size: how many images the VAE encodes at once; lower it if memory runs out.
        shard_size: samples, or prompts, in one file: the unit of work and of repair.
        dtype: of latents and text conditioning on disk.
        embeddings: "exact" keeps every bit of the text conditioning; "int8" keeps eight bits an element.

    Example:
        >>> nd.data.EncodeConfig(dtype="bfloat16").dtype
        'bfloat16'
    """

    seed: int = 0
    batch_size: int = 16
    shard_size: int = 256
    dtype: FloatType = "float16"
    embeddings: Embeddings = "exact"

    def __post_init__(self) -> None:
        check_fields(self, batch_size=1, shard_size=1)
        check_seed(self.seed)


class Encoding(Work):
    """The work of `encode`, file by file; see `Work`.

    Args:
        pipeline: whose VAE and text encoder are used.
        images: from `open_images`.
        output: folder of the store; missing, empty, or begun with these settings.
        config: how.
        teacher_name: recorded in the manifest, for people.

    Raises:
        ValueError: if a caption is unknown to the text encoder.
        FileExistsError: if the folder holds something else, or a store with other settings.

    Example:
        >>> images = nd.data.open_images("images")
        >>> work = nd.data.Encoding(teacher, images, "encoded", nd.data.EncodeConfig(), "toy")
        >>> nd.data.complete(work, progress=False).paired
        False
    """

    def __init__(
        self,
        pipeline: Pipeline,
        images: Captioned,
        output: str | Path,
        config: EncodeConfig,
        teacher_name: str,
    ) -> None:
        check_folder(Path(output), (MANIFEST, DRAFT))
        self._pipeline, self._images, self._config = pipeline, images, config
        self._texts = list(dict.fromkeys(images.captions))
        for text in self._texts:
            pipeline.check_prompt(text)
        number = {text: i for i, text in enumerate(self._texts)}
        shape = pipeline.latent_shape
        self._size = pipeline.resolution
        named = [part for pair in zip(images.names, images.captions, strict=True) for part in pair]
        source = Encoded(
            num_samples=len(images),
            teacher=teacher_name,
            vae=pipeline.vae_fingerprint(),
            text_encoders=pipeline.text_fingerprint(),
            image_size=self._size,
            seed=config.seed,
            batch_size=config.batch_size,
            images_hash=hash_texts(named),
            code_version=code_version(),
        )
        manifest = Manifest(
            shard_size=config.shard_size,
            columns={
                "x0": Column(config.dtype, tuple(shape)),
                "noise": Column(config.dtype, tuple(shape), "draws"),
            },
            conditions=prompt_columns(pipeline, self._texts[0], config.dtype, config.embeddings),
            texts_hash=hash_texts(self._texts),
            sources=(source,),
        )
        ids = np.array([number[text] for text in images.captions])
        super().__init__(output, manifest, len(self._texts), ids)

    def _prompt_rows(self, rows: range) -> Iterator[Rows]:
        config = self._config
        return encoded_prompts(self._pipeline, self._texts, rows, config.batch_size, config.dtype)

    def _pair_rows(self, rows: range, advance: Callable[[int], object]) -> Iterator[Rows]:
        config, shape = self._config, self._pipeline.latent_shape
        dtype = DTYPES[config.dtype]
        for batch in batches(rows, config.batch_size):
            pixels = torch.stack([fitted(self._images.image(i), self._size) for i in batch])
            x0 = self._pipeline.encode_image(pixels, config.batch_size).to("cpu", dtype)
            check_finite({"x0": x0}, batch, "images", config.dtype)
            draws = Draws(config.seed, 0, torch.tensor(batch), purpose="pairs")
            noise = draws.normal("noise", shape).to(dtype)
            ids = self._prompt_ids[batch.start : batch.stop].tolist()
            yield {"index": list(batch), "prompt_id": ids, "x0": list(x0), "noise": list(noise)}
            advance(len(batch))


def encode(
    pipeline: Pipeline,
    images: Captioned,
    output: str | Path,
    config: EncodeConfig | None = None,
    *,
    teacher_name: str,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> PairStore:
    """Encodes images with captions, or completes what was begun with the same settings.

    Args:
        pipeline: whose VAE and text encoder are used.
        images: from `open_images`.
        output: folder of the store; missing, empty, or begun with these settings.
        config: how; None takes the defaults.
        teacher_name: recorded in the manifest, for people.
        rank: number of this worker, as in `generate`.
        world_size: how many workers there are.
        progress: shows bars with rate and time left, in worker 0.

    Returns:
        The finished store.

    Raises:
        ValueError: if an image or caption cannot be read or encoded; the message names it.
        FileExistsError: if the folder holds something else, or a store with other settings.
        PermissionError: if the folder cannot be written.

    Example:
        >>> nd.data.encode(teacher, nd.data.open_images("images"), "real", teacher_name="toy", progress=False)
        PairStore('real', 2 pairs of 2 prompts, x0 float16 (4, 8, 8))
    """
    work = Encoding(pipeline, images, output, config or EncodeConfig(), teacher_name)
    return complete(work, rank, world_size, progress)
