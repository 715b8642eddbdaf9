from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nitrodistill.data import open_images
from nitrodistill.data.images import fitted


def png(color: tuple[int, int, int], size: tuple[int, int] = (6, 4)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "PNG")
    return stream.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


MEMBERS = {
    "b.png": png((255, 0, 0)),
    "b.txt": b"\xef\xbb\xbfa red\n field ",
    "deep/a.JPG": png((0, 0, 255)),
    "deep/a.txt": b"blue",
    "deep/a.json": b"{}",
    "notes.txt": b"no image of mine",
}


def test_a_folder_and_tar_files_hold_the_same(tmp_path: Path) -> None:
    folder, tars = tmp_path / "folder", tmp_path / "tars"
    tars.mkdir()
    for name, data in MEMBERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    tar(tars / "0.tar", MEMBERS)
    one, two, three = (open_images(path) for path in (folder, tars, tars / "0.tar"))
    assert one.names == ("b.png", "deep/a.JPG")
    assert two.names == three.names == ("0/b.png", "0/deep/a.JPG")
    for images in (one, two, three):
        assert images.captions == ("a red field", "blue")
        assert [images.image(i).getpixel((0, 0)) for i in (1, 0)] == [(0, 0, 255), (255, 0, 0)]


def test_webdataset_s_own_files_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as sink:
        for i in range(3):
            sink.write({"__key__": f"{i:03d}", "png": png((i, 0, 0)), "txt": f"caption {i}"})
    images = open_images(tmp_path)
    assert images.captions == ("caption 0", "caption 1", "caption 2")
    assert [images.image(i).getpixel((0, 0)) for i in range(3)] == [(i, 0, 0) for i in range(3)]


def test_fitted_covers_and_cuts_the_middle() -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 255  # the middle square is white
    out = fitted(Image.fromarray(pixels), (4, 4))
    assert out.shape == (3, 4, 4)
    assert out.unique().tolist() == [1.0]
    assert fitted(Image.new("RGB", (3, 3)), (6, 10)).shape == (3, 6, 10)
    assert fitted(Image.new("RGB", (3, 3)), (6, 10)).unique().tolist() == [-1.0]


def test_exif_turns_the_image(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("turned")
    assert open_images(tmp_path).image(0).size == (4, 6)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no images at"):
        open_images(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no images"):
        open_images(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no png")
    with pytest.raises(ValueError, match=r"a.png .* has no caption; write it to a.txt"):
        open_images(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"caption a.txt .* is not UTF-8"):
        open_images(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"ok")
    with pytest.raises(ValueError, match=r"the image a.png in .* cannot be read"):
        open_images(tmp_path).image(0)
    whole = tmp_path / "x.tar"
    tar(whole, MEMBERS)
    whole.write_bytes(whole.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"x.tar' is no whole, uncompressed tar file"):
        open_images(whole)
    whole.write_bytes(b"rubbish" * 300)
    with pytest.raises(ValueError, match="no whole, uncompressed tar file"):
        open_images(whole)


def test_names_in_a_tar_file_lead_nowhere(tmp_path: Path) -> None:
    """Nothing is unpacked: a name is a name."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    place = tmp_path / "in"
    place.mkdir()
    tar(place / "x.tar", {"../secret.png": png((1, 2, 3)), "../secret.txt": b"theirs"})
    images = open_images(place)
    assert images.captions == ("theirs",)
    with tarfile.open(place / "y.tar", "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    assert open_images(place).names == ("x/../secret.png",)
    assert secret.read_text() == "secret"
