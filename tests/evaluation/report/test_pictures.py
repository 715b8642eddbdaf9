"""The gallery: which samples, in which order, and how they are packed."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from PIL import Image

from nitrodistill.evaluation import Evaluation, Pictures, Sample
from nitrodistill.evaluation.report.pictures import data_uri, gallery

TITLES = {"teacher": "teacher", "student": "student"}


@pytest.mark.parametrize(("size", "kind"), [(8, "png"), (128, "png"), (160, "webp")])
def test_small_pictures_are_exact_and_large_ones_small(size: int, kind: str) -> None:
    levels = torch.arange(size * size * 3).reshape(3, size, size) % 256
    head, data = data_uri(levels / 127.5 - 1).split(",")
    assert head == f"data:image/{kind};base64"
    packed = base64.b64decode(data)
    back = torch.frombuffer(
        bytearray(Image.open(io.BytesIO(packed)).convert("RGB").tobytes()), dtype=torch.uint8
    )
    back = back.reshape(size, size, 3).permute(2, 0, 1)
    if kind == "png":
        assert torch.equal(back.long(), levels)
    else:
        assert len(packed) < levels.numel()


def test_worst_and_fair_samples_are_one_gallery(evaluation: Callable[..., Evaluation]) -> None:
    shown = gallery(evaluation(("one", "two", "three")), TITLES)
    assert shown is not None
    assert [card["prompt"] for card in shown.cards] == ["three", "two", "one"]
    assert [card["fair"] for card in shown.cards] == [False, True, True]
    assert [i["title"] for i in shown.cards[0]["images"]] == ["teacher", "naive", "student"]
    assert [d["name"] for d in shown.distances] == ["pixel_distance", "ssim"]
    assert (shown.pixelated, shown.has_fair, shown.has_naive) == (True, True, True)
    assert "the 1 samples of 3 that are farthest" not in shown.lead
    assert "the one sample of 3 that is farthest from the teacher and the first 2" in shown.lead


def test_a_sample_in_both_sets_is_shown_once(evaluation: Callable[..., Evaluation]) -> None:
    found = evaluation()
    shown = gallery(replace(found, worst=found.examples), TITLES)
    assert shown is not None
    assert [(card["index"], card["fair"]) for card in shown.cards] == [(0, True)]


def test_the_worst_of_a_similarity_is_the_least(evaluation: Callable[..., Evaluation]) -> None:
    found = evaluation(("one", "two", "three"))
    samples = [Sample(s.index, s.prompt, {"ssim": s.distances["ssim"]}) for s in found.samples]
    shown = gallery(replace(found, samples=samples), TITLES)
    assert shown is not None
    assert [card["prompt"] for card in shown.cards] == ["three", "two", "one"]
    assert shown.distances[0]["worst"] == "up"


def test_pictures_of_no_evaluation_keep_their_order() -> None:
    pictures = Pictures(("b", "a"), {"student": torch.zeros(2, 3, 4, 6)})
    shown = gallery(Evaluation({"student": {}}, examples=pictures), TITLES)
    assert shown is not None
    assert [card["prompt"] for card in shown.cards] == ["b", "a"]
    assert shown.distances == []
    assert shown.shape == "6 / 4"
    assert gallery(Evaluation({"student": {}}), TITLES) is None
