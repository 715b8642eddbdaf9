from __future__ import annotations

import torch
from PIL import Image

from nitrodistill.cli.main import main
from nitrodistill.losses import LatentLPIPSLoss
from nitrodistill.toy import scenes


def test_it_fits_from_a_folder_of_images(tmp_path, capsys, monkeypatch):
    (tmp_path / "images").mkdir()
    for i, image in enumerate(scenes.render(scenes.captions()[:12], 0)):
        levels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0)
        Image.fromarray(levels.numpy()).save(tmp_path / "images" / f"{i}.png")
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
