"""Expected numbers of the demo: found by length, and what lies elsewhere is told."""

from __future__ import annotations

import json
import math

import pytest

from nitrodistill.demo.demo import DemoConfig, _reproduced, length_of
from nitrodistill.demo.expected import FILE, Length, Range, outside, stated
from nitrodistill.evaluation import Evaluation, Metric


def test_what_lies_elsewhere_is_told() -> None:
    expected = {"alignment": Range(0.9, 0.88, 0.92), "fd_real": Range(20.0, 15.0, 30.0)}
    inside = {"alignment": Metric(0.88), "fd_real": Metric(29.0)}
    assert outside(Evaluation({"student": inside}), expected) == []
    other = Evaluation({"student": {"alignment": Metric(0.5)}})
    assert outside(other, expected) == [
        "alignment is 0.500, expected 0.880 to 0.920",
        "FD to real is –, expected 15.0 to 30.0",
    ]


def test_the_short_demo_has_intervals_that_mean_something() -> None:
    expected = stated(Length("dmd2", 0, 80, 192), 4)
    assert expected is not None
    assert {"alignment", "fd_real", "edge_ratio", "diversity"} <= set(expected)
    for name, ends in expected.items():
        assert ends.low <= ends.mean <= ends.high, name
        if ends.low > 0:
            assert ends.high / ends.low < 12, f"{name} would accept anything"
    assert stated(Length("dmd2", 0, 2, 3), 4) is None
    assert stated(Length("dmd2", 0, 80, 192), 3) is None


def test_intervals_follow_from_the_values_beside_them() -> None:
    """Mean and t quantile by hand: the file was not edited."""
    quantiles = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
    for entry in json.loads(FILE.read_text(encoding="utf-8"))["lengths"]:
        values = [math.log(value) for value in entry["values"]["fd_real"]]
        count, mean = len(values), sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
        half = quantiles[count] * deviation * math.sqrt(1 + 1 / count)
        ends = entry["student"]["fd_real"]
        assert ends["low"] == pytest.approx(math.exp(mean - half), rel=2e-3)
        assert ends["high"] == pytest.approx(math.exp(mean + half), rel=2e-3)
        assert len(entry["seeds"]) == count


def test_the_demo_says_whether_it_was_reproduced() -> None:
    config = DemoConfig(steps=80, samples=192)
    expected = stated(length_of(config), 1)
    assert expected is not None
    found = Evaluation({"student": {name: Metric(ends.mean) for name, ends in expected.items()}})
    (line,) = _reproduced(found, config, 1)
    assert line.startswith(f"All {len(expected)} numbers lie where they are expected")
    (line,) = _reproduced(Evaluation({"student": {}}), config, 1)
    assert line.startswith("Not where a demo of this length is expected: alignment is –")
    assert _reproduced(found, DemoConfig(steps=3), 1) == []
