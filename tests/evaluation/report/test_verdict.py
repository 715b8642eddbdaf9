"""The verdict: what an interval reaches matches, what it does not reach differs, and the sentence says both."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nitrodistill.evaluation import Evaluation, Metric
from nitrodistill.evaluation.report import assess, verdict


def metric(value: float, low: float | None = None, high: float | None = None) -> Metric:
    return Metric(value, low, high)


@pytest.mark.parametrize(
    ("name", "student", "teacher", "floor", "state"),
    [
        ("fd_teacher", metric(4.0, 3.0, 5.0), None, 3.2, "matches"),
        ("fd_teacher", metric(4.0, 3.5, 5.0), None, 3.2, "differs"),
        ("fd_teacher", metric(2.0, 1.5, 2.5), None, 3.2, "matches"),  # below the floor
        ("fd_teacher", metric(4.0, 3.5, 5.0), None, None, "open"),
        ("fd_teacher", metric(4.0), None, 3.2, "open"),
        ("fd_real", metric(6.0, 5.2, 7.0), metric(5.0, 4.5, 5.5), 2.0, "matches"),
        ("fd_real", metric(6.0, 5.6, 7.0), metric(5.0, 4.5, 5.5), 2.0, "differs"),
        ("alignment", metric(0.95, 0.93, 0.97), metric(0.99, 0.97, 1.0), None, "matches"),
        ("alignment", metric(0.95, 0.93, 0.96), metric(0.99, 0.97, 1.0), None, "differs"),
        ("alignment", metric(1.0, 0.99, 1.0), metric(0.9, 0.88, 0.92), None, "matches"),
        ("recall", metric(0.8, 0.75, 0.85), None, 0.84, "matches"),
        ("recall", metric(0.8, 0.75, 0.83), None, 0.84, "differs"),
        ("diversity", metric(0.98, 0.95, 1.01), metric(1.0), None, "matches"),
        ("diversity", metric(0.98, 0.95, 0.99), metric(1.0), None, "differs"),
        ("diversity", metric(0.98, 0.95, 0.99), metric(1.0), 0.985, "matches"),
        ("diversity", metric(1.1, 1.05, 1.15), metric(1.0), None, "differs"),
        ("beauty", metric(1.0, 0.9, 1.1), metric(1.0, 0.9, 1.1), None, "open"),
    ],
)
def test_states(
    name: str, student: Metric, teacher: Metric | None, floor: float | None, state: str
) -> None:
    assert assess(name, student, teacher, floor).state == state


def test_the_sentence_has_the_numbers(evaluation: Callable[..., Evaluation]) -> None:
    outcome = verdict(evaluation())
    assert outcome.headline == (
        "The student matches its teacher in variety, but not in following prompts, distribution or "
        "sharpness."
    )
    assert outcome.detail == (
        "1 of 5 measures agrees within the sampling error of 64 pictures; farthest off: alignment 0.900 "
        "(teacher 0.990), FD to real 12.0 (teacher 4.00), edge ratio 0.900 (1 is the teacher)."
    )
    assert (outcome.matched, outcome.decided) == (1, 5)
    assert "alignment@colour" not in outcome.assessments, "the whole counts its parts"
    assert "pixel_distance" not in outcome.assessments, "another picture may be as good"


def test_the_teacher_as_its_own_student_matches() -> None:
    model = {"alignment": metric(0.99, 0.98, 1.0), "fd_real": metric(4.0, 3.0, 5.0)}
    outcome = verdict(Evaluation({"teacher": model, "student": model}))
    assert outcome.headline == "The student matches its teacher."
    assert (
        outcome.detail
        == "On both measures it cannot be distinguished from its teacher within the sampling error."
    )
    assert verdict(
        Evaluation({"student": {"fd_teacher": Metric(2.0, 1.0, 3.0, 2.5)}})
    ).detail.startswith("On the one measure")


def test_a_hopeless_student_is_told_so() -> None:
    student = {"fd_teacher": Metric(700.0, 690.0, 710.0, 3.0), "diversity": Metric(0.0, 0.0, 0.0)}
    outcome = verdict(Evaluation({"student": student}))
    assert outcome.headline == "The student does not match its teacher yet."
    assert "0 of 2 measures agree" in outcome.detail
    assert "diversity 0 (1 is the teacher)" in outcome.detail


def test_the_farthest_off_is_so_in_widths_of_its_interval() -> None:
    """Squared discrepancies and their floors may be negative, so that factors mean nothing."""
    sure = assess("kid_teacher", Metric(9.0, 8.0, 10.0), None, -1.0)
    unsure = assess("fd_teacher", Metric(900.0, 100.0, 1700.0), None, 3.0)
    assert sure.gap == pytest.approx(10.0)
    assert unsure.gap == pytest.approx(897 / 800)
    assert assess("diversity", Metric(1.0, 1.0, 1.0), None, None).gap == 0
    assert assess("diversity", Metric(0.0, 0.0, 0.0), None, None).gap == float("inf")


def test_without_intervals_nothing_is_claimed() -> None:
    outcome = verdict(Evaluation({"student": {"fd_teacher": Metric(7.0, floor=3.0)}}))
    assert outcome.headline == "This evaluation cannot tell."
    assert outcome.detail.endswith("It measured FD to teacher 7.00 (floor 3.00).")
    assert outcome.decided == 0


def test_of_what_is_good_from_1_up_more_is_no_difference() -> None:
    """Farther from the training pairs than the teacher is less memorising, not a fault."""
    more = assess("nearest_ratio", Metric(1.2, 1.1, 1.3), None, 1.01)
    less = assess("nearest_ratio", Metric(0.8, 0.7, 0.9), None, 1.01)
    assert (more.state, less.state) == ("matches", "differs")
    assert assess("diversity", Metric(1.2, 1.1, 1.3), None, 1.01).state == "differs"


def test_a_sentence_shows_why_a_ratio_differs() -> None:
    outcome = verdict(Evaluation({"student": {"edge_ratio": Metric(1.004, 1.0004, 1.0076)}}))
    assert "edge ratio 1.0040 (1 is the teacher)" in outcome.detail
