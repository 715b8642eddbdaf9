from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from nitrodistill import toy
from nitrodistill.cli.main import main
from nitrodistill.data.images import image_files
from nitrodistill.losses import LatentLPIPSLoss
from nitrodistill.toy import scenes


@pytest.fixture(autouse=True)
def images(tmp_path):
    """A folder of twelve scenes."""
    (tmp_path / "images").mkdir()
    for i, image in enumerate(scenes.render(scenes.captions()[:12], 0)):
        levels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0)
        Image.fromarray(levels.numpy()).save(tmp_path / "images" / f"{i}.png")


def test_it_fits_from_a_folder_of_images(tmp_path, capsys, monkeypatch):
    asked = [
        "fit-latent-lpips",
        "--images",
        str(tmp_path / "images"),
        "--output",
        str(tmp_path / "out"),
    ]
    asked += ["--pairs", "64", "--held-out", "4", "--steps", "2", "--widths", "[4]", "--quiet"]
    features = ["--features", "nitrodistill.toy:oracle_maps"]
    assert main([*asked, *features]) == 0
    said = capsys.readouterr().out
    assert "rank correlation on held-out pairs: " in said
    assert "not calibrated on human judgements (BAPPS)" in said
    loss = LatentLPIPSLoss(weights=tmp_path / "out" / "latent_lpips.safetensors")
    assert loss(torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)) >= 0
    assert main([*asked, *features, "--held-out", "11"]) == 2
    assert "holds 12 images and 11 are held out" in capsys.readouterr().err
    assert main([*asked, "--images", str(tmp_path / "none")]) == 2
    assert "/none'; give a folder of images" in capsys.readouterr().err
    file = tmp_path / "out" / "latent_lpips.safetensors"
    assert main([*asked, *features, "--output", str(file)]) == 2
    assert "is a file; choose a folder for the weights" in capsys.readouterr().err
    assert main([*asked, "--features", "nitrodistill.toy:nothing"]) == 2
    assert main([*asked, "--features", "nitrodistill.toy:scenes"]) == 2
    assert "no function at 'nitrodistill.toy:scenes'" in capsys.readouterr().err
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert main(asked) == 2
    assert capsys.readouterr().err.rstrip().endswith(", or give features of yours by --features.")


def test_a_vae_of_its_own_is_enough(tmp_path, capsys):
    toy.load_pipeline().vae.save_pretrained(tmp_path / "vae")
    asked = ["fit-latent-lpips", "--images", str(tmp_path / "images"), "--quiet", "--json"]
    asked += ["--pairs", "64", "--held-out", "4", "--steps", "2", "--widths", "[4]"]
    asked += ["--features", "nitrodistill.toy:oracle_maps"]
    of_vae = [*asked, "--vae", str(tmp_path / "vae")]
    assert main([*of_vae, "--output", str(tmp_path / "one")]) == 0
    one = json.loads(capsys.readouterr().out)
    assert main([*asked, "--output", str(tmp_path / "two")]) == 0  # the toy teacher's, the same VAE
    assert json.loads(capsys.readouterr().out)["correlation"] == one["correlation"]
    for more, sentence in (
        (["--teacher", "toy"], "--teacher means nothing here: the VAE is that of --vae"),
        (["--size", "[30, 32]"], "size is [30, 32]; this VAE takes multiples of 4"),
        (["--vae", str(tmp_path / "images")], "no VAE at"),
    ):
        assert main([*of_vae, "--output", str(tmp_path / "three"), *more]) == 2
        assert sentence in capsys.readouterr().err


def test_a_size_that_differs_is_found_before_anything_is_encoded(tmp_path, capsys, monkeypatch):
    toy.load_pipeline().vae.save_pretrained(tmp_path / "vae")
    for i in range(12, 66):
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / f"{i}.png")
    files = image_files(tmp_path / "images")
    last = files[torch.randperm(66, generator=torch.Generator().manual_seed(0))[-1]]
    Image.new("RGB", (64, 32)).save(last)  # of the second chunk that would be encoded

    def encode(*given, **named):
        raise AssertionError("encoded")

    monkeypatch.setattr("nitrodistill.models.autoencoder.encode_images", encode)
    asked = ["fit-latent-lpips", "--images", str(tmp_path / "images"), "--output", str(tmp_path)]
    asked += ["--vae", str(tmp_path / "vae"), "--features", "nitrodistill.toy:oracle_maps"]
    assert main([*asked, "--held-out", "4"]) == 2
    said = capsys.readouterr().err
    assert f"'{files[0]}' is [32, 32] and '{last}' [32, 64]; give --size" in said
