"""Images with captions: a folder, or tar files as webdataset writes them. Nothing is unpacked or executed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

__all__ = ["Captioned", "fitted", "open_images"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Endings of what is taken for an image."""


@dataclass(frozen=True)
class _Part:
    """Bytes in a file: all of it, or a member of a tar file."""

    file: Path
    start: int = 0
    size: int = -1

    def read(self) -> bytes:
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            return stream.read(self.size)


@dataclass(frozen=True)
class Captioned:
    """Images with a caption each, in a fixed order.

    Attributes:
        names: of the images, inside of their folder or tar file.
        captions: of each.
    """

    names: tuple[str, ...]
    captions: tuple[str, ...]
    _parts: tuple[_Part, ...]

    def __len__(self) -> int:
        return len(self.names)

    def image(self, i: int) -> Image.Image:
        """Image i in RGB, turned as its EXIF data say.

        Raises:
            ValueError: if it cannot be read.
        """
        try:
            with Image.open(io.BytesIO(self._parts[i].read())) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"the image {self.names[i]} in {str(self._parts[i].file)!r} cannot be read "
                f"({str(error)[:80]}); repair or remove it, with its caption."
            ) from error


def open_images(path: str | Path) -> Captioned:
    """Lists images with captions.

    Args:
        path: a folder with images and, beside each, a text file of the same name with its caption, in any
            depth; a tar file as webdataset writes them (`KEY.jpg`, `KEY.txt`); or a folder of tar files.

    Raises:
        FileNotFoundError: if there is nothing there.
        ValueError: if there are no images, a caption is missing or no UTF-8, or a tar file is damaged.
    """
    root = Path(path)
    if root.is_file():
        members = _members([root])
    elif root.is_dir():
        tars = sorted(root.glob("*.tar"))
        files = [p for p in sorted(root.rglob("*")) if p.is_file()]
        members = (
            _members(tars) if tars else {p.relative_to(root).as_posix(): _Part(p) for p in files}
        )
    else:
        raise FileNotFoundError(
            f"no images at {str(path)!r}; give a folder of images with captions, or tar files."
        )
    return _paired(members, root)


def fitted(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """`(3, H, W)` in [-1, 1]: scaled so that it covers `size` (height, width), the middle cut out."""
    height, width = size
    resample = Image.Resampling.LANCZOS
    pixels = np.asarray(ImageOps.fit(image, (width, height), resample), np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def _members(tars: Sequence[Path]) -> dict[str, _Part]:
    """Name -> bytes of every file in uncompressed tar files; a name is led by the tar file's stem."""
    parts = {}
    for path in tars:
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        if member.offset_data + member.size > path.stat().st_size:
                            raise tarfile.ReadError("its end is missing")
                        name = f"{path.stem}/{member.name}"
                        parts[name] = _Part(path, member.offset_data, member.size)
        except (tarfile.TarError, OSError, EOFError, UnicodeError) as error:
            raise ValueError(
                f"{str(path)!r} is no whole, uncompressed tar file ({str(error)[:80]})."
            ) from error
    return parts


def _paired(members: dict[str, _Part], root: Path) -> Captioned:
    names = [name for name in members if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not names:
        raise ValueError(
            f"{str(root)!r} holds no images; their names must end in {', '.join(SUFFIXES)}."
        )
    captions = []
    for name in names:
        text = str(PurePosixPath(name).with_suffix(".txt"))
        if text not in members:
            raise ValueError(
                f"the image {name} in {str(root)!r} has no caption; write it to {text}."
            )
        try:
            captions.append(" ".join(members[text].read().decode("utf-8-sig").split()))
        except UnicodeDecodeError as error:
            raise ValueError(f"the caption {text} in {str(root)!r} is not UTF-8.") from error
    return Captioned(tuple(names), tuple(captions), tuple(members[name] for name in names))
