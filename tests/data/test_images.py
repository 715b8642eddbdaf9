from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nitrodistill.data import open_images
from nitrodistill.data.images import fitted, read_image


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
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.add(folder, ".")  # as `tar -C folder .`
    four = open_images(tmp_path / "0.tar")
    assert four.names == two.names
    for images in (one, two, three, four):
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
    with pytest.raises(ValueError, match=r"'a.png' .* has no caption; write it to 'a.txt'"):
        open_images(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"caption 'a.txt' .* is not UTF-8"):
        open_images(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"ok")
    with pytest.raises(ValueError, match=r"the image 'a.png' in .* cannot be read"):
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
    with pytest.raises(ValueError, match=r"y/a\.png' is a link or no plain file"):
        open_images(place)
    assert secret.read_text() == "secret"


def saved(image: Image.Image, kind: str, **more: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def test_sixteen_bits_of_grey_become_eight() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for kind in ("PNG", "TIFF"):
        levels = np.asarray(read_image(saved(Image.fromarray(ramp), kind), "a"))
        assert levels.shape == (256, 256, 3)
        np.testing.assert_allclose(levels[..., 0], ramp / 257, atol=0.501)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_what_is_transparent_lies_on_white(mode: str) -> None:
    """Whatever colour is below: a red that nobody sees is white, half of black is grey."""
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0] = [(255, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 127)]
    image = Image.fromarray(pixels, "RGBA")
    if mode in ("P", "PA"):
        image = Image.new("P", (3, 1))
        image.putpalette([255, 0, 0, 0, 0, 0, 0, 0, 0])
        image.putdata([0, 1, 2])
        data = saved(image, "PNG", transparency=bytes([0, 255, 127]))
    else:
        data = saved(image.convert(mode), "PNG")
    found = np.asarray(read_image(data, "a"))[0, :, 0]
    np.testing.assert_allclose(found, [255, 0, 128], atol=1)


def test_what_has_no_one_meaning_is_refused_by_name() -> None:
    frames = [Image.new("L", (4, 4), level) for level in (0, 99)]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(ValueError, match="it has 2 frames, and one is needed"):
            read_image(data, "'a'")
        assert read_image(saved(frames[1], kind), "a").getpixel((0, 0)) == (99, 99, 99)
    with pytest.raises(ValueError, match="holds numbers of 32 bits"):
        read_image(saved(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "a")


def test_damaged_and_foreign_data_are_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = png((1, 2, 3), (64, 64))
    torn = whole[: len(whole) // 2]
    exif = Image.Exif()
    exif[0x0112] = 6
    wrong = saved(Image.new("RGB", (4, 4)), "JPEG", exif=exif.tobytes()[:-8])
    bomb = Image.new("L", (300, 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for data in (torn, wrong, saved(bomb, "PNG"), postscript, b"", b"rubbish"):
        with pytest.raises(ValueError, match=r"the image 'x\.png' cannot be read"):
            read_image(data, "'x.png'")


def test_nothing_is_left_out(tmp_path: Path) -> None:
    def held(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for key in ("a.png", "a.txt"):
            (folder / key).write_bytes(MEMBERS["b" + key[1:]])
        return folder

    pipe, dead, link, both = (held(name) for name in ("pipe", "dead", "link", "both"))
    os.mkfifo(pipe / "b\x1b.png")  # would hang
    with pytest.raises(ValueError, match=r"b\\x1b\.png' is no file but a pipe"):
        open_images(pipe)
    (dead / "b.gif").symlink_to("nowhere")
    with pytest.raises(
        ValueError, match=r"b\.gif' is no file but a pipe, a device or a link to noth"
    ):
        open_images(dead)
    (link / "more").symlink_to(pipe)
    with pytest.raises(ValueError, match="more' is a link to a folder"):
        open_images(link)
    tar(both / "x.tar", MEMBERS)
    with pytest.raises(ValueError, match="holds tar files, and images beside them"):
        open_images(both)
    twice = tmp_path / "twice.tar"
    with tarfile.open(twice, "w") as archive:
        for _ in range(2):
            archive.add(both / "a.png", "a.png")
    with pytest.raises(ValueError, match=r"twice/a\.png' is in it twice"):
        open_images(twice)
    (held("more") / "b.tiff").write_bytes(saved(Image.new("L", (3, 3)), "TIFF"))
    with pytest.raises(ValueError, match=r"'b\.tiff' .* has no caption"):
        open_images(tmp_path / "more")
