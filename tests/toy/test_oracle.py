from __future__ import annotations

import pytest
import torch

from nitrodistill.toy import scenes
from nitrodistill.toy.oracle import Oracle, load_oracle
from tools.toy.loop import seeded
from tools.toy.train_vae import random_scenes


def test_shipped_oracle_reads_fresh_renders():
    indices, images = random_scenes(2000, seeded("fresh renders"), "cpu")
    right = (load_oracle().predict(images) == indices).all(1)
    assert right.double().mean().item() >= 0.995


def test_alignment_sees_each_attribute():
    oracle = load_oracle()
    images = scenes.render(["a small red circle on a black background"] * 5, 0)
    found = oracle.alignment(
        images,
        [
            "a small red circle on a black background",
            "a large red circle on a black background",
            "a small blue circle on a black background",
            "a small red square on a black background",
            "a small red circle on a white background",
        ],
    )
    assert list(found) == ["size", "colour", "shape", "background"]
    for i, right in enumerate(found.values()):
        assert right.tolist() == [j != i + 1 for j in range(5)]


def test_features_feed_the_heads():
    oracle = load_oracle()
    images = scenes.render(scenes.captions()[:7], 0)
    features = oracle.features(images)
    assert features.shape == (7, 64)
    for head, logits in zip(oracle.heads, oracle(images), strict=True):
        torch.testing.assert_close(head(features), logits)


def test_loaded_oracle_is_frozen():
    assert not any(p.requires_grad for p in load_oracle().parameters())


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 64\).*\(B, 3, 32, 32\)"):
        Oracle().features(torch.zeros(2, 3, 64, 64))
    with pytest.raises(ValueError, match="2 images came with 1 captions"):
        Oracle().alignment(torch.zeros(2, 3, 32, 32), ["a small red circle on a black background"])
