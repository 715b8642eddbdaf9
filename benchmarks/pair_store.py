"""The pair store against three .pth files a sample (as Nitro's scripts write), and webdataset.

    python benchmarks/pair_store.py                 all, some ten minutes; writes results/ and docs/pair_store.md
    python benchmarks/pair_store.py --quick         small sizes; writes nothing
    python benchmarks/pair_store.py --many 1000000  how many tiny samples the memory is measured on

Samples are like PixArt-Sigma's: latent and noise of 4 x 64 x 64 (512 pixels) in float16, T5 embeddings of 4096 in
float16 and their mask. Token counts are log-normal with median 45 and sigma 0.6, rounded and cut at 300. Values
are standard normal, so nothing can be compressed, and every sample has its own prompt, so nothing is shared.
The .pth files hold all 300 tokens, as Nitro's do; webdataset gets the trimmed tensors, as .npy in tar files.

Reading is what a trainer needs: batches of 8 in a random order, padded, as float32. Each competitor reads through
torch's DataLoader, from the page cache: with 1 and 4 worker processes for samples a second, counted from the
arrival of the first batch, and in the process itself for CPU time. webdataset shuffles as it does: the order of
the tar files (of 256 samples, so that 512 samples give work to two of its workers) and a buffer of 100 samples;
the others read in a true random order.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import _measure as measure
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nitrodistill.data import (
    Column,
    Generated,
    Grid,
    Manifest,
    PairStore,
    PairStream,
    Work,
    complete,
)
from nitrodistill.data.arrow import Rows
from nitrodistill.data.codec import relative_error
from nitrodistill.data.text import hash_texts
from nitrodistill.method import Draws

DOCS = Path(__file__).parents[1] / "docs" / "pair_store.md"
TOKENS, WIDTH, MEDIAN, SIGMA = 300, 4096, 45, 0.6
BATCH = 8
WORKERS = (1, 4)


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

    def text(self, i: int) -> Tensor:
        """Embeddings `(L, width)` of sample i's prompt, float16."""
        rng = np.random.default_rng([2, i])
        values = rng.standard_normal((self.length(i), self.width), np.float32)
        return torch.from_numpy(values).half()

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
            sampler="ode", steps=1, guidance=1.0, grid=Grid("", (), (), ()), compute="float32", seed=0,
            batch_size=batch, num_prompts=count, prompts_hash="", code_version="",
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


class _Batches(Dataset[Any]):
    """Our stream as a Dataset of batches."""

    def __init__(self, folder: Path, epoch: int) -> None:
        self._stream = PairStream(PairStore.open(folder), seed=epoch, batch_size=BATCH)

    def __len__(self) -> int:
        return len(self._stream.source) // BATCH

    def __getitem__(self, i: int) -> Any:
        batch = self._stream(i)
        return batch.x0, batch.noise, batch.condition.tensors


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


def read_store(folder: Path, workers: int, epoch: int) -> Iterable[Any]:
    """Batches of ours."""
    return DataLoader(_Batches(folder, epoch), batch_size=None, num_workers=workers)


def read_pth(folder: Path, workers: int, epoch: int) -> Iterable[Any]:
    """Batches from files, in a random order."""
    generator = torch.Generator().manual_seed(epoch)
    return DataLoader(
        _Files(folder),
        BATCH,
        shuffle=True,
        num_workers=workers,
        generator=generator,
        drop_last=True,
    )


def read_tar(folder: Path, workers: int, epoch: int) -> Iterable[Any]:
    """Batches from tar files."""
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


@dataclass(frozen=True)
class Row:
    """One format's result; a ratio is the median and the 20 and 80 percent quantiles over the rounds.

    Attributes:
        name: of the format.
        bytes_per_sample: on disk.
        write_cpu_ms: for a sample, the making of its random numbers included.
        read_cpu_ms: for a sample, in one process.
        cpu_ratio: .pth's CPU time over this one's.
        samples_per_s: by number of workers, as in `WORKERS`.
        ratios: this one's samples a second over .pth's.
    """

    name: str
    bytes_per_sample: float
    write_cpu_ms: float
    read_cpu_ms: float
    cpu_ratio: tuple[float, float, float]
    samples_per_s: list[float]
    ratios: list[tuple[float, float, float]]


FORMATS: dict[str, tuple[Callable[..., None], Callable[..., Iterable[Any]]]] = {
    "three .pth": (write_pth, read_pth),
    "webdataset (trimmed)": (write_tar, read_tar),
    "store": (write_store, read_store),
    "store, int8": (lambda f, s: write_store(f, s, int8=True), read_store),
    "store, int8, drawn noise": (lambda f, s: write_store(f, s, int8=True, drawn=True), read_store),
}


def compare(root: Path, samples: Samples, rounds: int) -> list[Row]:
    """Writes and reads every format; rounds are interleaved, and ratios are taken within a round."""
    writes, sizes = {}, {}
    for name, (write, _) in FORMATS.items():
        start = time.process_time()
        write(root / name, samples)
        writes[name] = 1e3 * (time.process_time() - start) / samples.count
        files = [p.stat().st_size for p in (root / name).rglob("*") if p.is_file()]
        sizes[name] = sum(files) / samples.count
        print(f"wrote: {name}, {sizes[name] / 1024:.1f} KiB a sample", flush=True)
    walls: dict[tuple[str, int], list[float]] = {(n, w): [] for n in FORMATS for w in WORKERS}
    cpus: dict[str, list[float]] = {name: [] for name in FORMATS}
    for epoch in range(rounds + 1):
        names = list(FORMATS)
        for name in names[epoch % len(names) :] + names[: epoch % len(names)]:
            for workers in (0, *WORKERS):
                wall, cpu = _time(FORMATS[name][1](root / name, workers, epoch), samples.count)
                if not epoch:  # the first fills the page cache
                    continue
                if workers:
                    walls[name, workers].append(wall)
                else:
                    cpus[name].append(cpu)
        print(f"round {epoch} of {rounds}", flush=True)
    return [
        Row(
            name,
            sizes[name],
            writes[name],
            1e3 * statistics.median(cpus[name]),
            _ratio(cpus["three .pth"], cpus[name]),
            [1 / statistics.median(walls[name, w]) for w in WORKERS],
            [_ratio(walls["three .pth", w], walls[name, w]) for w in WORKERS],
        )
        for name in FORMATS
    ]


def _ratio(theirs: list[float], ours: list[float]) -> tuple[float, float, float]:
    spread = measure.Spread.of(a / b for a, b in zip(theirs, ours, strict=True))
    return spread.median, spread.low, spread.high


def _time(batches: Iterable[Any], count: int) -> tuple[float, float]:
    """Wall and CPU seconds of this process for each sample behind the first batch."""
    gc.collect()
    reading = iter(batches)
    first = len(next(reading)[0])
    wall, cpu, seen = time.perf_counter(), time.process_time(), 0
    for batch in reading:
        seen += len(batch[0])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if first + seen < count - BATCH:
        raise RuntimeError(f"{first + seen} of {count} samples were read.")
    return wall / seen, cpu / seen


def memory(root: Path, count: int) -> list[tuple[str, float, float]]:
    """Anonymous and whole resident memory (MiB) while tiny samples are written, and read in a random order."""
    folder = root / "many"
    samples = Samples(count, latent=(1, 4, 4), width=16, longest=8)
    points: list[tuple[str, float, float]] = []
    every = max(1, count // 10)

    def note(what: str) -> None:
        fields = {n: measure._status(n) / 1024 for n in ("RssAnon", "VmRSS")}
        points.append((what, fields["RssAnon"], fields["VmRSS"]))
        print(
            f"{what}: {fields['RssAnon']:.0f} MiB anonymous, {fields['VmRSS']:.0f} resident",
            flush=True,
        )

    work = Synthetic(folder, samples, shard_size=4096, prompts=10_000, batch=256)
    work.prepare()
    for k in work.prompt_files:
        work.write_prompts(k)
    written = 0
    note("before writing")
    for k in work.shards:
        work.write_pairs(k)
        before, written = written, work.samples(k).stop
        if before // every < written // every:
            note(f"written {written:,}")
    work.finish()
    note("finished")
    del work
    stream = PairStream(PairStore.open(folder), seed=0, batch_size=256)
    for i in range(count // 256):
        stream(i)
        if (i + 1) * 256 // every > i * 256 // every:
            note(f"read {(i + 1) * 256:,}")
    shutil.rmtree(folder)
    return points


def int8_error(folder: Path) -> tuple[float, float]:
    """Mean and largest relative error of the embeddings in a store."""
    store = PairStore.open(folder)
    column = store.manifest.conditions["encoder_hidden_states"]
    errors = [
        relative_error(file.tensors(row)["condition.encoder_hidden_states"], column)
        for file in store._prompts.files()
        for row in range(len(file))
    ]
    return statistics.mean(errors), max(errors)


def tables(rows: list[Row], large: dict[str, float]) -> str:
    """The table of the formats."""
    base = rows[0].bytes_per_sample
    header = (
        "format", "KiB a sample", "fewer bytes", "at 1024 px", "write CPU ms", "read CPU ms", "of .pth",
        "samples/s, 1 worker", "of .pth", "samples/s, 4 workers", "of .pth",
    )  # fmt: skip
    body = []
    for row in rows:
        rates = []
        for rate, ratio in zip(row.samples_per_s, row.ratios, strict=True):
            rates += [f"{rate:.0f}", _times(ratio)]
        fewer = large["three .pth"] / large[row.name]
        body.append(
            (
                row.name,
                f"{row.bytes_per_sample / 1024:.0f}",
                f"{base / row.bytes_per_sample:.1f}x",
                f"{fewer:.1f}x",
                f"{row.write_cpu_ms:.1f}",
                f"{row.read_cpu_ms:.2f}",
                _times(row.cpu_ratio),
                *rates,
            )
        )
    return measure.markdown_table(header, body)


def _times(ratio: tuple[float, float, float]) -> str:
    return f"{ratio[0]:.1f}x ({ratio[1]:.1f}-{ratio[2]:.1f})"


def summary(errors: tuple[float, float], points: list[tuple[str, float, float]]) -> str:
    """What the options lose, and the memory."""
    lost = (
        f"int8 embeddings of standard normal values: relative error {errors[0]:.2%} in the mean, "
        f"{errors[1]:.2%} at most. Drawn noise: no difference on the machine that made it."
    )
    lines = [(what, f"{anonymous:.0f}", f"{whole:.0f}") for what, anonymous, whole in points]
    table = measure.markdown_table(("tiny samples", "anonymous MiB", "resident MiB"), lines)
    return f"{lost}\n\n{table}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; write nothing")
    parser.add_argument("--samples", type=int, default=512, help="for bytes and throughput")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--many", type=int, default=1_000_000, help="tiny samples")
    parser.add_argument("--folder", default=None, help="where to write; needs 3 GB for 512 samples")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    count, rounds, many = options.samples, options.rounds, options.many
    if options.quick:
        count, rounds, many = 64, 2, 20_000
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        points = memory(root, many)
        rows = compare(root, Samples(count), rounds)
        errors = int8_error(root / "store, int8")
        large = {}
        for name, (write, _) in FORMATS.items():
            folder = root / "large" / name
            write(folder, Samples(min(count, 64), latent=(4, 128, 128)))
            large[name] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    text = f"{tables(rows, large)}\n\n{summary(errors, points)}"
    print(text)
    if not options.quick:
        about = ", ".join(f"{k} {v}" for k, v in measure.environment().items())
        about = f"Measured on: {about}; {count} samples, {rounds} rounds."
        measure.write_json("pair_store", rows, {"int8_error": errors, "memory": points})
        measure.replace_between_markers(DOCS, "pair-store-benchmark", f"{about}\n\n{text}")


if __name__ == "__main__":
    main()
