"""What a demo of a known length comes to: an interval for each number, to say whether it was reproduced.

`benchmarks/demo_intervals.py` runs the demo with several seeds and writes `demo_intervals.json` beside this file.
With mean m and standard deviation s of a number over n seeds, one more demo lies in the 95% prediction interval

    m -+ t s sqrt(1 + 1/n),    t the 97.5% quantile of Student's distribution with n - 1 degrees of freedom

if the numbers are normal; of distances, which are positive, the logarithm is taken. Demos of equal seed differ by
rounding alone, which another processor, number of threads or version of PyTorch brings along; training makes much
of it, so that the interval over seeds is stated for them too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from nitrodistill.evaluation import Evaluation, info
from nitrodistill.evaluation.report.numbers import number

FILE = Path(__file__).with_name("demo_intervals.json")


@dataclass(frozen=True)
class Range:
    """Where a number is expected.

    Attributes:
        mean: over the seeds; of distances the geometric one.
        low: lower end of the prediction interval.
        high: upper end.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Length:
    """What makes a demo long: the options of `nitrodistill demo`.

    Attributes:
        method: by which.
        pairs: how many pairs, 0 without.
        steps: how many optimizer steps of each student.
        samples: how many pictures of each model.
    """

    method: str
    pairs: int
    steps: int
    samples: int


def stated(length: Length, num_inference_steps: int) -> Mapping[str, Range] | None:
    """A student's metrics -> where they are expected; None for a length that nobody measured."""
    for entry in json.loads(FILE.read_text(encoding="utf-8"))["lengths"]:
        if entry["num_inference_steps"] != num_inference_steps:
            continue
        if Length(*(entry[field.name] for field in fields(Length))) == length:
            return {name: Range(**ends) for name, ends in entry["student"].items()}
    return None


def outside(found: Evaluation, expected: Mapping[str, Range]) -> list[str]:
    """The student's numbers that lie elsewhere, each in words; those that are missing are among them."""
    sentences = []
    for name, ends in expected.items():
        value = found.value("student", name)
        if value is None or not ends.low <= value <= ends.high:
            where = f"{number(ends.low)} to {number(ends.high)}"
            sentences.append(f"{info(name).label} is {number(value)}, expected {where}")
    return sentences
