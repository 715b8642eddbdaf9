"""Heads on the disk: the same logits again, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from nitrodistill.discriminator import ConvHead, LatentDiscriminator, MLPHead, TokenHead

TAPS = ["conv_in", "mid_block"]


def test_saved_heads_say_the_same(tiny_denoiser, tiny_condition, generator, tmp_path):
    made = LatentDiscriminator(
        tiny_denoiser,
        [0.2, "mid_block"],
        head=TokenHead,
        width=6,
        conditioning=["timestep"],
        seed=3,
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    made.save_pretrained(tmp_path / "heads")
    files = sorted(file.name for file in (tmp_path / "heads").iterdir())
    assert files == ["config.json", "heads.safetensors"]
    loaded = LatentDiscriminator.from_pretrained(tmp_path / "heads", tiny_denoiser, taps=TAPS2)
    call = (torch.randn(3, 4, 8, 8, generator=generator), torch.tensor(10), tiny_condition)
    made.eval()
    loaded.eval()
    assert all(torch.equal(a, b) for a, b in zip(made(*call), loaded(*call), strict=True))


TAPS2 = ["down_blocks.0", "mid_block"]


def own(channels: int, width: int | None) -> torch.nn.Module:
    return torch.nn.Conv2d(channels, 1, 1)


def test_a_head_of_ones_own_is_passed_again(tiny_denoiser, tmp_path):
    LatentDiscriminator(tiny_denoiser, TAPS, head=own).save_pretrained(tmp_path)
    loaded = LatentDiscriminator.from_pretrained(tmp_path, tiny_denoiser, head=own)
    assert isinstance(loaded.heads.get_submodule("heads.0"), torch.nn.Conv2d)
    for head, given in ((None, "nothing"), (MLPHead, "mlp")):
        with pytest.raises(ValueError, match=f":own, and {given} was given; pass it as head="):
            LatentDiscriminator.from_pretrained(tmp_path, tiny_denoiser, head=head)


def test_the_head_may_be_named_again(tiny_denoiser, tmp_path):
    LatentDiscriminator(tiny_denoiser, TAPS, head="mlp").save_pretrained(tmp_path)
    LatentDiscriminator.from_pretrained(tmp_path, tiny_denoiser, head="mlp")
    with pytest.raises(ValueError, match="were made by mlp, and conv was given"):
        LatentDiscriminator.from_pretrained(tmp_path, tiny_denoiser, head="conv")


def test_a_head_that_has_changed_since_is_refused(tiny_denoiser, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "KERNEL", 1)
    LatentDiscriminator(tiny_denoiser, ["conv_in"], head=changing).save_pretrained(tmp_path)
    monkeypatch.setitem(globals(), "KERNEL", 3)
    with pytest.raises(
        ValueError, match=r"have heads.0.weight of shape \(1, 32, 1, 1\), .* here \(1, 32, 3, 3\)"
    ):
        LatentDiscriminator.from_pretrained(tmp_path, tiny_denoiser, head=changing)


KERNEL = 1


def changing(channels: int, width: int | None) -> torch.nn.Module:
    return torch.nn.Conv2d(channels, 1, KERNEL)


def test_heads_for_other_taps_are_refused(tiny_denoiser, tmp_path):
    LatentDiscriminator(tiny_denoiser, TAPS, width=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="belong to the taps conv_in, mid_block, not to mid_block"):
        LatentDiscriminator.from_pretrained(tmp_path, tiny_denoiser, taps=["mid_block"])


def test_heads_of_another_network_are_refused(
    tiny_denoiser, tiny_diffusers, tiny_scheduler, tmp_path
):
    LatentDiscriminator(tiny_denoiser, TAPS, width=8).save_pretrained(tmp_path)
    other = tiny_denoiser.with_module(tiny_diffusers(tiny_scheduler).unet)
    with pytest.raises(
        ValueError, match=r"for maps of \(32, 64\) channels, and this network's have \(8, 16\)"
    ):
        LatentDiscriminator.from_pretrained(tmp_path, other)


def test_damage_is_found(tiny_denoiser, tmp_path):
    discriminator = LatentDiscriminator(tiny_denoiser, TAPS, head=ConvHead, width=8)
    discriminator.save_pretrained(tmp_path)
    weights, config = tmp_path / "heads.safetensors", tmp_path / "config.json"
    whole, said = weights.read_bytes(), json.loads(config.read_text())

    def refused(sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            LatentDiscriminator.from_pretrained(tmp_path, tiny_denoiser)

    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("heads.safetensors is not what was written")
    weights.write_bytes(whole)
    config.write_text(json.dumps({**said, "settings": {**said["settings"], "width": 9}}))
    refused("its hash differs")
    config.write_text(json.dumps({**said, "format": 2}))
    refused("of format 2, and this version reads 1")
    for text in ("{", "[]", json.dumps({k: v for k, v in said.items() if k != "files"})):
        config.write_text(text)
        refused("is damaged")
    config.unlink()
    with pytest.raises(FileNotFoundError, match="no heads in"):
        LatentDiscriminator.from_pretrained(tmp_path, tiny_denoiser)


def test_a_folder_of_something_else_is_left_alone(tiny_denoiser, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"holds 'thesis.tex'"):
        LatentDiscriminator(tiny_denoiser, TAPS).save_pretrained(tmp_path)
