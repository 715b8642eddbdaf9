"""The demo's spread: what a demo took is known where it went in one go, and the table shows it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nitrodistill.demo.demo import DemoConfig, length_of, students
from nitrodistill.evaluation import Evaluation, Metric

SAID = {
    "0/4  first pictures: teacher, ...": 2.0,
    "     look at first.png; a new student is distilled now": 9.0,
    "1/4  scenes: ...": 11.0,
    "2/4  distillation by dmd2: ...": 20.0,
    "3/4  evaluation: ...": 120.0,
    "4/4  export: ...": 150.0,
    "\nThe student in 4 steps:\n...": 161.0,
}
"""What a demo says, and when."""

TOOK = {
    "first pictures": 9.0,
    "data": 11.0,
    "training": 100.0,
    "evaluation": 30.0,
    "export": 11.0,
    "all": 161.0,
}


@pytest.fixture
def intervals(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whose demo takes no time, and says that it did."""
    module = importlib.import_module("benchmarks.demo_intervals")
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def run_demo(config: DemoConfig, say: Any) -> list[Evaluation]:
        start = now[0]
        for text, second in SAID.items():
            now[0] = start + second
            say(text)
        teacher = {"alignment": Metric(0.99), "fd_real": Metric(6.0)}
        student = {"alignment": Metric(0.9), "fd_real": Metric(10.0 + config.seed)}
        settings = {"student_timesteps": [999]}
        found = Evaluation({"teacher": teacher, "student": student}, settings)
        for one in students(config):
            one.results.mkdir(parents=True, exist_ok=True)
            found.save(one.results / "metrics.json")
        return [found, found]

    monkeypatch.setattr(module, "run_demo", run_demo)
    return module


def test_the_times_are_those_of_a_demo_that_went_in_one_go(intervals, tmp_path: Path) -> None:
    config = DemoConfig(steps=2, samples=4)
    assert intervals.measured(config, tmp_path, False).seconds == TOOK
    read = intervals.measured(config, tmp_path, False)  # from its folder
    assert read.seconds == TOOK
    assert [one.value("student", "fd_real") for one in read.found] == [10.0, 10.0]

    shared = DemoConfig(steps=2, samples=4, seed=1)
    assert intervals.measured(shared, tmp_path, False, alone=False).seconds is None
    assert intervals.measured(shared, tmp_path, False).seconds is None  # nobody knows what it took
    stopped = DemoConfig(steps=2, samples=4, seed=2)
    intervals.folder_of(stopped, tmp_path).mkdir()
    assert intervals.measured(stopped, tmp_path, False).seconds is None


def test_an_entry_has_the_seconds_beside_the_values_and_the_table_their_range(
    intervals, tmp_path: Path
) -> None:
    configs = [DemoConfig(steps=2, samples=4, seed=seed) for seed in range(3)]
    demos = intervals.all_measured(configs, tmp_path, False, 1)
    times = [TOOK, None, {**TOOK, "training": 130.0, "all": 191.0}]
    found = [demo.found[0] for demo in demos]
    entry = intervals.state(length_of(configs[0]), range(3), found, times)
    assert entry["values"]["fd_real"] == [10.0, 11.0, 12.0]
    assert entry["seconds"]["training"] == [100.0, None, 130.0]
    before = {name: value for name, value in entry.items() if name != "seconds"}
    shown = intervals.table([entry, before])  # the second was written before times were noted
    assert "| wall s, first pictures | 9 (9 to 9) | - |" in shown
    assert "| wall s, all | 176 (161 to 191) | - |" in shown
    assert "wall s" not in intervals.table([before])


def test_the_parts_are_what_the_demo_says(intervals) -> None:
    """Its own sentences, so that another wording is noticed."""
    demo = Path(importlib.import_module("nitrodistill.demo.demo").__file__ or "").read_text()
    for mark in intervals.ENDS:
        assert f'"     {mark}' in demo or f'"{mark}' in demo, mark
