"""The formats that `pair_store.py` compares: how each is written, and how it is read as a trainer needs it.

Samples are like those of Nitro's scripts for PixArt-Sigma. `run_gen_data_pixart.sh` leaves `--noise_size` at
64, so latent and noise are 4 x 64 x 64 (512 pixels) in float16; T5 embeddings are 300 x 4096 in float16, and
their mask 300 in int64 (https://github.com/AMD-AIG-AIMA/AMD-Diffusion-Distillation,
core/tools/gen_synthetic_data.py). The model itself is one of 1024 pixels: 4 x 128 x 128 is measured too.
Token counts are log-normal with median 45 and sigma 0.6, rounded and cut at 300. Values are standard normal,
so nothing can be compressed, and every sample has its own prompt, so nothing is shared. The .pth files hold
all 300 tokens, as Nitro's do; webdataset gets trimmed tensors.

All readers give batches of 8 in a random order as float32, padded. Those of .pth files are padded to 300
tokens, as they lie there (Nitro's Dataset and default_collate); the others to the longest prompt of the
batch. webdataset shuffles as it does: the order of the tar files (of 256 samples) and a buffer of 100
samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from nitrodistill.data import (
    BatchStream,
    Column,
    Generated,
    Grid,
    Manifest,
    PairStore,
    Prefetch,
    Work,
    complete,
)
from nitrodistill.data.arrow import Rows
from nitrodistill.data.text import hash_texts
from nitrodistill.method import Draws

__all__ = ["BATCH", "FORMATS", "KEPT", "LARGE", "READERS", "Samples", "Synthetic"]

TOKENS, WIDTH, MEDIAN, SIGMA = 300, 4096, 45, 0.6
BATCH = 8
KEPT = 1024
"""Samples that are drawn once and kept, so that writing them is timed without their making."""
LARGE = (4, 128, 128)
"""The latent of 1024 pixels."""


@dataclass(frozen=True)
class Samples:
    """Synthetic samples; sample i is a function of i."""

    count: int
    latent: tuple[int, int, int] = (4, 64, 64)
    width: int = WIDTH
    longest: int = TOKENS

    def length(self, i: int) -> int:
        """Tokens of sample i's prompt."""
        drawn = np.random.default_rng([1, i]).lognormal(np.log(MEDIAN), SIGMA)
        return int(np.clip(round(drawn), 1, self.longest))

    @lru_cache(maxsize=KEPT)  # noqa: B019 (a benchmark's samples live as long as it)
    def text(self, i: int) -> Tensor:
        """Embeddings `(L, width)` of sample i's prompt, float16."""
        rng = np.random.default_rng([2, i])
        values = rng.standard_normal((self.length(i), self.width), np.float32)
        return torch.from_numpy(values).half()

    @lru_cache(maxsize=KEPT)  # noqa: B019
    def pair(self, i: int) -> tuple[Tensor, Tensor]:
        """x0 and noise of sample i, float16."""
        x0 = np.random.default_rng([3, i]).standard_normal(self.latent, np.float32)
        noise = Draws(0, 0, torch.tensor([i])).normal("noise", self.latent)[0]
        return torch.from_numpy(x0).half(), noise.half()


class Synthetic(Work):
    """Writes samples into a store as `generate` does, without a teacher."""

    def __init__(
        self, output: Path, samples: Samples, *, int8: bool = False, drawn: bool = False,
        shard_size: int = 256, prompts: int | None = None, batch: int = 32,
    ) -> None:  # fmt: skip
        self._samples = samples
        self._batch = batch
        count = samples.count if prompts is None else prompts
        source = Generated(
            num_samples=samples.count, teacher="synthetic", fingerprint="", prediction_type="epsilon",
            sampler="ode", sampler_settings="", num_inference_steps=1, guidance=1.0,
            grid=Grid("", (), (), ()), text_encoders="",
            compute="float32", seed=0, batch_size=batch, num_prompts=count, prompts_hash="", code_version="",
        )  # fmt: skip
        manifest = Manifest(
            shard_size=shard_size,
            columns={
                "x0": Column("float16", samples.latent),
                "noise": Column("float16", samples.latent, "draws" if drawn else "raw"),
            },
            conditions={
                "encoder_hidden_states": Column(
                    "float16", (None, samples.width), "int8" if int8 else "raw"
                ),
                "encoder_attention_mask": Column("int64", (None,)),
            },
            texts_hash=hash_texts([f"prompt {i}" for i in range(count)]),
            sources=(source,),
        )
        super().__init__(output, manifest, count, np.arange(samples.count) % count)

    def _prompt_rows(self, rows: range) -> Iterator[Rows]:
        for start in range(rows.start, rows.stop, self._batch):
            ids = list(range(start, min(start + self._batch, rows.stop)))
            texts = [self._samples.text(i) for i in ids]
            yield {
                "prompt_id": ids,
                "text": [f"prompt {i}" for i in ids],
                "condition.encoder_hidden_states": texts,
                "condition.encoder_attention_mask": [
                    torch.ones(len(t), dtype=torch.int64) for t in texts
                ],
            }

    def _pair_rows(self, rows: range, advance: Callable[[int], object]) -> Iterator[Rows]:
        for start in range(rows.start, rows.stop, self._batch):
            ids = list(range(start, min(start + self._batch, rows.stop)))
            x0, noise = zip(*(self._samples.pair(i) for i in ids), strict=True)
            prompts = self._prompt_ids[ids].tolist()
            yield {"index": ids, "prompt_id": prompts, "x0": x0, "noise": noise}
            advance(len(ids))


def write_store(folder: Path, samples: Samples, **options: bool) -> None:
    """Ours."""
    complete(Synthetic(folder, samples, **options), progress=False)


def write_pth(folder: Path, samples: Samples) -> None:
    """Three files a sample, 300 tokens each."""
    for name in ("latents", "noises", "txt_embs"):
        (folder / name).mkdir(parents=True)
    for i in range(samples.count):
        x0, noise = samples.pair(i)
        torch.save(x0, folder / "latents" / f"{i}.pth")
        torch.save(noise, folder / "noises" / f"{i}.pth")
        torch.save(_padded(samples, i), folder / "txt_embs" / f"{i}.pth")


def write_tar(folder: Path, samples: Samples) -> None:
    """webdataset: trimmed tensors as .npy in tar files of 256 samples."""
    import webdataset

    folder.mkdir(parents=True)
    for start in range(0, samples.count, 256):
        with webdataset.TarWriter(str(folder / f"{start // 256:06d}.tar")) as sink:
            for i in range(start, min(start + 256, samples.count)):
                x0, noise = samples.pair(i)
                arrays = {"x0.npy": x0, "noise.npy": noise, "text.npy": samples.text(i)}
                sink.write(
                    {"__key__": f"{i:09d}", **{n: value.numpy() for n, value in arrays.items()}}
                )


def _padded(samples: Samples, i: int) -> dict[str, Tensor]:
    text = samples.text(i)
    full = torch.zeros(samples.longest, samples.width, dtype=torch.float16)
    full[: len(text)] = text
    mask = (torch.arange(samples.longest) < len(text)).long()
    return {"encoder_hidden_states": full, "encoder_attention_mask": mask}


class _Files(Dataset[Any]):
    """Nitro's way: three files, converted to float32."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = len(os.listdir(folder / "latents"))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Any:
        x0, noise, text = (
            torch.load(self._folder / name / f"{i}.pth", weights_only=True)
            for name in ("latents", "noises", "txt_embs")
        )
        text["encoder_hidden_states"] = text["encoder_hidden_states"].float()
        return x0.float(), noise.float(), text


class _Batches(Dataset[Any]):
    """Batches by number as a Dataset."""

    def __init__(self, read: Callable[[int], Any], count: int) -> None:
        self._read, self._count = read, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Any:
        return self._read(i)


def _stream(folder: Path, epoch: int) -> tuple[Callable[[int], Any], int]:
    """Batch i of ours as `(x0, noise, ...)`, and how many there are."""
    stream = BatchStream(PairStore.open(folder), seed=epoch, batch_size=BATCH)

    def read(i: int) -> Any:
        pairs = stream(i).pairs
        assert pairs is not None
        return pairs.x0, pairs.noise, pairs.condition.tensors

    return read, len(stream.source) // BATCH


def _pickles(folder: Path, epoch: int) -> tuple[Callable[[int], Any], int]:
    """Batch i of the .pth files, and how many there are."""
    files = _Files(folder)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(epoch)).tolist()

    def read(i: int) -> Any:
        return default_collate([files[k] for k in order[i * BATCH : (i + 1) * BATCH]])

    return read, len(files) // BATCH


def _threads(batches: tuple[Callable[[int], Any], int], workers: int) -> Iterator[Any]:
    read, count = batches
    if not workers:
        yield from map(read, range(count))
        return
    with Prefetch(read, count, workers) as ahead:
        yield from map(ahead, range(count))


def read_store(folder: Path, workers: int, epoch: int) -> Iterable[Any]:
    """Ours, in threads: as the trainer does."""
    return _threads(_stream(folder, epoch), workers)


def read_store_in_processes(folder: Path, workers: int, epoch: int) -> Iterable[Any]:
    """Ours through torch's DataLoader."""
    return DataLoader(_Batches(*_stream(folder, epoch)), batch_size=None, num_workers=workers)


def read_pth(folder: Path, workers: int, epoch: int) -> Iterable[Any]:
    """.pth files through torch's DataLoader: as Nitro's trainer does, with `--dataloader_num_workers`."""
    return DataLoader(
        _Files(folder), BATCH, shuffle=True, num_workers=workers, drop_last=True,
        generator=torch.Generator().manual_seed(epoch),
    )  # fmt: skip


def read_pth_in_threads(folder: Path, workers: int, epoch: int) -> Iterable[Any]:
    """.pth files in threads, as ours are read."""
    return _threads(_pickles(folder, epoch), workers)


def read_tar(folder: Path, workers: int, epoch: int) -> Iterable[Any]:
    """Batches from tar files through torch's DataLoader."""
    import webdataset

    files = sorted(str(path) for path in folder.glob("*.tar"))
    data = webdataset.WebDataset(
        files, shardshuffle=len(files), seed=epoch, empty_check=False, nodesplitter=None
    )
    data = data.shuffle(100).decode().to_tuple("x0.npy", "noise.npy", "text.npy")
    return DataLoader(data.batched(BATCH, _collate), batch_size=None, num_workers=workers)  # type: ignore[arg-type]


def _collate(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Any:
    x0, noise, texts = zip(*rows, strict=True)
    out = torch.zeros(len(rows), max(map(len, texts)), texts[0].shape[1])
    mask = torch.zeros(out.shape[:2], dtype=torch.int64)
    for k, text in enumerate(texts):
        out[k, : len(text)] = torch.from_numpy(text)
        mask[k, : len(text)] = 1
    return (
        torch.from_numpy(np.stack(x0)).float(),
        torch.from_numpy(np.stack(noise)).float(),
        out,
        mask,
    )


FORMATS: dict[str, Callable[[Path, Samples], None]] = {
    "three .pth": write_pth,
    "webdataset (trimmed)": write_tar,
    "store": write_store,
    "store, drawn noise": lambda f, s: write_store(f, s, drawn=True),
    "store, int8": lambda f, s: write_store(f, s, int8=True),
    "store, int8, drawn noise": lambda f, s: write_store(f, s, int8=True, drawn=True),
}
"""Name -> what writes it."""

READERS: dict[tuple[str, str], Callable[[Path, int, int], Iterable[Any]]] = {
    ("three .pth", "processes"): read_pth,
    ("three .pth", "threads"): read_pth_in_threads,
    ("webdataset (trimmed)", "processes"): read_tar,
    ("store", "processes"): read_store_in_processes,
    ("store", "threads"): read_store,
    ("store, drawn noise", "threads"): read_store,
    ("store, int8", "threads"): read_store,
    ("store, int8, drawn noise", "threads"): read_store,
}
"""Format and kind of worker -> what reads it: `(folder, workers, epoch)` -> batches; 0: in the process itself."""
