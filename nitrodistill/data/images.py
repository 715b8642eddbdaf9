"""Images: a folder, or with captions tar files as webdataset writes them; nothing is unpacked, run or skipped.

One reader for `encode` and `evaluate`: an image is turned as its EXIF data say, 16 bits of grey become 8, and what
is transparent lies on white. What has no one meaning (several frames, floating-point numbers) is refused.
"""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""Endings of what is taken for an image."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""What is decoded, whatever the ending says: no EPS, which would start another program."""
BACKGROUND = "white"


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

    Example:
        >>> nd.data.open_images("images").captions
        ('a small red circle on a black background', 'a large blue ring on a gray background')
    """

    names: tuple[str, ...]
    captions: tuple[str, ...]
    _parts: tuple[_Part, ...]

    def __len__(self) -> int:
        return len(self.names)

    def image(self, i: int) -> Image.Image:
        """Image i, see `read_image`.

        Raises:
            ValueError: if it cannot be read; the message names it.
        """
        part = self._parts[i]
        return read_image(part.read(), f"{self.names[i]!r} in {str(part.file)!r}")


def read_image(data: bytes, name: str) -> Image.Image:
    """The image in the bytes of a file, in RGB: see above.

    Args:
        data: the bytes.
        name: what messages call it.

    Raises:
        ValueError: if it is damaged, of another format, or not one picture of whole numbers.
    """
    try:
        image = _decoded(data)
    except Exception as error:  # a decoder raises whatever it meets in a damaged file
        raise ValueError(
            f"the image {name} cannot be read ({' '.join(str(error).split())[:80]}); repair or remove it, with "
            "its caption."
        ) from error
    if image.mode.startswith("I;16"):
        levels = (np.asarray(image, np.float64) / 257).round().astype(np.uint8)
        image = Image.fromarray(levels)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"the image {name} holds numbers of 32 bits, whose range is not known; save it with 8 or 16 bits."
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    below = Image.new("RGBA", image.size, BACKGROUND)
    return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")


def _decoded(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torn EXIF data: which way up is not known
        try:
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
        # an MPO is a JPEG with its preview
        frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
        if frames != 1:
            raise ValueError(f"it has {frames} frames, and one is needed")
        image = ImageOps.exif_transpose(opened)
    # older versions of Pillow open a PNG of 16 bits as one of 32
    is_wide = opened.format == "PNG" and image.mode == "I"
    return image.convert("I;16") if is_wide else image


def open_images(path: str | Path) -> Captioned:
    """Lists images with captions.

    Args:
        path: a folder with images and, beside each, a text file of the same name with its caption, in any
            depth; a tar file as webdataset writes them (`KEY.jpg`, `KEY.txt`); or a folder of tar files.

    Raises:
        FileNotFoundError: if there is nothing there.
        ValueError: if there are no images, a caption is missing or no UTF-8, a tar file is damaged, or something
            would be left out: a link, a pipe, a name that comes twice, images beside tar files.

    Example:
        >>> images = nd.data.open_images("images")  # each picture has a .txt beside it
        >>> len(images.names), images.captions[0]
        (2, 'a small red circle on a black background')
    """
    root = Path(path)
    if root.is_file():
        members = _members([root])
    elif root.is_dir():
        tars, images = sorted(root.glob("*.tar")), image_files(root)
        if tars and images:
            raise ValueError(
                f"{str(root)!r} holds tar files, and images beside them ({str(images[0])!r}); put them into "
                "folders of their own."
            )
        files = [p for p in sorted(root.rglob("*")) if p.is_file()]
        members = (
            _members(tars) if tars else {p.relative_to(root).as_posix(): _Part(p) for p in files}
        )
    else:
        raise FileNotFoundError(
            f"no images at {str(path)!r}; give a folder of images with captions, or tar files."
        )
    return _paired(members, root)


def image_files(root: Path) -> list[Path]:
    """The images in a folder and below it, in the order of their names.

    Raises:
        ValueError: if an image is no file (a pipe, a link to nothing), or a link leads to a folder.
    """
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            if path.is_symlink():
                raise ValueError(
                    f"{str(path)!r} is a link to a folder, and links are not followed; give that folder, or "
                    "move it."
                )
        elif path.suffix.lower() in SUFFIXES:
            if not path.is_file():
                raise ValueError(
                    f"{str(path)!r} is no file but a pipe, a device or a link to nothing; remove it."
                )
            found.append(path)
    return found


def fitted(image: Image.Image, size: tuple[int, int] | None) -> Tensor:
    """`(3, H, W)` in [-1, 1]: scaled (bicubic, antialiased) to cover `size` (height, width), the middle cut out.

    None leaves the size as it is.
    """
    if size is not None:
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.array(image, np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def _members(tars: Sequence[Path]) -> dict[str, _Part]:
    """Name -> bytes of every file in uncompressed tar files; a name is led by the tar file's stem."""
    parts = {}
    for path in tars:
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    # without the dot of "./a.png"
                    name = str(PurePosixPath(path.stem, member.name))
                    if member.isdir():
                        continue
                    if not member.isfile() or member.issparse():
                        raise tarfile.ReadError(
                            f"{name!r} is a link or no plain file; pack what it means"
                        )
                    if member.offset_data + member.size > path.stat().st_size:
                        raise tarfile.ReadError("its end is missing")
                    if name in parts:
                        raise tarfile.ReadError(f"{name!r} is in it twice")
                    parts[name] = _Part(path, member.offset_data, member.size)
        except (tarfile.TarError, OSError, EOFError, UnicodeError) as error:
            raise ValueError(
                f"{str(path)!r} is no whole, uncompressed tar file of plain files ({str(error)[:160]})."
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
                f"the image {name!r} in {str(root)!r} has no caption; write it to {text!r}."
            )
        try:
            captions.append(" ".join(members[text].read().decode("utf-8-sig").split()))
        except UnicodeDecodeError as error:
            raise ValueError(f"the caption {text!r} in {str(root)!r} is not UTF-8.") from error
    return Captioned(tuple(names), tuple(captions), tuple(members[name] for name in names))
