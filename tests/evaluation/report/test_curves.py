"""Curves: stages one after the other, what was learnt before how it went, nothing twice."""

from __future__ import annotations

from nitrodistill.evaluation.report.curves import training_curves

LOGS = [
    {"stage": 0, "step": 10, "student/total": 2.0, "student/grad_norm": 1.0},
    {"stage": 0, "step": 20, "student/total": 1.0, "student/grad_norm": 1.0, "skipped": "nan"},
    {"stage": 1, "step": 10, "student/total": 3.0, "d/total": 1.0, "d/only": 1.0},
    {"stage": 1, "step": 30, "student/total": 2.5, "d/total": 2.0, "d/only": 2.0, "once": 1.0},
]


def test_curves_of_two_stages() -> None:
    shown, aside = training_curves(LOGS)
    assert [chart["title"] for chart in shown] == ["student/total", "d/total"]
    assert [chart["title"] for chart in aside] == ["student/grad_norm"]
    assert "student/total over step 10 to 50" in shown[0]["svg"]
    assert "d/total over step 30 to 50" in shown[1]["svg"]


def test_evaluations_come_first_and_their_details_last() -> None:
    logs = [
        {"stage": 0, "step": s, "a/total": s, "evaluation/alignment": 0.5, "evaluation/recall": s}
        for s in (1, 2)
    ]
    shown, aside = training_curves(logs)
    assert [chart["title"] for chart in shown] == ["evaluation/alignment", "a/total"]
    assert [chart["title"] for chart in aside] == ["evaluation/recall"]


def test_an_empty_log_has_none() -> None:
    assert training_curves([]) == ([], [])


def test_of_many_channels_the_extremes_are_shown_and_the_rest_is_aside() -> None:
    channels = {"x0/std.0": 0.5, "x0/std.1": 1.5, "x0/mean.0": -0.4, "x0/mean.1": 0.3}
    logs = [{"stage": 0, "step": s, "d/logit_gap.0": 1.0, **channels} for s in (1, 2)]
    shown, aside = training_curves(logs)
    assert [chart["title"] for chart in shown] == [
        "x0/std (lowest channel)",
        "x0/std (highest channel)",
        "x0/mean (farthest channel)",
    ]
    assert "from 0.500 to 0.500" in shown[0]["svg"]
    assert "from -0.400 to -0.400" in shown[2]["svg"].replace("−", "-")
    assert [chart["title"] for chart in aside] == ["d/logit_gap.0", *channels]


RECIPE = """
stages:
- method: ladd
  settings: {warmup_steps: 15}
  trainer: {optimizers: {student: {lr_warmup_updates: 5}}}
- method: dmd2
  settings: {regression: {warmup_steps: 12}}
"""


def test_the_end_of_a_warm_up_is_marked_in_the_curves_that_it_lies_in() -> None:
    (student, d), _ = training_curves(LOGS, RECIPE)
    assert "warm-up ends at 15; warm-up ends at 32" in student["svg"]
    assert "warm-up ends at 32" in d["svg"]
    assert "at 15" not in d["svg"]
    assert d["svg"].count('class="floor dashed"') == 1


def test_without_a_warm_up_or_a_readable_recipe_nothing_is_marked() -> None:
    for recipe in ("stages:\n- method: ladd", "no recipe: [", "text", "", None):
        shown, _ = training_curves(LOGS, recipe)
        assert not any("dashed" in chart["svg"] for chart in shown)
