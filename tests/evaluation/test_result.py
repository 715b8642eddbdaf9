"""Results: tables and JSON say what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from nitrodistill.evaluation import Evaluation, Scores

FOUND = Evaluation(
    arms={
        "teacher": Scores(alignment=0.984, fd_real=14.83, denoise_ms=55.5),
        "student": Scores(alignment=0.88, fd_real=132.4, fd_teacher=3.0, denoise_ms=1.123),
    },
    floor=Scores(fd_real=4.9),
    settings={"num_samples": 1024},
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


def test_metrics_json_round_trips(tmp_path: Path) -> None:
    path = FOUND.save(tmp_path / "new" / "metrics.json")
    assert Evaluation.load(path) == FOUND
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 2}', "its format is not 1"),
        ('{"format": 1}', "'arms'"),
        ('{"format": 1, "arms": {"student": {"alignmint": 1}}}', "alignmint"),
        ('{"format": 1, "arms": []}', "no attribute 'items'"),
        ('{"format": 1', "delimiter"),
    ],
)
def test_a_metrics_json_that_is_none_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"metrics.json' is not .* of format 1 .*{words}"):
        Evaluation.load(path)
