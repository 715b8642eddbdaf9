from __future__ import annotations

from PIL import Image

from nitrodistill.cli.main import main
from nitrodistill.data import PairStore


def test_images_become_a_store_and_mistakes_a_sentence(place, capsys):
    folder = place.root / "images"
    folder.mkdir()
    asked = ["encode", "--teacher", str(place.teacher), "--quiet", "--images", str(folder)]
    asked += ["--output", str(place.root / "real"), "--batch-size", "2"]
    assert main(asked) == 2
    assert "holds no images" in capsys.readouterr().err
    for i in range(3):
        Image.new("RGB", (20, 16), (i, 0, 0)).save(folder / f"{i}.png")
    assert main(asked) == 2
    assert "0.png" in capsys.readouterr().err
    for i in range(3):
        (folder / f"{i}.txt").write_text("a small red circle on a black background")
    assert main(asked) == 0
    assert "3 images with 1 captions" in capsys.readouterr().out
    store = PairStore.open(place.root / "real")
    assert len(store) == 3
    assert not store.paired
    command = ["train", "--config", str(place.recipe), "--pairs", str(place.root / "real")]
    assert main(command) == 2
    assert "holds encoded images, which no teacher made" in capsys.readouterr().err
