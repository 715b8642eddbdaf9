"""Results: tables, JSON and pictures say what was measured."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nitrodistill.evaluation import Evaluation, Metric, Pictures, Sample

FOUND = Evaluation(
    models={
        "teacher": {
            "denoise_ms": Metric(55.5, 55.1, 60.0),
            "fd_real": Metric(14.83, 13.1, 16.2, 4.9, 1024, "oracle"),
            "alignment": Metric(0.984),
        },
        "student": {
            "alignment": Metric(0.88, 0.85, 0.91, num_samples=1024),
            "fd_real": Metric(132.4, floor=4.9),
            "fd_teacher": Metric(3.0),
            "denoise_ms": Metric(1.123),
        },
    },
    settings={"num_samples": 1024},
    samples=(
        Sample(0, "a ring", {"pixel_distance": 0.25, "ssim": 0.5}),
        Sample(1, "a cross", {"pixel_distance": 0.123457, "ssim": -1e-9}),
        Sample(2, "a ring", {"pixel_distance": 2.0, "ssim": 1.0}),
    ),
)


def test_tables_leave_out_what_nobody_has() -> None:
    assert FOUND.table() == {
        "teacher": {
            "alignment": 0.984,
            "FD to real": 14.83,
            "FD to teacher": None,
            "denoising, ms/image": 55.5,
        },
        "student": {
            "alignment": 0.88,
            "FD to real": 132.4,
            "FD to teacher": 3.0,
            "denoising, ms/image": 1.123,
        },
        "floor": {
            "alignment": None,
            "FD to real": 4.9,
            "FD to teacher": None,
            "denoising, ms/image": None,
        },
    }
    assert FOUND.markdown().splitlines()[:4] == [
        "|  | teacher | student | floor |",
        "| --- | ---: | ---: | ---: |",
        "| alignment | 0.984 | 0.880 | - |",
        "| FD to real | 14.8 | 132 | 4.900 |",
    ]
    lines = FOUND.text().splitlines()
    assert lines[2] == "alignment              0.984    0.880      -"
    assert len({len(line) for line in lines}) == 1


def test_notes_stand_below_the_tables(tmp_path: Path) -> None:
    noted = replace(FOUND, notes=("SSIM is left out: why.", "No floor for it."))
    for text, bare in ((noted.text(), FOUND.text()), (noted.markdown(), FOUND.markdown())):
        assert text == f"{bare}\n\n- SSIM is left out: why.\n- No floor for it."
    assert Evaluation.load(noted.save(tmp_path / "metrics.json")).notes == noted.notes


def test_values_and_floors_are_found_or_none() -> None:
    assert FOUND.value("student", "alignment") == 0.88
    assert FOUND.value("student", "kid_real") is None
    assert FOUND.value("nobody", "alignment") is None
    assert FOUND.floor("fd_real") == 4.9
    assert FOUND.floor("alignment") is None


def test_an_interval_has_its_ends_in_order() -> None:
    with pytest.raises(
        ValueError, match=r"interval is 3\.0 to 1\.0; its low end must not be above"
    ):
        Metric(2.0, low=3.0, high=1.0)


def test_metrics_json_round_trips(tmp_path: Path) -> None:
    path = FOUND.save(tmp_path / "new" / "metrics.json")
    assert Evaluation.load(path) == FOUND
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]
    bare = replace(FOUND, samples=())
    assert Evaluation.load(bare.save(path)) == bare


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"format": 3}, "its format is not 4"),
        ({"format": 4}, "'models'"),
        ({"format": 4, "models": {"student": {"fd": {"valu": 1}}}}, "valu"),
        ({"format": 4, "models": []}, "no attribute 'items'"),
        (
            {
                "format": 4, "models": {}, "settings": {},
                "samples": {"prompts": [], "index": [0], "prompt": [0], "distances": {}},
            },
            "index out of range",
        ),
        ('{"format": 4', "delimiter"),
        ('{"format": 4}', "it is not what was written"),
    ],
)  # fmt: skip
def test_a_metrics_json_that_is_none_is_named(
    tmp_path: Path, held: str | dict[str, object], words: str
) -> None:
    path = tmp_path / "metrics.json"
    whole = held if isinstance(held, str) else json.dumps({**held, "digest": _hash(held)})
    path.write_text(whole)
    with pytest.raises(ValueError, match=rf"metrics.json' is not .* of format 4 .*{words}"):
        Evaluation.load(path)


def _hash(held: dict[str, object]) -> str:
    text = json.dumps(held, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@pytest.mark.parametrize(
    ("before", "after"),
    [("0.88", "0.98"), ('"samples"', '"sampled"'), ("4.9", "5.9"), ('"index": [', '"index": [9')],
)
def test_a_number_that_was_changed_is_noticed(tmp_path: Path, before: str, after: str) -> None:
    """They go into model cards."""
    path = FOUND.save(tmp_path / "metrics.json")
    text = path.read_text()
    assert before in text
    path.write_text(json.dumps(json.loads(text)))  # another layout of the same
    assert Evaluation.load(path) == FOUND
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(ValueError, match=r"it is not what was written.*; evaluate again"):
        Evaluation.load(path)


def test_every_flipped_bit_of_the_pictures_is_noticed(tmp_path: Path) -> None:
    images = torch.zeros(1, 3, 2, 2)
    path = Pictures(("a ring",), {"teacher": images, "student": images}, (3,)).save(tmp_path / "p")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(bytes([*whole[:place], whole[place] ^ 1, *whole[place + 1 :]]))
        with pytest.raises(ValueError, match="holds no pictures"):
            Pictures.load(path)


def test_pictures_round_trip_to_eight_bits(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = Pictures(("a <b>", "ä"), {"teacher": images, "student": -images}, (3, 7))
    found = Pictures.load(pictures.save(tmp_path / "new" / "examples.safetensors"))
    assert (found.prompts, found.indices) == (pictures.prompts, pictures.indices)
    assert list(found.images) == ["teacher", "student"]
    for name, batch in pictures.images.items():
        torch.testing.assert_close(found.images[name], batch, atol=0.5 / 127.5 + 1e-6, rtol=0)


def test_pictures_that_are_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "examples.safetensors"
    path.write_text("something else")
    with pytest.raises(ValueError, match=r"examples\.safetensors' holds no pictures"):
        Pictures.load(path)
    with pytest.raises(FileNotFoundError):
        Pictures.load(tmp_path / "none")
