"""Real pictures from a folder: read once, and told what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from nitrodistill.data.images import fitted
from nitrodistill.evaluation import Extractor, ImageFolder
from nitrodistill.evaluation.real import measure_folder

CPU = torch.device("cpu")


def write(folder: Path, count: int, size: tuple[int, int] = (24, 20)) -> None:
    generator = torch.Generator().manual_seed(count)
    for i in range(count):
        levels = torch.randint(256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
        file = folder / ("below" if i % 2 else ".") / f"{size[0]}-{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels.numpy()).save(file)


class Mean:
    """Channel means; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.mean((2, 3))


def measure(path: Path, features: Mean, print_: str | None, cache: Path, size: int | None = None):
    extractors = [Extractor("mean", features, fingerprint=print_)]
    folder = ImageFolder(path, size)
    return measure_folder(folder, extractors, batch_size=3, device=CPU, cache=cache, progress=False)


def test_pictures_are_read_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, 3)
    folder = ImageFolder(tmp_path)
    assert len(folder) == 3
    levels = torch.tensor(list(Image.open(folder.files[2]).tobytes())).view(20, 24, 3)
    torch.testing.assert_close((folder[2] + 1) * 127.5, levels.permute(2, 0, 1).float())


def test_a_size_brings_all_to_it(tmp_path: Path) -> None:
    write(tmp_path, 2)
    write(tmp_path, 2, (16, 33))
    (_, images), *_ = ImageFolder(tmp_path, 16).batches(4)
    assert images.shape == (4, 3, 16, 16)
    with pytest.raises(
        ValueError, match=r"different resolutions \('16-00\.png' 16 x 33, '24-00\.png' 24 x 20"
    ):
        list(ImageFolder(tmp_path).batches(4))


def test_numbers_are_kept_under_a_hash_of_what_they_were_computed_from(tmp_path: Path) -> None:
    pictures, cache = tmp_path / "pictures", tmp_path / "cache"
    write(pictures, 7)
    features = Mean()
    first = measure(pictures, features, "a", cache)
    assert (first.count, features.calls) == (7, 3)
    again = measure(pictures, features, "a", cache)
    assert features.calls == 3
    assert again.features["mean"].distance(first.features["mean"]) == pytest.approx(0, abs=1e-12)
    assert torch.equal(again.columns["edge"], first.columns["edge"])
    measure(pictures, features, "b", cache)
    measure(pictures, features, "a", cache, 16)
    write(pictures, 1, (24, 20))  # another first picture
    measure(pictures, features, "a", cache)
    assert features.calls == 4 * 3
    assert len(list(cache.iterdir())) == 4
    measure(pictures, features, None, cache)
    assert len(list(cache.iterdir())) == 4, "an extractor without a fingerprint keeps nothing"
    for file in cache.iterdir():
        data = file.read_bytes()
        file.write_bytes(data[:-9] + bytes([data[-9] ^ 64]) + data[-8:])
    calls = features.calls
    assert measure(pictures, features, "a", cache).count == 7
    assert features.calls > calls, "a file with one bit turned is not believed"


def test_it_reads_as_encode_does(tmp_path: Path) -> None:
    """Turned by EXIF, and brought to a size by one function."""
    image = Image.new("RGB", (6, 4), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    for i in range(2):
        image.save(tmp_path / f"{i}.jpg", exif=exif)
    assert ImageFolder(tmp_path)[0].shape == (3, 6, 4)
    with Image.open(tmp_path / "0.jpg") as opened:
        expected = fitted(opened.convert("RGB").transpose(Image.Transpose.ROTATE_270), (5, 5))
    assert torch.equal(ImageFolder(tmp_path, 5)[0], expected)


def test_what_is_no_folder_of_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        ImageFolder(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(FileNotFoundError, match="holds 0 pictures"):
        ImageFolder(tmp_path)
    write(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match=r"holds 1 pictures .* at least 2"):
        ImageFolder(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png' cannot be read"):
        list(ImageFolder(tmp_path).batches(4))
    with pytest.raises(ValueError, match="size is 1"):
        ImageFolder(tmp_path, 1)
