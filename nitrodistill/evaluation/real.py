"""Real pictures: drawn anew for each prompt, given as a tensor, or read from a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nitrodistill.checks import check_whole
from nitrodistill.data.images import SUFFIXES, fitted, image_files, read_image
from nitrodistill.evaluation.cache import keep, kept
from nitrodistill.evaluation.features import Extractor
from nitrodistill.evaluation.meters import Meter
from nitrodistill.files import blake2

RealImages = Callable[[Sequence[str], Tensor], Tensor]
"""`(B prompts, (B,) sample numbers) -> (B, 3, H, W)` in [-1, 1]; equal arguments give equal pictures."""

VERSION = 2  # of what is measured of a folder: another number makes caches anew


class ImageFolder:
    """The pictures below a folder, in the order of their names.

    Args:
        path: the folder; images in it and below it, read as `nitrodistill encode` reads them.
        size: side in pixels that every picture is brought to: its shorter side is resized (bicubic,
            antialiased) and its middle is cut out. None leaves them as they are; then all must have
            one resolution.

    Raises:
        FileNotFoundError: if there is no such folder, or no picture in it.
        ValueError: if `size` is below 2, or something in the folder is no file.

    Example:
        >>> len(nd.evaluation.ImageFolder("images", size=32).files)
        2
    """

    def __init__(self, path: str | Path, size: int | None = None) -> None:
        self.path: Path = Path(path)
        self.size: int | None = size
        if size is not None:
            check_whole("size", size, 2)
        if not self.path.is_dir():
            raise FileNotFoundError(f"no folder {str(path)!r} with real pictures.")
        self.files: tuple[Path, ...] = tuple(image_files(self.path))
        if len(self.files) < 2:
            raise FileNotFoundError(
                f"the folder {str(path)!r} holds {len(self.files)} pictures ({', '.join(SUFFIXES)}); a "
                "distribution needs at least 2."
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
        """Picture `number`, `(3, H, W)` in [-1, 1].

        Raises:
            ValueError: if it cannot be read, or has another resolution than the first one.
        """
        file = self.files[number]
        size = None if self.size is None else (self.size, self.size)
        return fitted(read_image(file.read_bytes(), repr(str(file))), size)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All pictures: their numbers `(B,)` and the pictures `(B, 3, H, W)`.

        Raises:
            ValueError: if they have different resolutions.
        """
        shape = self[0].shape
        for rows in torch.arange(len(self)).split(batch_size):
            images = [self[int(row)] for row in rows]
            for row, image in zip(rows.tolist(), images, strict=True):
                if image.shape != shape:
                    sizes = [f"{x[2]} x {x[1]}" for x in (shape, image.shape)]
                    raise ValueError(
                        f"the pictures have different resolutions ({self.files[0].name!r} {sizes[0]}, "
                        f"{self.files[row].name!r} {sizes[1]}); give a size that all are brought to."
                    )
            yield rows, torch.stack(images)

    def fingerprint(self) -> str:
        """A hash of names, sizes and times of the files, and of what is done to them."""
        about = [(file.relative_to(self.path).as_posix(), file.stat()) for file in self.files]
        files = [f"{name}:{stat.st_size}:{stat.st_mtime_ns};" for name, stat in about]
        return blake2([f"{self.size};", *files]).hex()


def measure_folder(
    folder: ImageFolder,
    extractors: Sequence[Extractor],
    *,
    batch_size: int,
    device: torch.device,
    cache: Path | None = None,
    progress: bool = True,
) -> Meter:
    """Measures the pictures of a folder, or reads what was measured of them before.

    Args:
        folder: the pictures; the even ones are the first half.
        extractors: feature extractors; if one has no fingerprint, nothing is kept.
        batch_size: pictures at a time.
        device: of the extractors.
        cache: a folder for `real-<hash>.safetensors`; the hash is of the pictures and the extractors.
        progress: show a bar.
    """
    from nitrodistill.progress import progress_bar

    path = None if cache is None else _cache_file(cache, folder, extractors)
    known = None if path is None else kept(path)
    if known is not None:
        return Meter.from_state(extractors, known)
    meter = Meter(0, extractors)
    with progress_bar(total=len(folder), desc="real pictures", unit="image", show=progress) as bar:
        for rows, images in folder.batches(batch_size):
            meter.update(images.to(device), (), rows)
            bar.update(len(rows))
    if path is not None:
        keep(path, meter.state())
    return meter


def _cache_file(cache: Path, folder: ImageFolder, extractors: Sequence[Extractor]) -> Path | None:
    prints = [(e.name, e.fingerprint) for e in extractors]
    if any(fingerprint is None for _, fingerprint in prints):
        return None
    text = f"{VERSION};{folder.fingerprint()};{prints}"
    return cache / f"real-{blake2(text, 8).hex()}.safetensors"


def check_resolution(real: Tensor, drawn: Tensor) -> None:
    """Checks that real pictures `(*, H, W)` are as large as those that are drawn.

    Raises:
        ValueError: if they are not.
    """
    if real.shape[-2:] != drawn.shape[-2:]:
        sizes = [f"{x.shape[-1]} x {x.shape[-2]}" for x in (real, drawn)]
        raise ValueError(
            f"the real pictures are {sizes[0]} pixels and the teacher's {sizes[1]}; bring the real ones to "
            "that size."
        )
